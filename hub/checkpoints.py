"""Where the boxes' audit logs stood, as they said it: what makes a rewritten log visible.

What this module keeps true: the first word on an entry stands, and each checkpoint has one that follows it. A box that says
something else of the same entry, or goes on twice from the same checkpoint, gets ``conflict``: entries were changed or
removed, or its disk was put back to an older state. They may come in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from hub import audit, tables
from hub.arrivals import Answer, CheckpointArrival, Reply
from hub.database import Database

_checkpoint = tables.checkpoint.c
REWRITTEN = "the audit log of this box is not the one that it was: entries were changed or removed"


class CheckpointStore:
    """The statements about checkpoints."""

    def __init__(self, database: Database) -> None:
        self._insert = database.insert(tables.checkpoint).on_conflict_do_nothing(index_elements=["id"])

    def store(self, connection: Connection, arrivals: list[CheckpointArrival], now_ms: int) -> list[Reply]:
        """Take ``arrivals`` in, inside the caller's transaction; one answer for each."""
        replies = []
        for arrival in sorted(arrivals, key=lambda one: (one.address, one.message.sequence)):
            reason = self._contradiction(connection, arrival)
            if not reason:
                connection.execute(self._insert, _row(arrival, now_ms))
            else:
                audit.note(connection, "hub", "audit log rewritten", arrival.address.key, now_ms, arrival.message.id)
            status: Answer = "conflict" if reason else "stored"
            replies.append(Reply(arrival.address, arrival.message.id, arrival.sha256, status, 0, reason))
        return replies

    def _contradiction(self, connection: Connection, arrival: CheckpointArrival) -> str:
        said = arrival.message
        theirs = (_checkpoint.device == arrival.address.key) & (_checkpoint.key_id == arrival.key)
        near = (_checkpoint.sequence == said.sequence) | (_checkpoint.previous == said.previous)
        rows = connection.execute(select(_checkpoint.sequence, _checkpoint.chain).where(theirs, near)).all()
        agrees = all((row.sequence, row.chain) == (said.sequence, said.chain) for row in rows)
        return "" if agrees and said.previous < said.sequence else REWRITTEN


def _row(arrival: CheckpointArrival, now_ms: int) -> dict[str, object]:
    return {
        "id": arrival.message.id,
        "device": arrival.address.key,
        "sequence": arrival.message.sequence,
        "chain": arrival.message.chain,
        "previous": arrival.message.previous,
        "key_id": arrival.key,
        "sha256": arrival.sha256,
        "payload": arrival.payload,
        "received_ms": now_ms,
    }


class Point(NamedTuple):
    """A checkpoint as the hub holds it."""

    device: str
    sequence: int
    chain: str
    received_ms: int


def points(connection: Connection, device: str = "") -> list[Point]:
    """What the boxes said of their logs, or what ``device`` said, oldest first."""
    query = select(_checkpoint.device, _checkpoint.sequence, _checkpoint.chain, _checkpoint.received_ms)
    if device:
        query = query.where(_checkpoint.device == device)
    rows = connection.execute(query.order_by(_checkpoint.device, _checkpoint.received_ms, _checkpoint.sequence))
    return [Point(*row) for row in rows]


def contradicted(held: Iterable[Point], entries: Iterable[dict[str, Any]]) -> list[Point]:
    """The checkpoints that a box's exported log contradicts (``bedside audit export``: ``sequence`` and ``chain`` of each)."""
    chains = {int(entry["sequence"]): str(entry["chain"]) for entry in entries}
    return [point for point in held if chains.get(point.sequence) != point.chain]
