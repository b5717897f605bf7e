"""The structured report of a case: drafted from the findings, preliminary until somebody signs it, never changed afterwards.

What this module keeps true: a draft is anybody's to change and goes nowhere; a signed text is a row that is written once; what
comes later is an addendum with its own signature. Signing is a review: it refers to the result and the review that its author
saw, and takes the whole text to the bedside as the review's note. Draft, signature and addendum are each in the audit log.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sqlalchemy import Connection, Row, select

from appliance.protocol.messages import Result, ReviewMessage, decode
from appliance.records import Triage
from hub import audit, reviews, tables
from hub.arrivals import rfc3339
from hub.database import Database
from hub.reviews import ReviewRefused, ReviewRequest

LONGEST = 4000
"""Characters of a report with its addenda: what a review's note may carry."""
_URGENCY = {Triage.CRITICAL: "Critical: act now.", Triage.URGENT: "Urgent.", Triage.ROUTINE: "Routine."}


class ReportRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a reader writes. ``result_id`` and ``previous`` as in a review."""

    text: Annotated[str, Meta(min_length=1, max_length=LONGEST)]
    result_id: Annotated[str, Meta(max_length=64)]
    previous: Annotated[str, Meta(max_length=64)] = ""


class ReportPart(msgspec.Struct, frozen=True, kw_only=True):
    """A signed text: the report (``number`` 0) or one of its addenda."""

    number: int
    text: str
    signer: str
    signed: str


class Reports(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a case's report. ``draft``: what a reader kept, or what the findings say; ``signed``: empty until then."""

    state: str
    draft: str
    drafted_by: str
    signed: list[ReportPart]
    superseded: bool


def reports(connection: Connection, result: Result, last: ReviewMessage | None) -> Reports:
    """The report of a case. ``superseded``: the box sent another result since the signature."""
    capture_id = result.capture.id
    kept = connection.execute(select(tables.draft).where(tables.draft.c.capture_id == capture_id)).one_or_none()
    rows = _signed(connection, capture_id)
    parts = [
        ReportPart(number=row.number, text=row.text, signer=row.signer, signed=rfc3339(row.signed_ms)) for row in rows
    ]
    text = kept.text if kept else ("" if parts else drafted(result, last))
    return Reports(
        state="signed" if parts else "preliminary",
        draft=text,
        drafted_by=kept.author if kept else "",
        signed=parts,
        superseded=bool(rows) and rows[-1].result_id != result.id,
    )


def drafted(result: Result, last: ReviewMessage | None) -> str:
    """A report in the usual order (examination, findings, impression) out of what the box and the last reviewer said."""
    capture, changed = result.capture, last.findings if last else {}
    where = ", ".join(part for part in (capture.view, capture.position) if part)
    lines = [f"Examination: {_name(capture.modality.value)}{f' ({where})' if where else ''}"]
    if capture.study_date:
        lines.append(f"Date of examination: {capture.study_date}")
    rejected = last is not None and last.decision == "reject"
    there: list[str] = []
    absent: list[str] = []
    for finding in sorted(result.findings, key=lambda one: -one.probability):
        (there if changed.get(finding.id, finding.positive) else absent).append(finding.label)
    lines.append("")
    lines.append("Findings:")
    if result.status == "not_read" and not changed:
        lines.append("- Not read by the box" + (f": {result.reason}" if result.reason else "."))
    elif rejected:
        lines.append("- The box's reading was rejected.")
    else:
        lines += [f"- {label}: present" for label in there] + [f"- {label}: not seen" for label in absent]
        lines += [] if result.findings else ["- None reported by the box."]
    lines += [
        f"- {one.label}: {one.value:.4g} {'' if one.unit == '1' else one.unit}".rstrip() for one in result.measures
    ]
    lines += ["", "Impression:"]
    triage = (last.triage if last else None) or result.triage
    impression = f"{', '.join(there)}." if there else "None of the findings looked for."
    lines.append(_URGENCY[triage] if rejected or not result.findings else f"{impression} {_URGENCY[triage]}")
    if last is not None and last.note and not rejected:
        lines.append(last.note)
    return "\n".join(lines)[:LONGEST]


def keep_draft(connection: Connection, database: Database, capture_id: str, text: str, who: str, now_ms: int) -> None:
    """Keep a draft; it goes nowhere. Raises ``CaseNotFound`` or ``ReviewRefused`` (an addendum is kept alike)."""
    row = reviews.locked(connection, capture_id)
    reviews.check_claim(row, who)
    if len(text) > LONGEST:
        raise ReviewRefused(f"a report has at most {LONGEST} characters; this has {len(text)}")
    values = {"text": text, "author": who, "changed_ms": now_ms}
    insert = database.insert(tables.draft).values(capture_id=capture_id, **values)
    connection.execute(insert.on_conflict_do_update(index_elements=["capture_id"], set_=values))
    audit.note(connection, who, "report:drafted", capture_id, now_ms)


def sign(
    connection: Connection, database: Database, capture_id: str, request: ReportRequest, who: str, now_ms: int
) -> ReviewMessage:
    """Sign the report, or an addendum to it; raises ``CaseNotFound`` or ``ReviewRefused``. The decision so far stands."""
    text = request.text.replace("\r\n", "\n").strip()
    if not text:
        raise ReviewRefused("an empty report says nothing; write it first")
    row = reviews.locked(connection, capture_id)
    before = _signed(connection, capture_id)
    heads = [before[0].text] if before else []
    heads += [f"Addendum ({one.signer}, {rfc3339(one.signed_ms)}):\n{one.text}" for one in before[1:]]
    whole = "\n\n".join([*heads, f"Addendum ({who}, {rfc3339(now_ms)}):\n{text}" if before else text])
    if len(whole) > LONGEST:
        raise ReviewRefused(f"the report with its addenda has {len(whole)} characters, more than {LONGEST}; shorten it")
    last = _last(connection, row.review_id)
    message = reviews.review(
        connection,
        database,
        capture_id,
        ReviewRequest(
            decision=last.decision if last else "accept",
            result_id=request.result_id,
            previous=request.previous,
            note=whole,
            findings=last.findings if last else {},
            triage=last.triage if last else None,
        ),
        who,
        now_ms,
    )
    number = len(before)
    signed = {"id": message.id, "capture_id": capture_id, "number": number, "result_id": request.result_id}
    insert = database.insert(tables.report).values(**signed, text=text, signer=who, signed_ms=now_ms)
    if connection.execute(insert.on_conflict_do_nothing(index_elements=["id"])).rowcount:
        connection.execute(tables.draft.delete().where(tables.draft.c.capture_id == capture_id))
        audit.note(connection, who, "report:addendum" if number else "report:signed", capture_id, now_ms, message.id)
    return message


def _signed(connection: Connection, capture_id: str) -> list[Row[Any]]:
    query = select(tables.report).where(tables.report.c.capture_id == capture_id).order_by(tables.report.c.number)
    return list(connection.execute(query))


def _last(connection: Connection, review_id: str | None) -> ReviewMessage | None:
    if review_id is None:
        return None
    query = select(tables.review.c.payload).where(tables.review.c.id == review_id)
    return decode(connection.execute(query).scalar_one(), ReviewMessage)


def _name(modality: str) -> str:
    return {"chest-xray": "Chest X-ray"}.get(modality, modality.replace("-", " ").capitalize())
