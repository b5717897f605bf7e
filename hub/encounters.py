"""What else there is of a patient: earlier captures, and those of the same encounter brought together by the table of rules.

What this module keeps true: a patient is who has the same id and issuer at the same site (``patients.patient_key``), and
neither another sex nor another birth date; without an id nothing is joined. An encounter is what the box says is one, or what
one box took within ``ENCOUNTER_S``: by its monotonic clock within one run, else by a trusted clock. A rejected reading counts
for nothing there, findings that a reader changed count as changed. The rules are the box's own (``docs/assessment.md``).
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from appliance.protocol.messages import CapturePart, Result, ReviewMessage, decode
from appliance.reading.assessment import Assessment, assess
from appliance.records import Code, Finding, Moment, Reading, Refusal, Triage
from hub import tables
from hub.cases import TRIAGES

ENCOUNTER_S = 24 * 3600.0
MOST = 40
_TRUSTED_S = 3600.0
_capture, _result, _review = tables.capture.c, tables.result.c, tables.review.c


class Other(msgspec.Struct, frozen=True, kw_only=True):
    """Another capture of the same patient. ``together``: of the same encounter."""

    id: str
    taken: str
    clock_trusted: bool
    modality: str
    triage: Triage
    status: str
    positive: list[str]
    decision: str | None
    together: bool


class Encounter(msgspec.Struct, frozen=True, kw_only=True):
    """The other captures, newest first, and the assessment when there is more than one of this encounter."""

    others: list[Other]
    assessment: Assessment | None


def encounter(connection: Connection, capture_id: str) -> Encounter:
    """What there is of the patient of a case."""
    mine = connection.execute(_query().where(_capture.id == capture_id)).one()
    if not mine.patient:
        return Encounter(others=[], assessment=None)
    rows = connection.execute(
        _query()
        .where(_capture.patient == mine.patient, _capture.id != capture_id)
        .order_by(_capture.waiting_ms.desc())
        .limit(MOST)
    ).all()
    result = decode(mine.payload, Result)
    others, readings = [], _reading(result, mine.review)
    for row in rows:
        other = decode(row.payload, Result)
        if _somebody_else(result.capture, other.capture):
            continue
        together = _together(mine.device == row.device, result.capture, other.capture)
        if together:
            readings += _reading(other, row.review)
        others.append(_other(row, other, together=together))
    several = any(one.together for one in others)
    return Encounter(others=others, assessment=assess(readings, result.capture.patient.age_years) if several else None)


def _query() -> Any:
    joined = tables.capture.join(tables.result, _result.id == _capture.result_id)
    joined = joined.outerjoin(tables.review, _review.id == _capture.review_id)
    return select(tables.capture, _result.payload, _review.payload.label("review")).select_from(joined)


def _somebody_else(one: CapturePart, other: CapturePart) -> bool:
    a, b = one.patient, other.patient
    pairs = ((a.sex, b.sex), (a.birth_date, b.birth_date))
    return any(mine and theirs and mine != theirs for mine, theirs in pairs)


def _together(same_box: bool, one: CapturePart, other: CapturePart) -> bool:
    if one.encounter_id and other.encounter_id:
        return one.encounter_id == other.encounter_id
    if not same_box:
        return False
    if one.received.boot_id == other.received.boot_id:
        return abs(one.received.monotonic_ns - other.received.monotonic_ns) / 1e9 <= ENCOUNTER_S
    times = (_wall(one.received), _wall(other.received))
    return times[0] is not None and times[1] is not None and abs((times[0] - times[1]).total_seconds()) <= ENCOUNTER_S


def _wall(moment: Moment) -> dt.datetime | None:
    if moment.uncertainty_s is None or moment.uncertainty_s > _TRUSTED_S:
        return None
    try:
        found = dt.datetime.fromisoformat(moment.wall.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else None


def _other(row: Row[Any], result: Result, *, together: bool) -> Other:
    changed = decode(row.review, ReviewMessage).findings if row.review else {}
    return Other(
        id=row.id,
        taken=result.capture.received.wall,
        clock_trusted=_wall(result.capture.received) is not None,
        modality=result.capture.modality.value,
        triage=TRIAGES[row.rank],
        status=result.status,
        positive=[one.label for one in result.findings if changed.get(one.id, one.positive)],
        decision=row.decision,
        together=together,
    )


def _reading(result: Result, review: bytes | None) -> list[Reading]:
    word = decode(review, ReviewMessage) if review else None
    if word is not None and word.decision == "reject":
        return []
    changed = word.findings if word else {}
    findings = tuple(
        Finding(
            id=one.id,
            label=one.label,
            code=one.code or Code(scheme="", value="", meaning=""),
            probability=one.probability,
            positive=changed.get(one.id, one.positive),
            threshold=one.threshold,
            experimental=one.experimental and one.id not in changed,
            confidence="high" if one.id in changed else one.confidence,
        )
        for one in result.findings
    )
    refusal = (
        Refusal(code=result.refusal_code, reason=result.reason, advice="") if result.status == "not_read" else None
    )
    return [
        Reading(
            capture_id=result.capture.id,
            modality=result.capture.modality,
            status=result.status,
            triage=(word.triage if word else None) or result.triage,
            advice=result.advice,
            findings=findings,
            refusal=refusal,
        )
    ]
