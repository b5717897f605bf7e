"""The captures of one encounter together on one page: what their findings agree with, what is for it and what against.

What this module keeps true: it computes from records alone and asks nobody for the time. An encounter is what was taken of the
same patient within ``ENCOUNTER_S`` of the capture that is shown: by the monotonic clock within one run of the box, by wall time
only between moments of a trusted clock (promise 7); where neither can tell, the capture is left out and counted. Names, birth
dates or sexes that differ are other people, whatever the id says. A reading that a radiologist rejected counts for nothing;
findings that a radiologist changed count as changed. The rules and their words are those of ``appliance.reading.assessment``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

import msgspec

from appliance.console.words import N_
from appliance.protocol.messages import ReviewMessage
from appliance.reading.assessment import Assessment, Evidence, assess
from appliance.records import Capture, Finding, Modality, Moment, Patient, Reading, Record, Triage

ENCOUNTER_S = 24 * 3600.0
MOST = 60
"""So many captures nearest in the journal are looked at: more than a whole examination has."""

# The assessment's sentences, for the catalogue; a test holds them to what the rules can say.
N_("Findings agree with pneumonia.")
N_("Findings agree in part with pneumonia.")
N_("Findings agree with an opacity in the lung, of which pneumonia is one cause and tuberculosis another.")
N_("Findings agree in part with an opacity in the lung, of which pneumonia is one cause and tuberculosis another.")
N_("Findings agree with fluid congestion of the lungs, as in heart failure.")
N_("Findings agree in part with fluid congestion of the lungs, as in heart failure.")
N_("Findings agree with narrowed airways, as in asthma, bronchiolitis or COPD.")
N_("Findings agree in part with narrowed airways, as in asthma, bronchiolitis or COPD.")
N_("Findings agree with fluid around the lung.")
N_("Findings agree in part with fluid around the lung.")
N_("Findings agree with a heart murmur or another abnormal heart sound.")
N_("Findings agree in part with a heart murmur or another abnormal heart sound.")
N_("Count breaths, measure oxygen, and treat and refer as your guideline for pneumonia says.")
N_(
    "Ask how long the cough has lasted; from two weeks on, or with weight loss or night sweats, test for "
    "tuberculosis. These models do not detect tuberculosis."
)
N_("Look for swollen legs, neck veins and breathlessness when lying down; a clinician needs to see this patient.")
N_("Measure oxygen, and treat wheeze as your guideline says; listen again afterwards.")
N_("A clinician needs to see this patient: fluid around a lung has many causes and may need to be drained.")
N_("Ask about fever with joint pain, breathlessness and fainting; refer for an ultrasound of the heart.")
N_("There are findings, but they do not come together to a picture that is known here.")
N_("No sure sign was found; some answers are uncertain. This does not rule out disease.")
N_("No sign that the models look for was found. This does not rule out disease.")


class Taken(Record, frozen=True, kw_only=True):
    """A capture of the encounter with its newest reading and the radiologist's latest word, ``None`` while there is none."""

    capture: Capture
    reading: Reading | None = None
    review: ReviewMessage | None = None


class Sign(Record, frozen=True, kw_only=True):
    """A finding for or against, as shown. ``human``: a radiologist said so, and ``probability`` is no longer the point."""

    capture_id: str
    modality: Modality
    label: str
    present: bool
    probability: float
    experimental: bool
    human: bool


class Said(Record, frozen=True, kw_only=True):
    """One statement: its words and advice (texts of the catalogue), and the signs it rests on."""

    words: str
    advice: str
    whole: bool
    supports: tuple[Sign, ...]
    contradicts: tuple[Sign, ...]
    would_help: tuple[Modality, ...]


class Together(Record, frozen=True, kw_only=True):
    """What the page shows.

    ``summary``: a text of the catalogue for when there is no statement. ``captures``: what it rests on, in the order they came.
    ``uncertain``: answers that count neither way. ``rejected``: readings a radiologist rejected. ``undated``: captures of
    this patient left out because the clock was not trusted.
    """

    statements: tuple[Said, ...]
    summary: str
    triage: Triage
    captures: tuple[Capture, ...]
    uncertain: tuple[Sign, ...] = ()
    rejected: int = 0
    undated: int = 0


