"""Claims about ``bedside read``: one line a file, in order, in the published shape; a bad file disturbs no other."""

from __future__ import annotations

from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from appliance.inference.engine import DeviceLostError, EngineError
from appliance.reading.read_command import Job, line, run_read, stream
from appliance.reading.reader import Reader
from appliance.reading.requests import Known
from appliance.records import Modality
from tests.networks import description, quantised, seal, write_bundle
from tests.simulated_models import chest, dicom, film, written

SHAPE = [
    "file",
    "modality",
    "status",
    "reason",
    "advice",
    "findings",
    "triage",
    "bundle",
    "engine",
    "provider",
    "milliseconds",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("read")
    shipped = quantised("mobilenet", folder)[1]
    root = write_bundle(folder / "models" / "made-up", shipped)
    described = description("made-up", "1.0.0", {"net": "model.onnx"})
    seal(
        root,
        msgspec.structs.replace(
            described, preprocess=msgspec.structs.replace(described.preprocess, parameters={"size": 32})
        ),
    )
    return folder


@pytest.fixture
def files(tmp_path) -> list[Path]:
    good = [tmp_path / f"film{number}.dcm" for number in range(3)]
    for number, path in enumerate(good):
        path.write_bytes(written(dicom(film(seed=number), PatientAge="040Y")))
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(good[0].read_bytes()[:-50])
    picture = tmp_path / "picture.png"
    picture.write_bytes(cv2.imencode(".png", film())[1].tobytes())
    return [good[0], broken, good[1], tmp_path / "gone.dcm", picture, good[2]]


def test_every_file_gets_its_line_in_order_and_in_the_published_shape(models, files):
    lines = list(run_read(files, models=models / "models", cache=models / "cache", engine="cpu"))
    assert [one.file for one in lines] == [str(path) for path in files]
    assert [one.status for one in lines] == ["read", "not_read", "read", "not_read", "not_read", "read"]
    assert [one.reason.partition(":")[0] for one in lines] == ["", "truncated", "", "unreadable", "which-modality", ""]
    first = msgspec.json.decode(msgspec.json.encode(lines[0]))
    assert list(first) == SHAPE
    assert list(first["findings"][0]) == ["id", "label", "code", "probability", "positive"]
    assert first["findings"][0]["code"] == "SCT:233604007"
    assert first["bundle"] == "made-up 1.0.0"
    assert first["engine"].startswith("onnxruntime")
    assert first["provider"] == "CPUExecutionProvider"
    assert first["milliseconds"] > 0
    assert all(one.advice for one in lines)


def test_a_given_modality_and_age_reach_the_reader(models, files):
    (one,) = run_read(
        [files[4]], models=models / "models", cache=models / "cache", engine="cpu", modality=Modality.CHEST_XRAY, age=50
    )
    assert one.status == "read"


def test_the_same_file_gives_the_same_answer_each_time(models, files):
    lines = list(run_read([files[0]] * 12, models=models / "models", cache=models / "cache", engine="cpu"))
    assert len({one.findings for one in lines}) == 1


def test_without_models_every_line_says_so_and_the_problem_is_told(tmp_path, files):
    told: list[str] = []
    (one,) = run_read([files[0]], models=tmp_path / "none", cache=tmp_path / "cache", on_problem=told.append)
    assert (one.status, one.reason.partition(":")[0]) == ("not_read", "no-model")
    assert any("no model bundle" in problem for problem in told)


def test_overlays_are_pictures_of_the_films_that_were_read(models, files, tmp_path):
    out = tmp_path / "overlays"
    again = tmp_path / "again" / "film0.dcm"
    again.parent.mkdir()
    again.write_bytes(files[0].read_bytes())
    list(run_read([*files, again], models=models / "models", cache=models / "cache", engine="cpu", overlay_dir=out))
    assert sorted(path.name for path in out.iterdir()) == ["film0-2.png", "film0.png", "film1.png", "film2.png"]
    assert cv2.imread(str(out / "film0.png")).shape == (60, 50, 3)


def test_the_heat_lies_where_the_map_says():
    from appliance.reading.overlay import blended, shown

    reader = Reader(chest((2.0, 0, 5)))
    looked = reader.look(written(dicom(film(700, 700), PatientAge="040Y")), Known())
    reading = reader.answer(looked)
    plain, mixed = shown(looked.capture).astype(int), blended(looked.capture, reading).astype(int)
    heat = np.abs(mixed - plain).sum(axis=2)
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    assert 200 <= row < 300
    assert 300 <= column < 400
    assert heat[600:, 600:].max() == 0
    cropped = msgspec.structs.replace(reading, overlay_box=(0.5, 0.0, 1.0, 0.5))
    heat = np.abs(blended(looked.capture, cropped).astype(int) - plain).sum(axis=2)
    assert heat[:350].max() == 0
    assert heat[350:, :350].max() > 0


def test_an_engine_that_fails_on_one_file_is_that_files_line(files):
    calls = []

    def flaky(graph, inputs):
        calls.append(graph)
        if len(calls) == 2:
            raise EngineError("out of luck")
        return {"logits": np.float32([[0, 0, 5]]), "map": np.zeros((1, 1, 7, 7), np.float32)}

    done = list(stream(Reader(chest(flaky)), (Job(files[0], Known()) for _ in range(3))))
    lines = [line(one.path, one.reading) for one in done]
    assert [one.status for one in lines] == ["read", "not_read", "read"]
    assert lines[1].reason.startswith("failed: ")
    assert "out of luck" in lines[1].reason


def test_a_lost_device_ends_the_run_for_only_a_new_process_can_go_on(files):
    def lost(graph, inputs):
        raise DeviceLostError("gone")

    with pytest.raises(DeviceLostError):
        list(stream(Reader(chest(lost)), [Job(files[0], Known())]))


def test_only_a_few_captures_wait_decoded_however_many_files_there_are(files):
    asked = []

    def jobs():
        for number in range(200):
            asked.append(number)
            yield Job(files[0], Known())

    for _ in zip(range(5), stream(Reader(chest()), jobs()), strict=False):
        pass
    assert len(asked) < 25
