"""Claims about reading: who is refused and why, which operating point and words count, how soon a human should look."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from appliance.inference.bundle import Accepts, Gate, OperatingPoint, RefusalText, Score
from appliance.reading import findings, metrics
from appliance.reading.quality import words_for
from appliance.reading.reader import Reader
from appliance.reading.requests import Known
from appliance.records import ADVICE_NOT_DIAGNOSIS, Modality, Triage
from tests.simulated_models import CHEST, PNEUMONIA, SimulatedModels, SimulatedServed, chest, dicom, film, written


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def read(models: SimulatedModels, source: bytes | Path | None = None, **known):
    return Reader(models).read(written(dicom(film(), **DISPLAY)) if source is None else source, **known)


DISPLAY = {"BitsStored": 12, "HighBit": 11, "PatientAge": "040Y"}


def test_a_chest_film_is_read_with_words_code_map_and_engine():
    reading = read(chest((logit(0.9), 0, 5)), capture_id="c" * 32)
    assert (reading.status, reading.modality, reading.capture_id) == ("read", Modality.CHEST_XRAY, "c" * 32)
    (finding,) = reading.findings
    assert (finding.id, finding.positive, finding.threshold, finding.code.value) == ("pneumonia", True, 0.6, "RID28530")
    assert finding.probability == pytest.approx(0.9)
    assert (reading.bundle, reading.bundle_version, reading.engine.provider) == ("chest-xray", "1.2.3", "None")
    assert reading.overlay_shape == (7, 7)
    map_ = np.frombuffer(reading.overlay, np.uint8).reshape(7, 7)
    assert map_[2, 3] == 255
    assert map_[6, 6] == 0
    assert reading.advice.endswith(ADVICE_NOT_DIAGNOSIS)
    assert reading.milliseconds > 0


@pytest.mark.parametrize(
    ("age", "label", "threshold", "positive"),
    [(4, "Pneumonia pattern", 0.3, True), (14.99, "Pneumonia pattern", 0.3, True), (15, "Lung opacity", 0.6, False)],
)
def test_words_and_operating_point_are_those_of_the_age(age, label, threshold, positive):
    (finding,) = read(chest((logit(0.4), 0, 5)), age_years=age).findings
    assert (finding.label, finding.threshold, finding.positive) == (label, threshold, positive)


def test_an_unknown_age_is_read_as_an_adult_and_said():
    reading = read(chest((logit(0.4), 0, 5)), written(dicom(film())))
    assert reading.findings[0].label == "Lung opacity"
    assert any("age" in warning for warning in reading.warnings)
    assert read(chest()).warnings == ()


def test_the_given_age_goes_before_that_of_the_file():
    assert read(chest(), age_years=4).findings[0].label == "Pneumonia pattern"


@pytest.mark.parametrize(
    ("elements", "code", "word"),
    [
        ({"BodyPartExamined": "HAND"}, "not-chest", "HAND"),
        ({"ViewPosition": "LL"}, "view", "LL"),
        ({"PatientAge": "006M"}, "age-outside", "6 months"),
        ({"PatientAge": "120Y"}, "age-outside", "120 years"),
        ({"Modality": "MR"}, "other-modality", "MR"),
        ({"Modality": "US"}, "no-model", "lung-ultrasound"),
        ({"PixelData": None}, "no-pixels", ""),
    ],
)
def test_what_the_model_was_not_made_for_is_not_read_and_says_why(elements, code, word):
    models = chest((logit(0.99), 0, 5))
    reading = read(models, written(dicom(film(), **{**DISPLAY, **elements})))
    assert (reading.status, reading.refusal.code, reading.findings) == ("not_read", code, ())
    assert word in reading.refusal.reason
    assert reading.refusal.advice in reading.advice
    assert not models.served[Modality.CHEST_XRAY].seen


@pytest.mark.parametrize("words", ["CHEST", "CHEST PA", "PORT CHEST", "Thorax", ""])
def test_a_chest_by_any_of_its_names_is_read(words):
    assert read(chest(), written(dicom(film(), **{**DISPLAY, "BodyPartExamined": words}))).status == "read"


def test_a_body_part_in_another_language_is_left_to_the_gate_and_said():
    reading = read(chest(), written(dicom(film(), **{**DISPLAY, "BodyPartExamined": "POUMON"})))
    assert reading.status == "read"
    assert "POUMON" in reading.warnings[0]


def test_the_extremity_of_pydicoms_data_is_refused_as_no_chest():
    reading = read(chest(), Path(get_testdata_file("RG3_UNCR.dcm")))
    assert reading.refusal.code == "not-chest"
    assert read(chest(), Path(get_testdata_file("RG1_UNCR.dcm"))).status == "read"


def test_the_gate_refuses_in_the_bundles_words_and_hides_the_score():
    reading = read(chest((logit(0.99), 0, -1)))
    assert (reading.refusal.code, reading.refusal.reason, reading.findings) == (
        "not-this-kind",
        "No frontal chest X-ray.",
        (),
    )
    assert reading.engine is not None


def test_a_quality_rule_refuses_by_the_side_on_which_it_is_broken():
    flat = written(dicom(np.full((60, 50), 7, np.uint16), **DISPLAY))
    reading = read(chest(), flat)
    assert reading.refusal.code == "contrast-low"
    assert reading.refusal.reason.startswith("The picture is flat (contrast")
    high = msgspec.structs.replace(CHEST.gate, rules={"contrast": (-1.0, 0.01)})
    assert read(chest(gate=high)).refusal.code == "quality"


def test_a_warning_limit_warns_and_does_not_refuse():
    gate = msgspec.structs.replace(CHEST.gate, rules={}, warn={"side": (500.0, 9999.0)})
    refusals = {**CHEST.refusals, "side-low": RefusalText(reason="The picture is small.", advice="")}
    reading = read(chest(gate=gate, refusals=refusals))
    assert reading.status == "read"
    assert reading.warnings == ("The picture is small.",)


def test_an_index_that_is_no_number_breaks_its_rule():
    from appliance.reading.quality import judge

    assert judge({"contrast": math.nan}, CHEST).refusal.code == "contrast-low"
    assert judge({}, CHEST).refusal is None


def test_a_model_that_gives_no_number_gives_no_answer():
    assert read(chest((math.nan, 0, 5))).refusal.code == "no-answer"
    assert read(chest((1.0, 0, math.nan))).refusal.code == "not-this-kind"


def test_a_picture_of_nothing_named_asks_what_it_is(tmp_path):
    import cv2

    png = cv2.imencode(".png", film())[1].tobytes()
    assert read(chest(), png).refusal.code == "which-modality"
    assert read(chest(), png, modality=Modality.CHEST_XRAY).status == "read"
    assert read(chest(), png, modality=Modality.HEART_SOUND).refusal.code == "not-a-sound"


def test_a_bundle_whose_step_is_unknown_here_reads_nothing():
    reading = read(chest(preprocess=msgspec.structs.replace(CHEST.preprocess, kind="chest-xray/9")))
    assert reading.refusal.code == "no-model"
    assert "chest-xray/9" in reading.refusal.reason


def test_an_age_that_is_required_and_unknown_is_asked_for():
    accepts = msgspec.structs.replace(CHEST.accepts, age_required=True)
    assert read(chest(accepts=accepts), written(dicom(film()))).refusal.code == "age-needed"


@pytest.mark.parametrize(
    ("probability", "level", "doubt"),
    [
        (0.1, Triage.ROUTINE, False),
        (0.55, Triage.ROUTINE, True),
        (0.65, Triage.URGENT, True),
        (0.9, Triage.URGENT, False),
        (0.985, Triage.CRITICAL, False),
    ],
)
def test_triage_rises_with_the_probability_and_doubt_is_said(probability, level, doubt):
    reading = read(chest((logit(probability), 0, 5)))
    assert reading.triage is level
    assert ("uncertain" in reading.advice) == doubt
    assert (reading.findings[0].confidence == "low") == doubt
    assert ("Shows an opacity." in reading.advice) == (probability >= 0.6)
    assert ("No sign of pneumonia." in reading.advice) == (probability < 0.6)


def test_an_experimental_finding_is_never_critical():
    spec = msgspec.structs.replace(PNEUMONIA, experimental=True, triage_positive=Triage.CRITICAL)
    assert read(chest((logit(0.999), 0, 5), findings=[spec])).triage is Triage.URGENT
    assert read(chest((logit(0.55), 0, 5), findings=[spec])).triage is Triage.ROUTINE


@pytest.mark.parametrize(
    ("probability", "word"), [(0.62, "low"), (0.7, "low"), (0.75, "moderate"), (0.95, "high"), (0.02, "high")]
)
def test_confidence_says_how_far_from_the_operating_point(probability, word):
    assert read(chest((logit(probability), 0, 5))).findings[0].confidence == word


def outputs(*logits: float) -> dict:
    return {"net": {"logits": np.float32([[value, 0, 5] for value in logits])}}


def test_frames_become_one_logit_as_the_bundle_says():
    def probability(aggregate: str) -> float:
        spec = msgspec.structs.replace(PNEUMONIA, aggregate=aggregate, bias=0.5, temperature=2.0)
        bundle = SimulatedServed(msgspec.structs.replace(CHEST, findings=[spec])).bundle
        return findings.answers(bundle, outputs(-1, 3, 1), 40)[0].finding.probability

    assert logit(probability("mean-logit")) == pytest.approx((1 + 0.5) / 2)
    assert logit(probability("max-logit")) == pytest.approx((3 + 0.5) / 2)


def test_a_tree_ensembles_probability_adds_to_every_windows_logit():
    scores = [
        Score(graph="net", output="logits", weight=0.7),
        Score(graph="trees", output="probability", index=1, transform="logit"),
    ]
    both = {**outputs(1, 2), "trees": {"probability": np.float32([[0.2, 0.8]])}}
    np.testing.assert_allclose(findings.logits(scores, both), [0.7 + logit(0.8), 1.4 + logit(0.8)], rtol=1e-5)


def test_terms_of_different_windows_are_averaged_each_by_itself():
    scores = [Score(graph="net", output="logits"), Score(graph="other", output="logits")]
    both = {**outputs(1, 2, 3), "other": {"logits": np.float32([[10], [20]])}}
    np.testing.assert_allclose(findings.logits(scores, both), [17.0])


def test_the_first_operating_point_that_matches_the_age_counts():
    points = [
        OperatingPoint(threshold=0.1, sensitivity=1, specificity=0, chosen_for="babies", age_years=(0, 2)),
        OperatingPoint(threshold=0.2, sensitivity=1, specificity=0, chosen_for="children", age_years=(1, 10)),
    ]
    assert [findings.for_age(points, age).threshold for age in (0, 1.5, 2, 9.9, 50)] == [0.1, 0.1, 0.2, 0.2, 0.2]


def test_the_map_of_a_negative_film_is_fainter_than_that_of_a_positive_one():
    peak = {p: max(read(chest((logit(p), 0, 5))).overlay) for p in (0.9, 0.3, 0.06)}
    assert peak[0.9] == 255
    assert peak[0.3] == pytest.approx(127, abs=2)
    assert peak[0.06] == pytest.approx(25, abs=2)


def test_the_map_is_of_the_frame_that_shows_most_and_of_the_strongest_finding():
    other = msgspec.structs.replace(
        PNEUMONIA, id="other", scores=[Score(graph="net", output="logits", index=1)], aggregate="max-logit"
    )
    bundle = SimulatedServed(msgspec.structs.replace(CHEST, findings=[PNEUMONIA, other])).bundle
    maps = np.zeros((3, 1, 2, 2), np.float32)
    maps[1, 0, 0, 1] = 2
    given = {"net": {"logits": np.float32([[0, -1, 5], [0, 4, 5], [0, 1, 5]]), "map": maps}}
    found = findings.answers(bundle, given, 40)
    shown = findings.overlay(found, given)
    assert (shown.finding, shown.row, shown.data) == ("other", 1, bytes([0, 255, 0, 0]))


def test_a_refusal_without_words_of_its_own_still_has_some():
    refusal = words_for("something-new", {})
    assert refusal.code == "something-new"
    assert refusal.reason
    assert refusal.advice


def test_two_looks_may_run_while_another_answers():
    from concurrent.futures import ThreadPoolExecutor

    reader, data = Reader(chest()), written(dicom(film(), **DISPLAY))
    with ThreadPoolExecutor(4) as pool:
        looked = list(pool.map(lambda _: reader.look(data, Known()), range(20)))
    assert {reader.answer(one).status for one in looked} == {"read"}


def test_accepting_nothing_in_particular_accepts_all():
    assert read(chest(accepts=Accepts(), gate=Gate()), written(dicom(film(), BodyPartExamined="HAND"))).status == "read"


def test_metrics_and_findings_agree_on_what_positive_means():
    (finding,) = read(chest((logit(0.6), 0, 5))).findings
    assert metrics.rates_at([1], [finding.probability], finding.probability).sensitivity == 1


def test_a_finding_is_answered_only_at_its_ages_and_a_bundle_with_none_left_does_not_answer():
    second = msgspec.structs.replace(PNEUMONIA, id="second", age_years=(15.0, 150.0))
    both = chest((logit(0.9), 0, 5), findings=[PNEUMONIA, second])
    assert [one.id for one in read(both, age_years=40).findings] == ["pneumonia", "second"]
    assert [one.id for one in read(both, age_years=14.9).findings] == ["pneumonia"]
    alone = read(chest((logit(0.9), 0, 5), findings=[second]), age_years=9)
    assert (alone.status, alone.refusal.code, alone.findings) == ("not_read", "age-outside", ())


def test_an_operating_point_that_nobody_measured_shows_no_figure():
    point = OperatingPoint(threshold=0.6, sensitivity=0.0, specificity=0.0, chosen_for="not measured")
    spec = msgspec.structs.replace(PNEUMONIA, operating_points=[point])
    (finding,) = read(chest((logit(0.9), 0, 5), findings=[spec])).findings
    assert (finding.positive, finding.sensitivity, finding.specificity) == (True, None, None)
