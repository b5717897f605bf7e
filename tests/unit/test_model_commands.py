"""``bedside models``: what is listed, built and verified, and what is said when something is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import soundfile
from typer.testing import CliRunner

from appliance.cli import app
from appliance.inference import commands
from appliance.inference.commands import Report
from tests.networks import quantised, write_bundle
from tools.simulate import sounds


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models" / "made-up", quantised("mobilenet", tmp_path)[1])
    return tmp_path / "models"


def test_listing_says_what_each_bundle_is_and_which_is_damaged(models: Path, tmp_path: Path) -> None:
    write_bundle(models / "other", quantised("resnet", tmp_path)[1], bundle_id="other")
    (models / "other" / "model.onnx").write_bytes(b"damaged")
    good, bad = commands.list_bundles(models, tmp_path / "cache")
    assert (good.ok, good.id, good.modality, good.graphs) == (True, "made-up", "chest-xray", ("net (int8)",))
    assert good.size_bytes > 1000
    assert not good.made_for_this_cpu
    assert not bad.ok
    assert "changed or damaged" in bad.problem
    commands.build(models, tmp_path / "cache", "cpu", progress=lambda _: None)
    assert commands.list_bundles(models, tmp_path / "cache")[0].made_for_this_cpu


def test_building_makes_the_cpus_form_once_and_tells_each_step(models: Path, tmp_path: Path) -> None:
    told: list[str] = []
    (first,) = commands.build(models, tmp_path / "cache", "cpu", progress=lambda step: told.append(step.graph))
    assert (first.ok, first.kind, told) == (True, "cpu", ["net"])
    form = next((tmp_path / "cache").rglob("model.ort"))
    written = form.stat().st_mtime_ns
    assert commands.build(models, tmp_path / "cache", "cpu")[0].ok
    assert form.stat().st_mtime_ns == written


def test_verifying_checks_times_and_reports_with_the_facts_of_the_box(models: Path, tmp_path: Path) -> None:
    (one,) = commands.verify(models, tmp_path / "cache", "cpu", tmp_path / "report.json", runs=20)
    assert one.ok
    assert one.engine is not None
    assert (one.engine.golden, one.runs) == ("passed", 20)
    assert 0 < one.p50_ms <= one.p95_ms <= one.p99_ms
    assert one.worst["logits"] < 0.3
    report = msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=Report)
    assert report.ok
    assert report.graphs == (one,)
    assert report.box["cpu"]


def test_verifying_an_engine_that_is_not_here_fails_naming_what_is_missing(models: Path, tmp_path: Path) -> None:
    for engine, missing in (("tensorrt", "NVIDIA driver|TensorRT"), ("cuda", "CUDAExecutionProvider")):
        (one,) = commands.verify(models, tmp_path / "cache", engine, tmp_path / "report.json", runs=5)
        assert not one.ok
        assert any(word in one.problem for word in missing.split("|"))
        assert not msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=Report).ok


def test_a_folder_without_bundles_does_not_verify(tmp_path: Path) -> None:
    (one,) = commands.verify(tmp_path, tmp_path / "cache")
    assert not one.ok
    assert "no bundle there" in one.problem


def test_an_evaluation_is_printed_in_people_and_its_progress_a_line_a_tenth(tmp_path: Path) -> None:
    rows = ["file,label,patient"]
    for number in range(12):
        made = sounds.heart(6.0, 4000, murmur="systolic" if number % 2 else "none", seed=number)[0]
        soundfile.write(tmp_path / f"{number}.wav", made, 4000)
        rows.append(f"{number}.wav,{'murmur' if number % 2 else 'none'},p{number}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    command = ["models", "evaluate", "heart-sound", str(tmp_path / "labels.csv"), "--positive", "murmur"]
    done = CliRunner().invoke(app, [*command, "--cache", str(tmp_path / "cache")])
    assert done.exit_code == 0, done.output
    assert "abnormal, by file: 6 positive, 6 negative, 12 patients" in done.stdout
    assert re.search(r"of 1,000 of whom 50 are ill: \d+ missed, \d+ false alarms", done.stdout)
    assert "{" not in done.stdout
    assert 10 <= done.stderr.count("of 12 files read\n") <= 11
    assert "\r" not in done.stderr
