"""The picture bundles as shipped: whole, replayed, answering of a real chest film, silent on all else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pydicom
import pytest
from pydicom.data import get_testdata_file

from appliance.inference import derive
from appliance.inference.bundle import load
from appliance.reading import findings, quality, ultrasound, xray
from appliance.reading.prepared import Header, Picture

MODELS = Path(__file__).parents[2] / "models"
BUNDLES = ["chest-xray", "lung-ultrasound"]


@pytest.fixture(scope="module", params=["as shipped", "derived for x86"])
def form(request):
    return request.param


def session(bundle, form, folder, graph="net"):
    path = bundle.path(next(one.file for one in bundle.description.graphs if one.name == graph))
    if form == "derived for x86":
        derived = folder / f"{bundle.id}-{graph}.onnx"
        derive.write(path, derived, unsigned=True)
        path = derived
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def chest(form, tmp_path_factory):
    bundle = load(MODELS / "chest-xray")
    return bundle, session(bundle, form, tmp_path_factory.mktemp("forms"))


def film(name, window):
    pixels = pydicom.dcmread(get_testdata_file(name)).pixel_array
    return Picture(header=Header(media_type="application/dicom"), pixels=pixels[None], invert=True, window=window)


RG1 = ("RG1_UNCI.dcm", (15000.0, 30000.0))
RG3 = ("RG3_UNCI.dcm", (550.0, 1024.0))


def refused(served, picture):
    """Whether a picture is refused, by its quality or by the gate."""
    bundle, running = served
    prepared = xray.prepare(picture, bundle.description)
    if quality.judge(prepared.quality, bundle.description).refusal is not None:
        return True
    names = [output.name for output in running.get_outputs()]
    found = {"net": dict(zip(names, running.run(names, prepared.inputs["net"]), strict=True))}
    probability = findings.gate_probability(bundle.description, found)
    assert probability is not None
    return probability < bundle.description.gate.threshold


def changed(picture, change):
    pixels = np.ascontiguousarray(change(picture.pixels[0]))[None]
    return Picture(header=picture.header, pixels=pixels, invert=picture.invert, window=picture.window)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_loads_and_its_golden_cases_replay_within_its_tolerance(name, form, tmp_path):
    bundle = load(MODELS / name)
    golden = bundle.description.golden
    with np.load(bundle.path(golden.file)) as stored:
        for graph in bundle.description.graphs:
            running = session(bundle, form, tmp_path, graph.name)
            cases = sorted({key.split("/")[1] for key in stored.files if key.startswith(f"{graph.name}/")})
            assert len(cases) >= 4
            outputs = [output.name for output in graph.outputs]
            for case in cases:
                found = running.run(outputs, {"image": stored[f"{graph.name}/{case}/in/image"]})
                for output, value in zip(outputs, found, strict=True):
                    expected = stored[f"{graph.name}/{case}/out/{output}"]
                    assert value.shape == expected.shape
                    assert np.abs(value - expected).max() <= golden.outputs[output], (graph.name, case, output)


@pytest.mark.parametrize("name", BUNDLES)
def test_the_score_is_the_mean_of_the_map_that_is_shown(name, form, tmp_path):
    running = session(load(MODELS / name), form, tmp_path)
    image = np.random.default_rng(0).random((2, 1, 224, 224), dtype=np.float32)
    logits, cam = running.run(["logits", "cam"], {"image": image})
    apart = logits - cam.mean(axis=(2, 3))
    assert np.abs(apart - apart[0]).max() < 1e-3


def test_an_adult_chest_film_is_read(chest):
    assert not refused(chest, film(*RG1))


def test_an_extremity_is_refused(chest):
    assert refused(chest, film(*RG3))


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("90°", np.rot90),
        ("180°", lambda p: np.rot90(p, 2)),
        ("270°", lambda p: np.rot90(p, 3)),
        ("inverted", lambda p: np.uint16(30000) - np.minimum(p, 30000)),
        ("a corner", lambda p: p[:600, :600]),
        ("blank", np.zeros_like),
        ("noise", lambda p: np.random.default_rng(0).integers(0, 30000, p.shape, dtype=np.uint16)),
    ],
)
def test_a_chest_film_made_wrong_is_refused(chest, what, change):
    assert refused(chest, changed(film(*RG1), change)), what


def test_a_cine_gives_each_graph_its_frames_and_a_black_one_says_what_to_do():
    bundle = load(MODELS / "lung-ultrasound")
    frames = pydicom.dcmread(get_testdata_file("color3d_jpeg_baseline.dcm")).pixel_array
    picture = Picture(header=Header(media_type="application/dicom"), pixels=frames, frame_time_ms=33.0)
    prepared = ultrasound.prepare(picture, bundle.description)
    assert prepared.refusal is None
    assert set(prepared.inputs) == {graph.name for graph in bundle.description.graphs}
    for inputs in prepared.inputs.values():
        assert inputs["image"].shape == (bundle.description.preprocess.parameters["frames"], 1, 224, 224)
    black = Picture(header=picture.header, pixels=np.zeros((5, 480, 640), np.uint8))
    refusal = ultrasound.prepare(black, bundle.description).refusal
    assert refusal is not None
    assert refusal.code == "no-sector"
    assert refusal.advice
