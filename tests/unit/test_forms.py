"""The CPU's form is made once, found again, and never trusted blindly."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.inference import bundle as bundles
from appliance.inference import forms
from appliance.inference.cache import Cache, digest
from appliance.inference.catalogue import Catalogue
from tests.networks import network, quantised, write_bundle


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models" / "made-up", quantised("mobilenet", tmp_path)[1])
    return tmp_path / "models"


def artefact(catalogue: Catalogue) -> str:
    return catalogue.bundles["made-up"].engine_record().artefact


def opened(models: Path) -> Catalogue:
    catalogue = Catalogue(models, models.parent / "cache", engine="cpu")
    catalogue.open()
    return catalogue


def test_the_form_is_made_at_the_first_start_and_found_at_the_next_without_importing_onnx(models: Path) -> None:
    first = artefact(opened(models))
    script = f"""
import sys
from pathlib import Path
from appliance.inference.catalogue import Catalogue
assert "onnxruntime" not in sys.modules
catalogue = Catalogue(Path({str(models)!r}), Path({str(models.parent / "cache")!r}), engine="cpu")
catalogue.open()
assert "onnx" not in sys.modules
print(catalogue.bundles["made-up"].engine_record().artefact, catalogue.problems)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [first, "[]"]


def test_a_damaged_form_is_removed_and_made_again(models: Path) -> None:
    opened(models).close()
    (form,) = (models.parent / "cache").rglob("model.ort")
    data = bytearray(form.read_bytes())
    data[len(data) // 2] ^= 0xFF
    form.write_bytes(data)
    before = digest(form)
    catalogue = opened(models)
    assert digest(form) == artefact(catalogue) != before
    assert catalogue.problems == []


def test_a_planted_wrong_form_is_refused_and_a_good_one_serves(models: Path, tmp_path: Path) -> None:
    opened(models).close()
    cache = Cache(models.parent / "cache" / "artefacts")
    bundle = bundles.load(models / "made-up")
    facts = forms.facts(bundle, bundle.description.graphs[0])
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(network("mobilenet", seed=5).SerializeToString())
    planted = cache.put(facts, "model.ort", lambda target: forms.optimise(wrong, target))
    catalogue = opened(models)
    assert artefact(catalogue) != planted.sha256
    assert any("derived for this CPU: refused by the golden check" in problem for problem in catalogue.problems)
    assert opened(models).problems == []


def test_a_cache_that_cannot_be_written_costs_speed_and_not_the_reading(models: Path) -> None:
    (models.parent / "cache").mkdir()
    (models.parent / "cache" / "artefacts").write_text("a file where the folder should be")
    catalogue = opened(models)
    shipped = catalogue.bundles["made-up"].bundle.description.files["model.onnx"]
    assert artefact(catalogue) == shipped
    assert any("can't be written" in problem for problem in catalogue.problems)


def test_another_runtime_or_processor_makes_another_form(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundles.load(models / "made-up")
    graph = bundle.description.graphs[0]
    cache = Cache(models.parent / "cache")
    before = forms.make(bundle, graph, cache)
    monkeypatch.setattr("appliance.inference.onnx.RUNTIME", "onnxruntime 99.0")
    assert cache.get(forms.facts(bundle, graph)) is None
    assert cache.get(before.facts) == before


def test_the_cache_drops_what_was_used_longest_ago_when_it_grows_beyond_its_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=3500)
    made = []
    for number in range(3):
        made.append(cache.put({"kind": "test", "n": str(number)}, "file", lambda path: path.write_bytes(bytes(900))))
        os.utime(made[-1].path.parent, (time.time() - 100 + number, time.time() - 100 + number))
    assert cache.get(made[0].facts) is not None
    cache.put({"kind": "test", "n": "3"}, "file", lambda path: path.write_bytes(bytes(900)))
    assert cache.get(made[0].facts) is not None
    assert cache.get(made[1].facts) is None
    assert cache.trim() <= 3500


def test_what_fails_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        cache.put({"kind": "test"}, "file", fail)
    assert list((tmp_path / "cache").iterdir()) == []
