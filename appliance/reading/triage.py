"""How soon a human should look, and the words that go with it: one table, applied top down.

What this module keeps true (docs/assessment.md gives the reasons):

1. A finding at or above its ``critical_probability`` is critical, unless it is experimental.
2. A positive finding gives its bundle's ``triage_positive``; an experimental one at most urgent.
3. All negative: the bundle's ``triage_negative``. Doubt (the uncertain band) is said in words and moves nothing: where a bundle
   doubts most of what it sees, a level that follows doubt would order nothing.
4. Not read: routine. It keeps its place among those that no machine has looked at, and the reason says what to do.

Every text ends with ``ADVICE_NOT_DIAGNOSIS``.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.inference.bundle import Description
from appliance.reading.findings import Answer
from appliance.records import ADVICE_NOT_DIAGNOSIS, Triage

NOT_READ = Triage.ROUTINE


def triage(found: Sequence[Answer], description: Description) -> Triage:
    """The most urgent level that any finding asks for."""
    return min((_level(answer, description) for answer in found), key=lambda level: level.rank, default=NOT_READ)


def advice(found: Sequence[Answer], description: Description) -> str:
    """What the health worker reads: each positive finding's advice once, or the negative one; doubt is said."""
    ranked = sorted((one for one in found if one.finding.positive), key=lambda one: one.finding.experimental)
    said = list(dict.fromkeys(one.advice for one in ranked)) or [description.advice_negative]
    doubtful = [one.finding.label for one in found if one.uncertain and not one.finding.experimental]
    if doubtful:
        said.append(f"The answer on {' and '.join(doubtful)} is uncertain: ask a clinician to judge it.")
    return " ".join([*(text.strip() for text in said), ADVICE_NOT_DIAGNOSIS])


def _level(answer: Answer, description: Description) -> Triage:
    spec, finding = answer.spec, answer.finding
    if (
        not spec.experimental
        and spec.critical_probability is not None
        and finding.probability >= spec.critical_probability
    ):
        return Triage.CRITICAL
    if finding.positive:
        if spec.experimental and spec.triage_positive is Triage.CRITICAL:
            return Triage.URGENT
        return spec.triage_positive
    return description.triage_negative
