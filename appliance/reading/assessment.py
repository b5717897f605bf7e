"""The findings of one encounter brought together: what they agree with, what speaks for it and what against.

What this module keeps true: every statement comes from one row of ``RULES``, and shows the findings that made it; there is no
score, no weight and nothing learnt here. docs/assessment.md prints the same table with its sources in full. A finding counts as
a sign when it is positive in any capture of its modality, as an absent sign when it is negative in all of them, and as
neither while its confidence is low. Experimental findings alone never make more than "in part". Advice, never a diagnosis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from appliance.records import ADVICE_NOT_DIAGNOSIS, Finding, Modality, Reading, Record, Triage

CHILD_BELOW = 15.0
"""Years; the age from which an X-ray opacity is worded, and judged, as an adult's."""

XRAY, CONSOLIDATION, B_LINES, EFFUSION, ULTRASOUND, HEART, CRACKLE, WHEEZE = (
    "chest-xray/pneumonia",
    "lung-ultrasound/consolidation",
    "lung-ultrasound/b-lines",
    "lung-ultrasound/effusion",
    "lung-ultrasound/abnormal",
    "heart-sound/abnormal",
    "lung-sound/crackle",
    "lung-sound/wheeze",
)
"""Signs: modality and finding id."""


class Rule(Record, frozen=True, kw_only=True):
    """One row of the table.

    ``needs``: of each group at least one sign is there. ``least``: how many modalities must support it, in children and in
    adults. ``supports``: signs that speak for it beside the needed ones. ``against``: signs whose *presence* speaks against
    it. ``missed``: signs whose *absence* speaks against it. ``sources``: keys of docs/assessment.md.
    """

    id: str
    statement: str
    advice: str
    needs: tuple[tuple[str, ...], ...]
    supports: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    least: tuple[int, int] = (1, 1)
    ages: tuple[float, float] = (0.0, 151.0)
    sources: tuple[str, ...] = ()


RULES = (
    Rule(
        id="pneumonia",
        statement="pneumonia",
        advice="Count breaths, measure oxygen, and treat and refer as your guideline for pneumonia says.",
        needs=((XRAY, CONSOLIDATION),),
        supports=(CRACKLE, B_LINES, EFFUSION, ULTRASOUND),
        missed=(XRAY, CONSOLIDATION, CRACKLE),
        least=(1, 2),
        sources=(
            "who-2001",
            "cherian-2005",
            "bts-2011",
            "volpicelli-2012",
            "pereda-2015",
            "bohadana-2014",
            "basi-2004",
        ),
    ),
    Rule(
        id="opacity",
        statement="an opacity in the lung, of which pneumonia is one cause and tuberculosis another",
        advice="Ask how long the cough has lasted; from two weeks on, or with weight loss or night sweats, test for "
        "tuberculosis. These models do not detect tuberculosis.",
        needs=((XRAY,),),
        supports=(CONSOLIDATION, CRACKLE, EFFUSION),
        missed=(CONSOLIDATION,),
        ages=(CHILD_BELOW, 151.0),
        sources=("who-tb-2021", "volpicelli-2012"),
    ),
    Rule(
        id="congestion",
        statement="fluid congestion of the lungs, as in heart failure",
        advice="Look for swollen legs, neck veins and breathlessness when lying down; a clinician needs to see this patient.",
        needs=((B_LINES, EFFUSION, CRACKLE), (HEART,)),
        supports=(XRAY, ULTRASOUND),
        against=(CONSOLIDATION, WHEEZE),
        missed=(B_LINES,),
        least=(2, 2),
        sources=("martindale-2016", "esc-2021", "volpicelli-2012"),
    ),
    Rule(
        id="airways",
        statement="narrowed airways, as in asthma, bronchiolitis or COPD",
        advice="Measure oxygen, and treat wheeze as your guideline says; listen again afterwards.",
        needs=((WHEEZE,),),
        against=(XRAY, CONSOLIDATION, EFFUSION, B_LINES),
        sources=("bohadana-2014", "who-pocket-2013", "lichtenstein-2008"),
    ),
    Rule(
        id="effusion",
        statement="fluid around the lung",
        advice="A clinician needs to see this patient: fluid around a lung has many causes and may need to be drained.",
        needs=((EFFUSION,),),
        supports=(XRAY,),
        sources=("volpicelli-2012", "lichtenstein-2008"),
    ),
    Rule(
        id="heart",
        statement="a heart murmur or another abnormal heart sound",
        advice="Ask about fever with joint pain, breathlessness and fainting; refer for an ultrasound of the heart.",
        needs=((HEART,),),
        sources=("remenyi-2012",),
    ),
)


class Evidence(Record, frozen=True, kw_only=True):
    """A finding that speaks for or against: in which capture, how probable, and in words."""

    sign: str
    capture_id: str
    present: bool
    probability: float
    experimental: bool
    words: str


