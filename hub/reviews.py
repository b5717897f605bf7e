"""What people do to cases: take note, claim, release, review.

What this module keeps true: a review refers to the result and the review that its author saw; if either has changed
meanwhile it is refused, so nobody overwrites what they have not seen; so it is while somebody else has claimed the case. Its
id derives from its content and the review before it: the same form sent twice is one review. A review, its way down and its
audit event are one transaction.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from sqlalchemy import Connection, Row, select, update

from appliance.protocol import messages
from appliance.protocol.messages import Command, Result, ReviewMessage, decode, make_id
from appliance.records import Triage
from hub import audit, outbox, tables
from hub.arrivals import rfc3339
from hub.cases import CaseNotFound
from hub.database import Database

_capture = tables.capture.c
Name = Annotated[str, Meta(min_length=1, max_length=128)]


class ReviewRefused(Exception):  # noqa: N818 - the state of things, told to who asked
    """The review can't be taken; the message says why and what to do."""


class ReviewRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a reviewer sends. ``result_id`` and ``previous`` are those the reviewer saw (``previous`` empty: none yet).

    ``findings``: finding id → present, for those that the reviewer changed. ``reviewer`` counts only where nobody
    signs in.
    """

    decision: Literal["accept", "modify", "reject"]
    result_id: Annotated[str, Meta(max_length=64)]
    previous: Annotated[str, Meta(max_length=64)] = ""
    reviewer: Annotated[str, Meta(max_length=128)] = ""
    note: Annotated[str, Meta(max_length=4000)] = ""
    findings: Annotated[dict[str, bool], Meta(max_length=64)] = {}
    triage: Triage | None = None


def review(
    connection: Connection, database: Database, capture_id: str, request: ReviewRequest, reviewer: str, now_ms: int
) -> ReviewMessage:
    """Take a review; raises ``CaseNotFound`` or ``ReviewRefused``. The same request again returns the same review."""
    row = locked(connection, capture_id)
    origin = (capture_id, request.previous, request.result_id, reviewer, request.decision, request.note)
    details = msgspec.json.encode((sorted(request.findings.items()), request.triage)).decode()
    key = make_id("review", *origin, details)
    there = connection.execute(select(tables.review.c.payload).where(tables.review.c.id == key)).scalar_one_or_none()
    if there is not None:
        return decode(there, ReviewMessage)
    check_claim(row, reviewer)
    _check(connection, row, request)
    message = ReviewMessage(
        id=key,
        capture_id=capture_id,
        decision=request.decision,
        reviewer=reviewer,
        reviewed_at=rfc3339(now_ms),
        note=request.note,
        findings=request.findings,
        triage=request.triage,
    )
    connection.execute(
        tables.review.insert(),
        {
            "id": key,
            "capture_id": capture_id,
            "result_id": request.result_id,
            "previous": request.previous or None,
            "decision": request.decision,
            "reviewer": reviewer,
            "created_ms": now_ms,
            "payload": messages.encode(message),
        },
    )
    values: dict[str, Any] = {"review_id": key, "decision": request.decision, "open": False, "claimed_by": None}
    _set(connection, capture_id, now_ms, **values, claimed_ms=None)
    outbox.add(connection, database, row.device, message, now_ms)
    audit.note(connection, reviewer, f"review:{request.decision}", capture_id, now_ms, key)
    if row.acknowledged_ms is None:
        _acknowledge(connection, database, row, reviewer, now_ms)
    return message


def acknowledge(connection: Connection, database: Database, capture_id: str, who: str, now_ms: int) -> bool:
    """A human has taken note: escalation stops. False when somebody had already. Raises ``CaseNotFound``."""
    row = locked(connection, capture_id)
    if row.acknowledged_ms is not None:
        return False
    _acknowledge(connection, database, row, who, now_ms)
    return True


def claim(connection: Connection, database: Database, capture_id: str, who: str, now_ms: int) -> str:
    """Claim a case for reading; returns who has it (an earlier claim stands). Raises ``CaseNotFound``."""
    row = locked(connection, capture_id)
    if row.acknowledged_ms is None:
        _acknowledge(connection, database, row, who, now_ms)
    if row.claimed_by:
        return str(row.claimed_by)
    _set(connection, capture_id, now_ms, claimed_by=who, claimed_ms=now_ms)
    audit.note(connection, who, "claimed", capture_id, now_ms)
    return who


def release(connection: Connection, capture_id: str, who: str, now_ms: int) -> None:
    """Give a claimed case back to all; anybody may, and the audit log says who. Raises ``CaseNotFound``."""
    row = locked(connection, capture_id)
    if row.claimed_by:
        _set(connection, capture_id, now_ms, claimed_by=None, claimed_ms=None)
        audit.note(connection, who, "released", capture_id, now_ms, f"was claimed by {row.claimed_by}")


def locked(connection: Connection, capture_id: str) -> Row[Any]:
    """The case, held until the transaction ends; raises ``CaseNotFound``."""
    query = select(tables.capture).where(_capture.id == capture_id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise CaseNotFound(capture_id)
    return row


def check_claim(row: Row[Any], who: str) -> None:
    """Raise ``ReviewRefused`` when somebody else reads the case."""
    if row.claimed_by and row.claimed_by != who:
        raise ReviewRefused(f"{row.claimed_by} is reading this case; ask them, or give it back to all first")


def _check(connection: Connection, row: Row[Any], request: ReviewRequest) -> None:
    if request.result_id != row.result_id:
        raise ReviewRefused("the box has sent a newer result meanwhile; look at it and review again")
    if request.previous != (row.review_id or ""):
        raise ReviewRefused("somebody else has reviewed this case meanwhile; look at their review first")
    payload = connection.execute(
        select(tables.result.c.payload).where(tables.result.c.id == row.result_id)
    ).scalar_one()
    known = {finding.id for finding in decode(payload, Result).findings}
    unknown = sorted(set(request.findings) - known)
    if unknown:
        raise ReviewRefused(f"the result has no finding {unknown[0]!r}; it has: {', '.join(sorted(known)) or 'none'}")
    if request.decision != "modify" and request.findings:
        raise ReviewRefused("findings can be changed only by the decision 'modify'")
    if request.decision == "modify" and not (request.findings or request.note or request.triage):
        raise ReviewRefused("'modify' without a changed finding, a triage or a note says nothing; add one")


def _acknowledge(connection: Connection, database: Database, row: Row[Any], who: str, now_ms: int) -> None:
    _set(connection, row.id, now_ms, acknowledged_ms=now_ms, acknowledged_by=who)
    command = Command(
        id=make_id("command", "acknowledged", row.id, str(row.revision)),
        kind="acknowledged",
        capture_id=row.id,
        issued_at=rfc3339(now_ms),
    )
    outbox.add(connection, database, row.device, command, now_ms)
    audit.note(connection, who, "acknowledged", row.id, now_ms)


def _set(connection: Connection, capture_id: str, now_ms: int, **values: Any) -> None:
    change = update(tables.capture).where(_capture.id == capture_id)
    connection.execute(change.values(changed_ms=now_ms, **values))
