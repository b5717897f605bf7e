"""Results into the database: any number of duplicates once, a contradiction kept aside.

What this module keeps true: a result's row is never changed; the same id with another hash, or a capture that belongs to
another device, becomes a row of ``conflict`` and the answer ``conflict``; ``capture`` follows the highest revision, and a
capture that became more urgent waits for a human again. Rows are written in the order of their ids, so that two workers
with the same messages can't wait for each other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, func, or_, select, true

from appliance.protocol.messages import Result
from hub import tables
from hub.arrivals import Rejected, Reply, ResultArrival
from hub.database import Database, Prepared
from hub.patients import patient_key

MOST_ASIDE = 100
"""Results kept aside for one device and not yet seen by anybody; more are only counted, or a flood would fill the disk."""
_TRUSTED_S = 3600.0
"""A box's clock that is off by no more than this says how long a patient has waited; otherwise the hub's clock does."""

_RESULT_COLUMNS = ("id", "capture_id", "device", "sha256", "revision", "received_ms", "payload")
_CAPTURE_COLUMNS = (
    *("id", "device", "result_id", "revision", "sequence", "modality", "status", "rank"),
    *("received_ms", "since_ms", "waiting_ms", "changed_ms", "open", "escalation", "patient"),
)
_capture, _result = tables.capture.c, tables.result.c
_OWNERS = select(_capture.id, _capture.device).where(_capture.id.in_(bindparam("ids", expanding=True)))
_HASHES = select(_result.id, _result.sha256, _result.device).where(_result.id.in_(bindparam("ids", expanding=True)))


class ResultStore:
    """The statements that take results in, compiled for one kind of database."""

    def __init__(self, database: Database) -> None:
        insert = database.insert(tables.result).values({name: bindparam(name) for name in _RESULT_COLUMNS})
        self._insert = Prepared(database, insert.on_conflict_do_nothing(index_elements=["id"]))
        self._conflict = database.insert(tables.conflict).on_conflict_do_nothing()
        self._upsert = Prepared(database, _upsert(database))

    def store(self, connection: Connection, arrivals: list[ResultArrival], now_ms: int) -> list[Reply]:
        """Take ``arrivals`` in, inside the caller's transaction; one answer for each distinct (id, hash)."""
        distinct = {(a.message.id, a.sha256, a.address): a for a in arrivals}
        ordered = [distinct[key] for key in sorted(distinct)]
        captures = sorted({a.message.capture.id for a in ordered})
        owners = {row.id: row.device for row in connection.execute(_OWNERS, {"ids": captures})}
        foreign = [a for a in ordered if owners.setdefault(a.message.capture.id, a.address.key) != a.address.key]
        ours = [a for a in ordered if owners[a.message.capture.id] == a.address.key]
        replies = [Reply(a.address, a.message.id, a.sha256, "conflict", 0, _FOREIGN) for a in foreign]
        aside = [(a, _FOREIGN) for a in foreign]
        if ours:
            self._insert.run(connection, [_result_row(a, now_ms) for a in ours])
            ids = sorted({a.message.id for a in ours})
            held = {row.id: (row.sha256, row.device) for row in connection.execute(_HASHES, {"ids": ids})}
            kept = [a for a in ours if held[a.message.id] == (a.sha256, a.address.key)]
            other = [a for a in ours if held[a.message.id] != (a.sha256, a.address.key)]
            if kept:
                rows = [_capture_row(a, now_ms) for a in sorted(kept, key=lambda a: a.message.capture.id)]
                self._upsert.run(connection, rows)
            replies += [Reply(a.address, a.message.id, a.sha256, "stored") for a in kept]
            replies += [Reply(a.address, a.message.id, a.sha256, "conflict", 0, _OTHER) for a in other]
            aside += [(a, _OTHER) for a in other]
        if aside:
            connection.execute(self._conflict, [_conflict_row(a, reason, now_ms) for a, reason in aside])
        return replies

    def keep_aside(self, connection: Connection, rejected: list[Rejected], now_ms: int) -> None:
        """Keep results that nobody can be sure of where a human sees them, no more than ``MOST_ASIDE`` of a device."""
        for device in sorted({one.device for one in rejected if one.aside is not None}):
            query = select(func.count()).select_from(tables.conflict)
            mine = (tables.conflict.c.device == device) & tables.conflict.c.seen_by.is_(None)
            room = MOST_ASIDE - connection.execute(query.where(mine)).scalar_one()
            rows = [
                _conflict_row(one.aside, one.reason, now_ms)
                for one in rejected
                if one.device == device and one.aside is not None
            ]
            if room > 0 and rows:
                connection.execute(self._conflict, rows[:room])


_FOREIGN = "this capture belongs to another device"
_OTHER = "a result with this id and another content is already here"


def _result_row(arrival: ResultArrival, now_ms: int) -> dict[str, Any]:
    return {
        "id": arrival.message.id,
        "capture_id": arrival.message.capture.id,
        "device": arrival.address.key,
        "sha256": arrival.sha256,
        "revision": arrival.message.revision,
        "received_ms": now_ms,
        "payload": arrival.payload,
    }


def _conflict_row(arrival: ResultArrival, reason: str, now_ms: int) -> dict[str, Any]:
    return {
        "id": arrival.message.id,
        "sha256": arrival.sha256,
        "device": arrival.address.key,
        "received_ms": now_ms,
        "reason": reason,
        "payload": arrival.payload,
    }


def _capture_row(arrival: ResultArrival, now_ms: int) -> dict[str, Any]:
    message = arrival.message
    return {
        "id": message.capture.id,
        "device": arrival.address.key,
        "result_id": message.id,
        "revision": message.revision,
        "sequence": message.sequence,
        "modality": message.capture.modality.value,
        "status": message.status,
        "rank": message.triage.rank,
        "received_ms": now_ms,
        "since_ms": now_ms,
        "waiting_ms": _waiting_since(message, now_ms),
        "changed_ms": now_ms,
        "open": True,
        "escalation": 0,
        "patient": patient_key(arrival.address.key, message.capture.patient),
    }


def _waiting_since(message: Result, now_ms: int) -> int:
    received = message.capture.received
    if received.uncertainty_s is None or received.uncertainty_s > _TRUSTED_S:
        return now_ms
    try:
        wall = datetime.fromisoformat(received.wall.replace("Z", "+00:00"))
    except ValueError:
        return now_ms
    if wall.tzinfo is None:
        return now_ms
    return max(0, min(now_ms, int(wall.timestamp() * 1000)))


def _upsert(database: Database) -> Any:
    insert = database.insert(tables.capture).values({name: bindparam(name) for name in _CAPTURE_COLUMNS})
    new = insert.excluded
    newer = or_(
        new.revision > _capture.revision,
        and_(new.revision == _capture.revision, new.sequence > _capture.sequence),
    )
    worse = new["rank"] < _capture.rank
    return insert.on_conflict_do_update(
        index_elements=["id"],
        where=and_(newer, _capture.device == new.device),
        set_={
            "result_id": new.result_id,
            "revision": new.revision,
            "sequence": new.sequence,
            "status": new.status,
            "modality": new.modality,
            "patient": new.patient,
            "rank": new["rank"],
            "changed_ms": new.changed_ms,
            "since_ms": case((worse, new.since_ms), else_=_capture.since_ms),
            "open": case((worse, true()), else_=_capture.open),
            "escalation": case((worse, new.escalation), else_=_capture.escalation),
            "acknowledged_ms": case((worse, None), else_=_capture.acknowledged_ms),
            "acknowledged_by": case((worse, None), else_=_capture.acknowledged_by),
        },
    )
