"""Claims about an encounter: who and when belongs to it, whose word counts, and that every sentence is in the catalogue."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from appliance.console.together import Taken, encounter, seconds_apart, together
from appliance.protocol.messages import ReviewMessage
from appliance.reading.assessment import RULES, assess
from appliance.records import Capture, Modality, Moment, Patient, Reading, Refusal, Triage
from tests.console_world import finding
from tests.contract.test_console_words import texts

AMINA = Patient(id="P1", name="Otieno^Amina", sex="F", age_years=4)
HOUR = 3600


def capture(hours: float, *, name: str = "", boot: str = "a", sure: float | None = 1.0, **rest) -> Capture:
    wall = f"2026-03-{1 + int(hours // 24):02}T{int(hours % 24):02}:00:00.000Z"
    moment = Moment(boot_id=boot, monotonic_ns=int(hours * HOUR * 1e9), wall=wall, uncertainty_s=sure)
    given = {"modality": Modality.CHEST_XRAY, "patient": AMINA, **rest}
    id_ = name or f"{boot}{hours}"
    return Capture(id=id_, sha256="0" * 64, size=1, media_type="image/png", source="test", received=moment, **given)


def taken(one: Capture, *findings, review: ReviewMessage | None = None, status: str = "read", **rest) -> Taken:
    reading = Reading(
        capture_id=one.id, modality=one.modality, status=status, triage=Triage.ROUTINE, advice="", findings=findings, **rest
    )  # fmt: skip
    return Taken(capture=one, reading=reading, review=review)


def review(one: Capture, decision: str, **rest) -> ReviewMessage:
    return ReviewMessage(id="r" * 32, capture_id=one.id, decision=decision, reviewer="x", reviewed_at="", **rest)


FILM = capture(1, name="film")
ECHO = capture(2, name="echo", modality=Modality.LUNG_ULTRASOUND)
OPACITY = finding("Pneumonia", 0.9, confidence="high")
NO_OPACITY = finding("Pneumonia", 0.1, confidence="high")
CONSOLIDATION = finding("Consolidation", 0.8, confidence="high")


def test_an_encounter_is_a_day_in_the_order_of_one_run_of_the_box_whatever_the_wall_clock_says():
    shown = capture(30, sure=None)
    others = [capture(5, sure=None), capture(6, sure=None), shown, capture(54, sure=None), capture(55, sure=None)]
    belong, undated = encounter(shown, others)
    assert [one.id for one in belong] == ["a6", "a30", "a54"]
    assert undated == 0


def test_over_a_restart_only_trusted_clocks_bring_captures_together_and_the_rest_is_counted():
    shown = capture(30)
    others = [capture(28, boot="b", sure=None), capture(29, boot="c"), shown, capture(31, boot="d", sure=25.0 * HOUR)]
    belong, undated = encounter(shown, others)
    assert [one.id for one in belong] == ["c29", "a30"]
    assert undated == 1
    assert seconds_apart(shown.received, msgspec.structs.replace(others[1].received, wall="soon")) is None


@pytest.mark.parametrize("other", [{"name": "Otieno^Juma"}, {"sex": "M"}])
def test_two_people_under_one_id_are_not_brought_together(other):
    stranger = capture(2, patient=msgspec.structs.replace(AMINA, **other))
    nameless = capture(3, patient=Patient(id="P1"))
    assert [one.id for one in encounter(FILM, [FILM, stranger, nameless])[0]] == ["film", "a3"]


def test_an_id_that_a_thousand_captures_carry_is_cut_to_the_nearest():
    many = [capture(hour / 100) for hour in range(1000)]
    belong, _ = encounter(many[500], many)
    assert len(belong) == 60
    assert many[500] in belong


def test_what_supports_and_what_contradicts_is_shown_with_its_capture():
    shown = together([taken(FILM, NO_OPACITY), taken(ECHO, CONSOLIDATION)])
    assert shown is not None
    (said,) = shown.statements
    assert said.words == "Findings agree in part with pneumonia."
    assert [(one.capture_id, one.label, one.present) for one in said.supports] == [("echo", "Consolidation", True)]
    assert [(one.capture_id, one.label, one.present) for one in said.contradicts] == [("film", "Pneumonia", False)]


def test_one_capture_alone_or_nothing_read_adds_nothing():
    refusal = Refusal(code="not-chest", reason="No.", advice="Take one.")
    refused = taken(ECHO, status="not_read", refusal=refusal)
    assert together([taken(FILM, OPACITY), Taken(capture=ECHO)]) is None
    assert together([refused, refused]) is None
    assert together([taken(FILM, OPACITY), refused]) is not None


def test_the_radiologist_s_word_goes_before_the_model_s():
    changed = together(
        [taken(FILM, NO_OPACITY, review=review(FILM, "modify", findings={"pneumonia": True})), taken(ECHO)]
    )
    assert changed is not None
    assert changed.statements[0].words == "Findings agree with pneumonia."
    assert changed.statements[0].supports[0].human
    rejected = together([taken(FILM, OPACITY, review=review(FILM, "reject")), taken(ECHO, CONSOLIDATION)])
    assert rejected is not None
    assert rejected.rejected == 1
    assert all(sign.capture_id == "echo" for said in rejected.statements for sign in said.supports)
    critical = together([taken(FILM, OPACITY, review=review(FILM, "accept", triage=Triage.CRITICAL)), taken(ECHO)])
    assert critical is not None
    assert critical.triage is Triage.CRITICAL


def test_every_sentence_that_the_rules_can_say_is_in_the_catalogue():
    known = set(texts())
    for rule in RULES:
        for agreement in ("with", "in part with"):
            assert f"Findings agree {agreement} {rule.statement}." in known
        assert rule.advice in known
    said = set()
    for labels, confidence in itertools.product(((), ("Fracture",), ("Pneumonia",)), ("low", "high")):
        found = [finding(label, 0.9, confidence=confidence) for label in labels] or [NO_OPACITY]
        said.add(assess([taken(FILM, *found).reading], 4).summary)
    assert said <= known, said - known
