"""The boxes as the service's owner sees them: heard of when, backlog, storage, models, link, certificate.

What this module keeps true: nothing here writes; what a box did not say is missing, never guessed.
"""

from __future__ import annotations

import statistics
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select

from appliance.protocol.messages import MessageError, Status, Telemetry, decode
from hub import tables
from hub.arrivals import rfc3339

_capture, _outbox = tables.capture.c, tables.outbox.c
_LAST = 50


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """How the last words down fared. ``seconds``: median from written to confirmed by the box; ``attempts``: mean of sending.

    ``again``: of what the box sent, the share of bytes that it had to send again; None when it did not say.
    """

    words: int = 0
    seconds: float | None = None
    attempts: float | None = None
    again: float | None = None


class DeviceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A box: when it was heard of, what it says of itself, what still goes to it, what of its was rejected."""

    key: str
    online: bool
    last_seen: str
    version: str
    bundles: dict[str, str]
    waiting_messages: int
    waiting_bytes: int
    free_bytes: int
    captures: int
    problems: list[str]
    cases: int
    open_cases: int
    unsent: int
    rejected: int
    conflicts: int
    telemetry: dict[str, float]
    certificate_ends: str | None
    link: Link


def devices(connection: Connection) -> list[DeviceSummary]:
    """Every box, those heard of last first."""
    per_device = _counts(connection, _capture.device, tables.capture)
    open_cases = _counts(connection, _capture.device, tables.capture, _capture.open)
    unsent = _counts(connection, tables.outbox.c.device, tables.outbox, tables.outbox.c.closed_ms.is_(None))
    conflicts = _counts(connection, tables.conflict.c.device, tables.conflict)
    rejections = select(tables.rejection.c.device, func.sum(tables.rejection.c["count"]).label("n"))
    rejected = {row.device: int(row.n) for row in connection.execute(rejections.group_by(tables.rejection.c.device))}
    ends = _certificates(connection)
    found = []
    for row in connection.execute(select(tables.device).order_by(tables.device.c.last_seen_ms.desc())):
        status = _status(row.status)
        found.append(
            DeviceSummary(
                key=row.key,
                online=row.online,
                last_seen=rfc3339(row.last_seen_ms),
                version=status.version,
                bundles=status.bundles,
                waiting_messages=status.waiting_messages,
                waiting_bytes=status.waiting_bytes,
                free_bytes=status.free_bytes,
                captures=status.captures,
                problems=status.problems,
                cases=per_device.get(row.key, 0),
                open_cases=open_cases.get(row.key, 0),
                unsent=unsent.get(row.key, 0),
                rejected=rejected.get(row.key, 0),
                conflicts=conflicts.get(row.key, 0),
                telemetry=_telemetry(row.telemetry),
                certificate_ends=rfc3339(ends[row.key]) if row.key in ends else None,
                link=_link(connection, row.key),
            )
        )
    return found


def _link(connection: Connection, device: str) -> Link:
    query = select(_outbox.created_ms, _outbox.closed_ms, _outbox.attempts).where(
        _outbox.device == device, _outbox.closed_ms.is_not(None)
    )
    rows = connection.execute(query.order_by(_outbox.closed_ms.desc()).limit(_LAST)).all()
    found = select(tables.device.c.telemetry).where(tables.device.c.key == device)
    values = _telemetry(connection.execute(found).scalar_one_or_none())
    sent = values.get("sent_bytes", 0.0)
    again = min(1.0, values.get("sent_again_bytes", 0.0) / sent) if sent > 0 else None
    if not rows:
        return Link(again=again)
    return Link(
        words=len(rows),
        seconds=statistics.median((row.closed_ms - row.created_ms) / 1000 for row in rows),
        attempts=statistics.fmean(row.attempts for row in rows),
        again=again,
    )


def _certificates(connection: Connection) -> dict[str, int]:
    """Until when each device's newest certificate of an active key is good."""
    certificate, enrolled = tables.certificate.c, tables.enrolled.c
    query = (
        select(certificate.device, func.max(certificate.ends_ms).label("ends"))
        .join(tables.enrolled, enrolled.key_id == certificate.key_id)
        .where(enrolled.state == "active", certificate.revoked_ms.is_(None))
        .group_by(certificate.device)
    )
    return {row.device: int(row.ends) for row in connection.execute(query)}


def _counts(connection: Connection, column: Any, table: Any, *where: Any) -> dict[str, int]:
    query = select(column, func.count()).select_from(table).where(*where).group_by(column)
    return {row[0]: row[1] for row in connection.execute(query)}


def _status(payload: bytes | None) -> Status:
    try:
        return decode(payload, Status) if payload else Status(online=False)
    except MessageError:
        return Status(online=False)


def _telemetry(payload: bytes | None) -> dict[str, float]:
    try:
        return decode(payload, Telemetry).values if payload else {}
    except MessageError:
        return {}