def encounter(shown: Capture, of_patient: Sequence[Capture]) -> tuple[list[Capture], int]:
    """The captures of the patient's that belong to the encounter of ``shown``, and how many could not be dated.

    Args:
        shown: The capture whose page it is; it is among ``of_patient``.
        of_patient: All captures of the patient's id, in the order they came.
    """
    place = next((number for number, one in enumerate(of_patient) if one.id == shown.id), 0)
    near = sorted(range(len(of_patient)), key=lambda number: abs(number - place))[:MOST]
    belong, undated = [], 0
    for number in sorted(near):
        other = of_patient[number]
        if not _same_person(shown.patient, other.patient):
            continue
        apart = seconds_apart(shown.received, other.received)
        if apart is None:
            undated += 1
        elif apart <= ENCOUNTER_S:
            belong.append(other)
    return belong, undated


def together(taken: Iterable[Taken], undated: int = 0) -> Together | None:
    """Bring the captures of one encounter together; ``None`` unless at least two have a reading and one was read."""
    every = [one for one in taken if one.reading is not None]
    counted = [one for one in every if one.review is None or one.review.decision != "reject"]
    readings = [_as_reviewed(one.reading, one.review) for one in counted if one.reading is not None]
    if len(every) < 2 or not any(reading.status == "read" for reading in readings):
        return None
    ages = [one.capture.patient.age_years for one in every if one.capture.patient.age_years is not None]
    assessment = assess(readings, ages[-1] if ages else None)
    signs = _signs(counted, readings)
    return Together(
        statements=_said(assessment, signs),
        summary=assessment.summary,
        triage=assessment.triage,
        captures=tuple(one.capture for one in every),
        uncertain=tuple(signs[_key(one)] for one in assessment.uncertain),
        rejected=len(every) - len(counted),
        undated=undated,
    )


def seconds_apart(one: Moment, other: Moment) -> float | None:
    """The time between two moments, at its longest; ``None`` when no clock can tell."""
    if one.boot_id == other.boot_id:
        return abs(one.monotonic_ns - other.monotonic_ns) / 1e9
    if one.uncertainty_s is None or other.uncertainty_s is None:
        return None
    try:
        walls = [dt.datetime.fromisoformat(moment.wall.replace("Z", "+00:00")) for moment in (one, other)]
        return abs((walls[0] - walls[1]).total_seconds()) + one.uncertainty_s + other.uncertainty_s
    except (ValueError, TypeError):
        return None


def _same_person(one: Patient, other: Patient) -> bool:
    """Whether nothing that is known of both differs."""
    pairs = (
        (one.name.strip().casefold(), other.name.strip().casefold()),
        (one.birth_date, other.birth_date),
        (one.sex, other.sex),
    )
    return all(not mine or not theirs or mine == theirs for mine, theirs in pairs)


def _as_reviewed(reading: Reading, review: ReviewMessage | None) -> Reading:
    """The reading with the findings that a radiologist changed, sure as a human's word is taken to be."""
    if review is None:
        return reading
    changed = tuple(
        msgspec.structs.replace(finding, positive=review.findings[finding.id], confidence="high", experimental=False)
        if finding.id in review.findings
        else finding
        for finding in reading.findings
    )
    return msgspec.structs.replace(reading, findings=changed, triage=review.triage or reading.triage)


def _signs(counted: Sequence[Taken], readings: Sequence[Reading]) -> dict[tuple[str, str], Sign]:
    """Every finding that counts, by capture and sign."""
    signs: dict[tuple[str, str], Sign] = {}
    for one, reading in zip(counted, readings, strict=True):
        for finding in reading.findings:
            human = one.review is not None and finding.id in one.review.findings
            signs[reading.capture_id, f"{reading.modality.value}/{finding.id}"] = _sign(reading, finding, human=human)
    return signs


def _sign(reading: Reading, finding: Finding, *, human: bool) -> Sign:
    return Sign(
        capture_id=reading.capture_id,
        modality=reading.modality,
        label=finding.label,
        present=finding.positive,
        probability=finding.probability,
        experimental=finding.experimental,
        human=human,
    )


def _key(evidence: Evidence) -> tuple[str, str]:
    return evidence.capture_id, evidence.sign


def _said(assessment: Assessment, signs: dict[tuple[str, str], Sign]) -> tuple[Said, ...]:
    return tuple(
        Said(
            words=one.words,
            advice=one.advice,
            whole=one.agreement == "agree",
            supports=tuple(signs[_key(evidence)] for evidence in one.supports),
            contradicts=tuple(signs[_key(evidence)] for evidence in one.contradicts),
            would_help=one.would_help,
        )
        for one in assessment.statements
    )
