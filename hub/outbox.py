"""The way down: reviews and commands are rows, sent again with growing pauses until the box confirms them.

What this module keeps true: a row is made in the transaction that made its cause; the payload of an id never changes; a
row closes only by the box's receipt with the same id and hash, from the device it is for; a box that comes back online
is sent everything open at once. Sending twice does no harm: the box tells duplicates by their id.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, bindparam, func, select, update

from appliance.protocol import messages
from appliance.protocol.messages import Command, ReviewMessage
from appliance.protocol.topics import Address, Down
from hub import tables
from hub.arrivals import ReceiptArrival
from hub.database import Database

_outbox = tables.outbox.c
_CLOSE = (
    update(tables.outbox)
    .where(
        _outbox.id == bindparam("key"),
        _outbox.sha256 == bindparam("hash"),
        _outbox.device == bindparam("key_device"),
        _outbox.closed_ms.is_(None),
    )
    .values(closed_ms=bindparam("now_ms"), outcome=bindparam("answer"), reason=bindparam("why"), next_ms=None)
)
_REFUSED = (
    update(tables.outbox)
    .where(
        _outbox.id == bindparam("key"),
        _outbox.sha256 == bindparam("hash"),
        _outbox.device == bindparam("key_device"),
        _outbox.closed_ms.is_(None),
    )
    .values(outcome="refused", reason=bindparam("why"))
)


class Waiting(msgspec.Struct, frozen=True):
    """A row that is due: what to publish where."""

    id: str
    topic: str
    payload: bytes
    attempts: int


def address(key: str) -> Address:
    """The address of a device's key (``site/device``)."""
    site, _, name = key.partition("/")
    return Address(site, name)


def add(connection: Connection, database: Database, device: str, message: ReviewMessage | Command, now_ms: int) -> None:
    """Queue ``message`` for ``device``, in the caller's transaction; an id that is there already stays as it is."""
    payload = messages.encode(message)
    leaf: Literal["review", "command"] = "review" if isinstance(message, ReviewMessage) else "command"
    row = {
        "id": message.id,
        "device": device,
        "leaf": leaf,
        "capture_id": message.capture_id,
        "sha256": messages.sha256(payload),
        "payload": payload,
        "created_ms": now_ms,
        "next_ms": now_ms,
        "attempts": 0,
    }
    connection.execute(database.insert(tables.outbox).on_conflict_do_nothing(index_elements=["id"]), row)


def any_due(connection: Connection, now_ms: int) -> bool:
    """Whether a row waits to be sent; cheap, takes no lock."""
    return connection.execute(select(_outbox.id).where(_outbox.next_ms <= now_ms).limit(1)).first() is not None


def take_due(
    connection: Connection, now_ms: int, *, retry_from: float, retry_to: float, limit: int = 200
) -> list[Waiting]:
    """The rows that are due, those never sent first; each is put off by its pause (seconds) at once.

    Putting off before publishing means that a crash between the two costs one pause, never the row.
    """
    due = (
        select(_outbox.id, _outbox.device, _outbox.leaf, _outbox.payload, _outbox.attempts)
        .where(_outbox.next_ms <= now_ms)
        .order_by(_outbox.attempts, _outbox.created_ms)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(due).all()
    if rows:
        put_off = (
            update(tables.outbox)
            .where(_outbox.id == bindparam("key"), _outbox.closed_ms.is_(None))
            .values(next_ms=bindparam("then_ms"), attempts=_outbox.attempts + 1)
        )
        changes = [
            {"key": row.id, "then_ms": now_ms + round(1000 * min(retry_to, retry_from * 2.0 ** min(row.attempts, 30)))}
            for row in rows
        ]
        connection.execute(put_off, changes)
    return [Waiting(row.id, _topic(row), row.payload, row.attempts) for row in rows]


def close(connection: Connection, arrivals: list[ReceiptArrival], now_ms: int) -> None:
    """Take the boxes' receipts: ``stored`` and ``conflict`` close a row, ``refused`` keeps it and notes the reason."""
    closing: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for arrival in arrivals:
        for item in arrival.message.items:
            row = {
                "key": item.id,
                "hash": item.sha256,
                "key_device": arrival.address.key,
                "why": item.reason.replace("\0", "") or None,
            }
            if item.status in ("stored", "conflict"):
                closing.append({**row, "now_ms": now_ms, "answer": item.status})
            elif item.status == "refused":
                refused.append(row)
    for statement, rows in ((_CLOSE, closing), (_REFUSED, refused)):
        if rows:
            connection.execute(statement, sorted(rows, key=lambda row: str(row["key"])))


def hurry(connection: Connection, devices: list[str], now_ms: int) -> None:
    """Make everything open for ``devices`` due now: they came online."""
    if devices:
        change = update(tables.outbox).where(_outbox.device.in_(devices), _outbox.closed_ms.is_(None))
        connection.execute(change.values(next_ms=now_ms))


def open_rows(connection: Connection, device: str | None = None) -> int:
    """How many rows wait for a box's word."""
    query = select(func.count()).select_from(tables.outbox).where(_outbox.closed_ms.is_(None))
    return connection.execute(query if device is None else query.where(_outbox.device == device)).scalar_one()


def delivery(connection: Connection, ids: list[str]) -> dict[str, tuple[int | None, str | None, int]]:
    """Of each row: (closed at, outcome, attempts)."""
    query = select(_outbox.id, _outbox.closed_ms, _outbox.outcome, _outbox.attempts).where(_outbox.id.in_(ids))
    return {row.id: (row.closed_ms, row.outcome, row.attempts) for row in connection.execute(query)}


def _topic(row: Any) -> str:
    leaf: Down = "review" if row.leaf == "review" else "command"
    return address(row.device).down(leaf)
