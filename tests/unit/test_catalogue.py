"""The catalogue serves what passed its golden check, and says what did not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from appliance.inference.catalogue import Catalogue
from appliance.inference.engine import Engine, EngineError, EngineMissingError
from appliance.inference.onnx import load
from appliance.inference.trust import TrustedKeys
from appliance.records import Modality
from tests.networks import description, images, network, quantised, seal, write_bundle


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised("mobilenet", tmp_path_factory.mktemp("networks"))[1]


@pytest.fixture
def models(tmp_path: Path, shipped: Path) -> Path:
    write_bundle(tmp_path / "models" / "made-up", shipped)
    return tmp_path / "models"


def opened(models: Path, **how: object) -> Catalogue:
    catalogue = Catalogue(models, models.parent / "cache", **{"engine": "cpu", **how})  # type: ignore[arg-type]
    catalogue.open()
    return catalogue


def test_a_bundle_serves_after_its_golden_check_and_says_what_ran(models: Path) -> None:
    catalogue = opened(models)
    served = catalogue.for_modality(Modality.CHEST_XRAY)
    assert served is not None
    assert catalogue.problems == []
    record = served.engine_record()
    assert (record.golden, record.provider) == ("passed", "CPUExecutionProvider")
    assert record.engine.startswith("onnxruntime ")
    assert record.artefact
    assert served.golden["net"].cases == 2
    assert served.run("net", {"image": images(3)})["logits"].shape == (3, 3)
    assert catalogue.for_modality(Modality.HEART_SOUND) is None


def test_a_modality_that_was_not_opened_is_made_ready_at_first_use(models: Path) -> None:
    catalogue = Catalogue(models, models.parent / "cache", engine="cpu")
    catalogue.open([Modality.HEART_SOUND])
    assert catalogue.bundles == {}
    assert catalogue.for_modality(Modality.CHEST_XRAY) is not None


def test_the_newest_version_serves(models: Path, shipped: Path) -> None:
    write_bundle(models / "made-up-10", shipped, version="1.10.0")
    write_bundle(models / "made-up-9", shipped, version="1.9.0")
    assert opened(models).bundles["made-up"].bundle.version == "1.10.0"


def test_a_planted_wrong_network_is_refused_and_the_last_good_version_serves(models: Path, shipped: Path) -> None:
    opened(models).close()
    wrong = models / "made-up-2"
    write_bundle(wrong, shipped, version="2.0.0")
    other = network("mobilenet", seed=99)
    onnx.save(other, wrong / "model.onnx")
    seal(wrong, description("made-up", "2.0.0", {"net": "model.onnx"}))
    catalogue = opened(models)
    assert catalogue.bundles["made-up"].bundle.version == "1.0.0"
    assert any("refused by the golden check" in problem for problem in catalogue.problems)
    assert any("2.0.0 does not serve, the last good one (1.0.0) does" in problem for problem in catalogue.problems)


def test_a_damaged_bundle_is_replaced_by_the_copy_of_the_last_good_one(models: Path) -> None:
    opened(models).close()
    with (models / "made-up" / "model.onnx").open("r+b") as file:
        file.seek(200)
        file.write(b"\0\0\0\0")
    catalogue = opened(models)
    assert "made-up" in catalogue.bundles
    assert any("changed or damaged" in problem for problem in catalogue.problems)


def test_a_bundle_taken_away_on_purpose_does_not_come_back(models: Path) -> None:
    opened(models).close()
    shutil.rmtree(models / "made-up")
    catalogue = opened(models)
    assert catalogue.bundles == {}
    assert catalogue.problems


def test_a_bundle_without_a_golden_case_does_not_serve(models: Path) -> None:
    np.savez(models / "made-up" / "golden" / "golden.npz", nothing=np.zeros(1))
    seal(models / "made-up", description("made-up", "1.0.0", {"net": "model.onnx"}))
    catalogue = opened(models)
    assert catalogue.bundles == {}
    assert "no golden case" in catalogue.problems[0]


def test_a_provider_that_is_not_there_is_an_error_naming_it_and_never_a_quiet_cpu_run(models: Path) -> None:
    with pytest.raises(EngineMissingError, match=r"CUDAExecutionProvider.*pip install"):
        load(models / "made-up" / "model.onnx", provider="cuda")
    catalogue = opened(models, engine="cuda")
    assert catalogue.bundles == {}
    assert "CUDAExecutionProvider" in catalogue.problems[0]


def test_an_unknown_engine_is_refused_with_the_choices(models: Path) -> None:
    with pytest.raises(EngineError, match="auto, cpu, cuda"):
        Catalogue(models, models.parent / "cache", engine="gpu")


def test_only_bundles_signed_by_a_trusted_key_serve_when_keys_are_given(models: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from appliance.inference.signature import sign

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    assert opened(models, trust=TrustedKeys(configured=[public])).bundles == {}
    sign(models / "made-up", key.private_bytes_raw())
    assert "made-up" in opened(models, trust=TrustedKeys(configured=[public])).bundles
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    catalogue = opened(models, trust=TrustedKeys(configured=[stranger]))
    assert catalogue.bundles == {}
    assert "signed by no trusted key" in catalogue.problems[0]


def test_inputs_of_the_wrong_shape_are_an_engine_error_naming_what_was_given(shipped: Path) -> None:
    engine = load(shipped)
    assert isinstance(engine, Engine)
    with pytest.raises(EngineError, match=r"image float64\[1, 1, 32, 32\]"):
        engine.run({"image": np.zeros((1, 1, 32, 32))})
    with pytest.raises(EngineError, match="given"):
        engine.run({"picture": np.zeros((1, 1, 32, 32), np.float32)})
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"image": np.zeros((1, 1, 32, 32), np.float32)})


def test_a_file_that_is_no_model_is_an_engine_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineError, match="install the bundle again"):
        load(tmp_path / "model.onnx")


def test_a_running_catalogue_takes_up_a_new_version(models: Path, shipped: Path) -> None:
    catalogue = opened(models)
    assert not catalogue.refresh()
    write_bundle(models / "made-up-2", shipped, version="2.0.0")
    assert catalogue.refresh()
    assert catalogue.bundles["made-up"].bundle.version == "2.0.0"
    assert catalogue.building is None
