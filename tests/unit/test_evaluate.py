"""Claims about local validation: labels mean what they say, refusals are counted and never scored, clips are one case."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from appliance.reading import metrics
from appliance.reading.evaluate import evaluate
from appliance.reading.evaluate_plots import plot
from appliance.reading.labels import LabelsError, choose_findings, read_labels, truths
from tests.simulated_models import CHEST, SimulatedServed, film


def csv(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def rows_of(folder: Path, text: str, **how):
    return read_labels(csv(folder, text), **how)


def test_labels_that_read_like_the_finding_are_positive_unless_told_otherwise(tmp_path):
    rows = rows_of(tmp_path, "file,label\na.png,Pneumonia\nb.png,normal\nc.png,\nd.png,bacterial\n")
    assert truths(rows, "pneumonia", []) == [True, False, None, False]
    assert truths(rows, "pneumonia", ["bacterial", "viral"]) == [False, False, None, True]


def test_a_column_named_like_the_finding_goes_before_the_label(tmp_path):
    rows = rows_of(tmp_path, "file,label,blines\na.png,covid,1\nb.png,covid,0\nc.png,covid,\n")
    assert truths(rows, "b-lines", ["covid"]) == [True, False, None]


def test_patients_of_two_sources_are_never_taken_for_one_and_blocks_stand_in(tmp_path):
    rows = rows_of(tmp_path, "file,label,patient,block,source\na,x,1,,east\nb,x,1,,west\nc,x,,k7,west\nd,x,,,west\n")
    assert len({row.patient for row in rows}) == 4
    assert rows[2].patient == "west\0k7"


def test_ages_are_read_and_default_to_the_one_given(tmp_path):
    rows = rows_of(tmp_path, "file,label,age\na,x,3.5\nb,x,\n", age=40)
    assert [row.known.age_years for row in rows] == [3.5, 40]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("label\nx\n", "no column 'file'"),
        ("file,label\n", "no rows"),
        ("file,label\n,x\n", "line 2"),
        ("file,label,age\na,x,old\n", "line 2"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_with_the_line(tmp_path, text, word):
    with pytest.raises(LabelsError, match=word):
        rows_of(tmp_path, text)


def test_a_missing_or_binary_label_file_is_named(tmp_path):
    with pytest.raises(LabelsError, match="gone"):
        read_labels(tmp_path / "gone.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(LabelsError, match="UTF-8"):
        read_labels(tmp_path / "binary.csv")


def test_a_column_that_says_neither_yes_nor_no_is_refused(tmp_path):
    rows = rows_of(tmp_path, "file,label,pneumonia\na,x,maybe\n")
    with pytest.raises(LabelsError, match="maybe"):
        truths(rows, "pneumonia", [])


def test_which_finding_is_meant_must_be_said_when_there_are_several(tmp_path):
    import msgspec

    two = msgspec.structs.replace(
        CHEST, findings=[CHEST.findings[0], msgspec.structs.replace(CHEST.findings[0], id="other")]
    )
    rows = rows_of(tmp_path, "file,label\na,x\n")
    assert choose_findings(CHEST, rows, None, []) == ["pneumonia"]
    assert choose_findings(two, rows, "other", []) == ["other"]
    with pytest.raises(LabelsError, match=r"--finding pneumonia\|other"):
        choose_findings(two, rows, None, ["x"])
    with pytest.raises(LabelsError, match="no finding 'nothing'"):
        choose_findings(two, rows, "nothing", [])
    named = rows_of(tmp_path, "file,label,other\na,x,1\n")
    assert choose_findings(two, named, None, []) == ["other"]


def brightness(graph, inputs):
    """A network that finds pneumonia in pictures of a bright left half and takes black borders for something else."""
    image = inputs["image"]
    left = image[:, 0, :, : image.shape[-1] // 2].mean(axis=(1, 2)) - 0.5
    logits = np.stack([20 * left, 0 * left, 0 * left + 5], axis=1).astype(np.float32)
    return {"logits": logits, "map": np.ones((len(image), 1, 7, 7), np.float32)}


@pytest.fixture
def clinic(tmp_path):
    random = np.random.default_rng(0)
    lines = ["file,label,patient,source,age"]
    for number in range(40):
        ill = number % 2
        pixels = film(seed=number).astype(float)
        pixels[:, :25] += ill * 900 + random.normal(0, 500)
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels.clip(0, 65535).astype(np.uint16))
        lines.append(
            f"{number}.png,{'ill' if ill else 'well'},p{number // 2 + 20 * ill},{'east' if number < 30 else 'west'},40"
        )
    cv2.imwrite(str(tmp_path / "flat.png"), np.full((50, 50), 7, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    lines += ["flat.png,ill,x,west,40", "broken.png,well,y,west,40", "gone.png,well,z,west,40"]
    return read_labels(csv(tmp_path, "\n".join(lines) + "\n"))


def test_an_evaluation_scores_what_was_read_and_counts_what_was_refused_per_source(clinic):
    said = {"pneumonia": truths(clinic, "pneumonia", ["ill"])}
    seen = []
    result, (cases,) = evaluate(
        SimulatedServed(CHEST, brightness), clinic, said, on_progress=lambda *at: seen.append(at)
    )
    assert (result.files, result.read) == (43, 40)
    assert {(one.source, one.code, one.count) for one in result.refused} == {
        ("west", "contrast-low", 1),
        ("west", "truncated", 1),
        ("west", "unreadable", 1),
    }
    (figures,) = result.findings
    assert (figures.positives, figures.negatives, figures.patients) == (20, 20, 40)
    assert figures.auroc.value == metrics.auroc(cases.labels, cases.probabilities)
    assert 0.6 < figures.auroc.low <= figures.auroc.value <= figures.auroc.high <= 1
    assert figures.operating_point.threshold == 0.6
    rates = metrics.rates_at(cases.labels, cases.probabilities, 0.6)
    assert figures.operating_point.sensitivity.value == pytest.approx(rates.sensitivity)
    assert figures.operating_point.specificity.value == pytest.approx(rates.specificity)
    assert figures.suggested.sensitivity.value >= 0.9
    assert [one.source for one in figures.by_source] == ["east", "west"]
    assert sum(one.positives for one in figures.by_source) == 20
    assert seen[-1] == (43, 43)
    assert any("Only 20 positives" in note for note in figures.notes)


def test_thresholds_by_age_are_honoured_case_by_case(clinic):
    import msgspec

    mixed = [
        msgspec.structs.replace(row, known=msgspec.structs.replace(row.known, age_years=5.0 if i % 3 else 40.0))
        for i, row in enumerate(clinic)
    ]
    said = {"pneumonia": truths(mixed, "pneumonia", ["ill"])}
    result, (cases,) = evaluate(SimulatedServed(CHEST, brightness), mixed, said)
    assert result.findings[0].operating_point.threshold is None
    assert cases.thresholds == {0.3, 0.6}
    ages = [row.known.age_years for row in mixed[:40]]
    expected = [p >= (0.3 if age == 5 else 0.6) for p, age in zip(cases.probabilities, ages, strict=True)]
    np.testing.assert_array_equal(cases.called, expected)


def test_frames_of_a_clip_are_one_case_with_the_mean_of_their_logits(tmp_path):
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), film(seed=number))
    rows = read_labels(
        csv(
            tmp_path,
            "file,label,patient,clip\n0.png,ill,a,one\n1.png,ill,a,one\n2.png,well,b,two\n3.png,well,b,three\n",
        )
    )
    logits = iter([1.0, 3.0, -2.0, -1.0])

    def scripted(graph, inputs):
        return {"logits": np.float32([[next(logits), 0, 5]]), "map": np.ones((1, 1, 7, 7), np.float32)}

    result, (cases,) = evaluate(
        SimulatedServed(CHEST, scripted), rows, {"pneumonia": truths(rows, "pneumonia", ["ill"])}
    )
    assert result.findings[0].unit == "clip"
    assert cases.probabilities == pytest.approx([1 / (1 + math.exp(-z)) for z in (2.0, -2.0, -1.0)])
    assert result.findings[0].patients == 2


def test_the_plot_is_a_picture_of_both_curves(clinic, tmp_path):
    pytest.importorskip("matplotlib")
    _, (cases,) = evaluate(
        SimulatedServed(CHEST, brightness), clinic, {"pneumonia": truths(clinic, "pneumonia", ["ill"])}
    )
    plot(cases, tmp_path / "plots" / "roc.png")
    image = cv2.imread(str(tmp_path / "plots" / "roc.png"))
    assert image.shape[0] > 400
    assert image.std() > 10
