"""A network from elsewhere becomes a bundle that the box reads with; what is missing or wrong is refused with its cause."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from pydicom.data import get_testdata_file

from appliance.inference.bundle import BundleError, load
from appliance.inference.catalogue import Catalogue
from appliance.reading.reader import Reader
from appliance.records import Modality, Triage
from tests.densenet import densenet121
from tests.networks import network
from tools.train import import_graph
from tools.train.import_graph import NetworkError
from tools.train.import_onnx import WARNING, build
from tools.train.seal import seal

EXAMPLE = Path(__file__).parents[2] / "tools" / "train" / "examples" / "tuberculosis.toml"
FILM = Path(str(get_testdata_file("RG1_UNCR.dcm")))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "densenet121.onnx"
    onnx.save(densenet121(growth=2), path)
    return path


@pytest.fixture(scope="module")
def made(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models") / "tuberculosis"
    build(exported, EXAMPLE, root)
    return root


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "models" / "tuberculosis"))


def opened(root: Path, tmp_path: Path) -> Catalogue:
    catalogue = Catalogue(root.parent, tmp_path / "cache", engine="cpu")
    catalogue.open()
    return catalogue


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_a_densenet121_is_served_after_its_golden_check_and_reads_a_chest_film(bundle: Path, tmp_path: Path) -> None:
    catalogue = opened(bundle, tmp_path)
    assert catalogue.problems == []
    reading = Reader(catalogue).read(FILM, age_years=40)
    assert (reading.status, reading.bundle, reading.engine.golden) == ("read", "tuberculosis", "passed")
    (finding,) = reading.findings
    assert finding.id == "tuberculosis"
    assert 0.0 < finding.probability < 1.0
    assert reading.overlay_shape == (7, 7)
    child = Reader(catalogue).read(FILM, age_years=9)
    assert (child.status, child.refusal.code) == ("not_read", "age-outside")


def test_it_claims_nothing(bundle: Path, tmp_path: Path) -> None:
    described = load(bundle).description
    assert "not validated" in described.title
    assert all(finding.experimental for finding in described.findings)
    assert "**Not validated**" in (bundle / "card.md").read_text()
    assert '"status": "not validated"' in (bundle / "metrics.json").read_text()
    text = (bundle / "bundle.toml").read_text()
    (bundle / "bundle.toml").write_text(re.sub("threshold = 0.5", "threshold = 0.0001", text))
    positive = Reader(opened(bundle, tmp_path)).read(FILM, age_years=40)
    assert positive.advice.startswith(WARNING)
    assert described.advice_negative.startswith(WARNING)
    (finding,) = positive.findings
    assert (finding.positive, finding.sensitivity, finding.specificity) == (True, None, None)
    assert positive.triage is Triage.URGENT


def test_the_graph_says_what_the_network_said_and_its_map_what_the_score_is_the_mean_of(exported: Path) -> None:
    adapted = import_graph.adapt(exported, "tb", scale=[2048.0], shift=[-1024.0])
    image = np.random.default_rng(0).random((2, 1, 224, 224), dtype=np.float32)
    before = onnxruntime.InferenceSession(exported).run(None, {"input": image * 2048 - 1024})[0]
    scores, maps = onnxruntime.InferenceSession(adapted.model.SerializeToString()).run(None, {"image": image})
    assert scores == pytest.approx(before, abs=1e-3)
    assert maps.shape == (2, 18, 7, 7)
    assert maps.mean(axis=(2, 3)) == pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[[findings.operating_points]]", "[[findings.other]]", "has no [[findings.operating_points]]"),
        ("[[findings.wording]]", "[[findings.other]]", "has no [[findings.wording]]"),
        ("index = 0", "index = 18", "the network has 18 scores"),
        ("size = 224", "size = 320", "set preprocess.parameters.size to the network's side"),
        ('licence = "none"', 'licence = ""', "each source of the weights with its licence"),
        (
            'licence = "none yet: say under which licence the weights may be used, and for whom"',
            'licence = " "',
            "licence",
        ),
        ('output = ""', 'output = "probabilities"', "name the one with the scores"),
        ('modality = "chest-xray"', 'modality = "knee"', "knee"),
        ("scale = [2048.0]", "scale = [1.0, 2.0, 3.0]", "3 numbers for 1 channels"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_refused_and_leaves_nothing(
    exported: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    words = changed(Path(shutil.copy(EXAMPLE, tmp_path / "words.toml")), old, new)
    with pytest.raises(NetworkError, match=re.escape(said)):
        build(exported, words, tmp_path / "models" / "tuberculosis")
    assert not (tmp_path / "models" / "tuberculosis").exists()


def test_a_network_of_another_kind_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    onnx.save(densenet121(growth=1, batch=1), path)
    with pytest.raises(NetworkError, match="export it free"):
        import_graph.adapt(path, "tb")
    old = densenet121(growth=1)
    del old.opset_import[:]
    old.opset_import.append(helper.make_opsetid("", 9))
    onnx.save(old, path)
    with pytest.raises(NetworkError, match="opset_version=17"):
        import_graph.adapt(path, "tb")
    path.write_bytes(b"no network")
    with pytest.raises(NetworkError, match="can't be read as ONNX"):
        import_graph.adapt(path, "tb")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('map = ["tuberculosis-map", 0]', 'map = ["heat", 0]', "names output 'heat', which no graph offers"),
        ('"tuberculosis.onnx" = "', '"tuberculosis.onnx" = "0', "install the bundle again"),
        ('output = "tuberculosis-scores"', 'output = "logits"', "which no graph offers"),
    ],
)
def test_a_bundle_edited_wrongly_is_not_served_and_the_problem_names_the_field(
    bundle: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    changed(bundle / "bundle.toml", old, new)
    catalogue = opened(bundle, tmp_path)
    assert catalogue.for_modality(Modality.CHEST_XRAY) is None
    assert any(said in problem for problem in catalogue.problems), catalogue.problems


def test_points_taken_out_altogether_are_refused(bundle: Path, tmp_path: Path) -> None:
    text = (bundle / "bundle.toml").read_text()
    without = re.sub(r"\[\[findings\.operating_points\]\]\n(?:[a-z].*\n)*", "", text)
    assert without != text
    (bundle / "bundle.toml").write_text(without)
    assert any("missing required field `operating_points`" in problem for problem in opened(bundle, tmp_path).problems)
    old = '[[findings]]\nid = "tuberculosis"\n'
    changed(bundle / "bundle.toml", old, f"{old}operating_points = []\n")
    said = "finding 'tuberculosis' needs wording, scores and operating_points"
    problems = opened(bundle, tmp_path).problems
    assert any(said in problem for problem in problems), problems


def test_beside_another_bundle_both_answer_and_the_new_one_only_at_its_ages(
    made: Path, exported: Path, tmp_path: Path
) -> None:
    host = Path(shutil.copytree(made, tmp_path / "host"))
    for _ in ("accepts", "finding"):
        changed(host / "bundle.toml", "age_years = [15.0, 150.0]", "age_years = [1.0, 150.0]")
    small = tmp_path / "small.onnx"
    onnx.save(network("resnet", pixels=224), small)
    words = Path(shutil.copy(EXAMPLE, tmp_path / "words.toml"))
    for old, new in (
        ('name = "tuberculosis"', 'name = "second"'),
        ('id = "tuberculosis"', 'id = "chest-xray"'),
        ('id = "tuberculosis"', 'id = "scar"'),
    ):
        changed(words, old, new)
    joined = build(small, words, tmp_path / "models" / "chest-xray", beside=host)
    assert [graph.name for graph in joined.description.graphs] == ["tuberculosis", "second"]
    reader = Reader(opened(joined.root, tmp_path))
    assert [one.id for one in reader.read(FILM, age_years=40).findings] == ["tuberculosis", "scar"]
    child = reader.read(FILM, age_years=9)
    assert [one.id for one in child.findings] == ["tuberculosis"]
    with pytest.raises(NetworkError, match="modality and preprocess differ"):
        build(small, changed(words, "low = 0.0", "low = 1.0"), tmp_path / "other", beside=host)


def test_sealing_renews_the_hashes_after_an_edit_and_nothing_else(bundle: Path) -> None:
    before = (bundle / "bundle.toml").read_text()
    (bundle / "card.md").write_text("# Validated in Kisumu on 400 films\n")
    with pytest.raises(BundleError):
        load(bundle)
    seal(bundle)
    after = (bundle / "bundle.toml").read_text()
    assert [line for line in after.splitlines() if line not in before.splitlines()] == [
        line for line in after.splitlines() if "card.md" in line
    ]
    changed(bundle / "bundle.toml", "threshold = 0.5", "threshold = 5")
    with pytest.raises(BundleError):
        seal(bundle)