class Statement(Record, frozen=True, kw_only=True):
    """What the findings agree with. ``in part``: something speaks against it, or only experimental findings speak for it."""

    rule: str
    agreement: Literal["agree", "in part"]
    words: str
    advice: str
    supports: tuple[Evidence, ...]
    contradicts: tuple[Evidence, ...]
    would_help: tuple[Modality, ...]
    sources: tuple[str, ...]


class Assessment(Record, frozen=True, kw_only=True):
    """All of it for one encounter. ``uncertain`` findings were left out; ``not_read`` captures say why."""

    summary: str
    statements: tuple[Statement, ...]
    triage: Triage
    uncertain: tuple[Evidence, ...] = ()
    not_read: tuple[str, ...] = ()
    advice: str = ADVICE_NOT_DIAGNOSIS


def assess(readings: Iterable[Reading], age_years: float | None) -> Assessment:
    """Bring the readings of one encounter together; an unknown age counts as an adult's."""
    all_ = list(readings)
    found = [one for one in all_ if one.status == "read"]
    uncertain = tuple(
        _evidence(reading, finding) for reading in found for finding in reading.findings if finding.confidence == "low"
    )
    signs = _signs(found)
    statements = tuple(statement for rule in RULES if (statement := _apply(rule, signs, age_years, found)) is not None)
    statements = tuple(sorted(statements, key=lambda one: one.agreement != "agree"))
    return Assessment(
        summary=_summary(statements, found, uncertain),
        statements=statements,
        triage=min((one.triage for one in all_), key=lambda level: level.rank, default=Triage.ROUTINE),
        uncertain=uncertain,
        not_read=tuple(f"{one.modality.value}: {one.refusal.reason}" for one in all_ if one.refusal is not None),
    )


def _signs(readings: Sequence[Reading]) -> dict[str, Evidence]:
    """The sure signs: present as soon as one capture shows it, absent when all that looked say no."""
    signs: dict[str, Evidence] = {}
    doubtful = set()
    for reading in readings:
        for finding in reading.findings:
            evidence = _evidence(reading, finding)
            if finding.confidence == "low":
                doubtful.add(evidence.sign)
                continue
            known = signs.get(evidence.sign)
            if known is None or (evidence.present, evidence.probability) > (known.present, known.probability):
                signs[evidence.sign] = evidence
    return {sign: one for sign, one in signs.items() if one.present or sign not in doubtful}


def _apply(
    rule: Rule, signs: dict[str, Evidence], age_years: float | None, readings: Sequence[Reading]
) -> Statement | None:
    age = 30.0 if age_years is None else age_years
    present = {sign: one for sign, one in signs.items() if one.present}
    if not rule.ages[0] <= age < rule.ages[1] or not all(
        any(sign in present for sign in group) for group in rule.needs
    ):
        return None
    wanted = tuple(dict.fromkeys([*(sign for group in rule.needs for sign in group), *rule.supports]))
    supports = tuple(present[sign] for sign in wanted if sign in present)
    if len({_modality(one.sign) for one in supports}) < rule.least[0 if age < CHILD_BELOW else 1]:
        return None
    against = tuple(present[sign] for sign in rule.against if sign in present) + tuple(
        signs[sign] for sign in rule.missed if sign in signs and not signs[sign].present
    )
    whole = not against and not all(one.experimental for one in supports)
    seen = {reading.modality for reading in readings}
    concerned = (*wanted, *rule.against, *rule.missed)
    return Statement(
        rule=rule.id,
        agreement="agree" if whole else "in part",
        words=f"Findings agree {'' if whole else 'in part '}with {rule.statement}.",
        advice=rule.advice,
        supports=supports,
        contradicts=against,
        would_help=tuple(dict.fromkeys(m for sign in concerned if (m := _modality(sign)) not in seen)),
        sources=rule.sources,
    )


def _summary(statements: Sequence[Statement], found: Sequence[Reading], uncertain: Sequence[Evidence]) -> str:
    if not found:
        return "No capture of this encounter could be read."
    if statements:
        return " ".join(one.words for one in statements)
    if any(finding.positive for reading in found for finding in reading.findings):
        return "There are findings, but they do not come together to a picture that is known here."
    if uncertain:
        return "No sure sign was found; some answers are uncertain. This does not rule out disease."
    return "No sign that the models look for was found. This does not rule out disease."


def _evidence(reading: Reading, finding: Finding) -> Evidence:
    said = "shows" if finding.positive else "does not show"
    return Evidence(
        sign=f"{reading.modality.value}/{finding.id}",
        capture_id=reading.capture_id,
        present=finding.positive,
        probability=finding.probability,
        experimental=finding.experimental,
        words=f"{_NAMES[reading.modality]} {said} {finding.label.lower()}"
        + (" (experimental)" if finding.experimental else ""),
    )


_NAMES = {
    Modality.CHEST_XRAY: "X-ray",
    Modality.LUNG_ULTRASOUND: "Lung ultrasound",
    Modality.HEART_SOUND: "Heart sound",
    Modality.LUNG_SOUND: "Lung sound",
    Modality.OTHER: "Capture",
}


def _modality(sign: str) -> Modality:
    return Modality(sign.split("/", 1)[0])
