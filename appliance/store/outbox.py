"""The outbox: everything that must reach the hub, closed only by the hub's receipt (promise 3), most urgent first (promise 4).

Rules:

1. A message is put in the same transaction as the state that it reports. Putting the same id again with the same bytes
   changes nothing; with other bytes it is refused: ids derive from content.
2. Nothing is ever marked as sent: sending is not a state. What the link sent and has no receipt for is sent again.
3. A row is closed only by a receipt of the same id *and* SHA-256. A ``conflict`` receipt sets it aside, visibly: it is not
   sent again by itself. A ``refused`` one leaves it waiting, with the reason beside it: the hub could not take it now.
4. Order: priority, then sequence. Priorities are those of ``Priority``; a transfer's bytes share one order with messages.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Sequence
from typing import Literal, NamedTuple

from appliance.records import Triage
from appliance.store.errors import Damaged, IllegalTransition, StoreError
from appliance.store.journal import Reader, Row, Transaction
from appliance.store.keys import BoxKey

Outcome = Literal["delivered", "conflict", "refused"]
"""``refused``: the hub can't take it now (its disk is full, say): the row goes on waiting, with the reason beside it."""


class Priority(enum.IntEnum):
    """The order of the uplink (promise 4): the smallest number that waits is sent next."""

    CRITICAL_RESULT = 0
    RECEIPT = 1
    CRITICAL_PREVIEW = 2
    URGENT_RESULT = 3
    RESULT = 4
    URGENT_PREVIEW = 5
    PREVIEW = 6
    CRITICAL_ORIGINAL = 7
    URGENT_ORIGINAL = 8
    ORIGINAL = 9
    TELEMETRY = 10

    @staticmethod
    def of(kind: Literal["result", "preview", "original"], triage: Triage) -> Priority:
        """The priority of a result, a preview or an original of this triage level."""
        order = {
            "result": (Priority.CRITICAL_RESULT, Priority.URGENT_RESULT, Priority.RESULT),
            "preview": (Priority.CRITICAL_PREVIEW, Priority.URGENT_PREVIEW, Priority.PREVIEW),
            "original": (Priority.CRITICAL_ORIGINAL, Priority.URGENT_ORIGINAL, Priority.ORIGINAL),
        }
        return order[kind][triage.rank]


class Item(NamedTuple):
    """A message that waits; ``size`` is its payload's, in bytes."""

    sequence: int
    id: str
    capture_id: str
    leaf: str
    priority: int
    critical: bool
    sha256: str
    size: int


class Outbox:
    """The state machine of outgoing messages."""

    def __init__(self, journal: Reader, key: BoxKey) -> None:
        self._journal = journal
        self._key = key

    def put(
        self,
        tx: Transaction,
        *,
        message_id: str,
        capture_id: str,
        leaf: str,
        priority: int,
        sha256: str,
        payload: bytes,
    ) -> bool:
        """Add a message; whether it is new."""
        row = tx.one("SELECT sha256 FROM outbox WHERE id = ?", message_id)
        if row is not None:
            if row["sha256"] != sha256:
                raise IllegalTransition(f"{message_id}: already in the outbox with other content")
            return False
        tx.insert(
            "INSERT INTO outbox (id, capture_id, leaf, priority, critical, sha256, size, sealed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            message_id,
            capture_id,
            leaf,
            int(priority),
            int(priority == Priority.CRITICAL_RESULT),
            sha256,
            len(payload),
            self._key.seal(payload, f"outbox:{message_id}"),
        )
        return True

    def close(self, tx: Transaction, message_id: str, sha256: str, outcome: Outcome, reason: str = "") -> str | None:
        """Apply a receipt; the capture it belongs to, or ``None`` if no waiting row has this id and hash."""
        row = tx.one("SELECT capture_id, sha256, state FROM outbox WHERE id = ?", message_id)
        if row is None or row["sha256"] != sha256 or row["state"] == "delivered":
            return None
        state = "waiting" if outcome == "refused" else outcome
        tx.run("UPDATE outbox SET state = ?, reason = ? WHERE id = ?", state, reason[:500], message_id)
        capture_id: str = row["capture_id"]
        return capture_id

    def close_delivered(self, tx: Transaction, confirmed: Sequence[tuple[str, str]]) -> set[str]:
        """``close`` as delivered for many (id, SHA-256) at once; the captures that the closed rows belong to."""
        if not confirmed:
            return set()
        marks = ", ".join(["(?, ?)"] * len(confirmed))
        rows = tx.all(
            f"WITH receipt (id, sha256) AS (VALUES {marks})"  # noqa: S608 - marks only
            " UPDATE outbox SET state = 'delivered', reason = '' FROM receipt WHERE outbox.id = receipt.id"
            " AND outbox.sha256 = receipt.sha256 AND outbox.state <> 'delivered' RETURNING capture_id",
            *(value for pair in confirmed for value in pair),
        )
        return {row[0] for row in rows}

    def reopen(self, tx: Transaction, capture_id: str) -> int:
        """Send everything of a capture again (the hub asked for it); how many rows."""
        return tx.run("UPDATE outbox SET state = 'waiting', reason = '' WHERE capture_id = ?", capture_id)

    def waiting(self, limit: int = 500, after: tuple[int, int] = (-1, 0)) -> list[Item]:
        """What waits, most urgent first; ``after``: only what comes later than this (priority, sequence)."""
        rows = self._journal.all(
            "SELECT sequence, id, capture_id, leaf, priority, critical, sha256, size FROM outbox"
            " WHERE state = 'waiting' AND (priority, sequence) > (?, ?) ORDER BY priority, sequence LIMIT ?",
            *after,
            limit,
        )
        return [Item(*row) for row in rows]

    def payload(self, message_id: str) -> bytes:
        """The bytes to send; raises ``StoreError`` if there is no such message."""
        row = self._journal.one("SELECT sealed FROM outbox WHERE id = ?", message_id)
        if row is None:
            raise StoreError(f"no message {message_id!r} in the outbox")
        return self._key.unseal(row["sealed"], f"outbox:{message_id}")

    def payloads(self, message_ids: Sequence[str]) -> dict[str, bytes]:
        """The bytes to send of several messages; those that can't be unsealed are missing."""
        marks = ", ".join("?" * len(message_ids))
        rows = self._journal.all(f"SELECT id, sealed FROM outbox WHERE id IN ({marks})", *message_ids)  # noqa: S608
        found = {}
        for identity, sealed in rows:
            with contextlib.suppress(Damaged):
                found[identity] = self._key.unseal(sealed, f"outbox:{identity}")
        return found

    def trouble(self, tx: Transaction, message_id: str, reason: str) -> None:
        """Note why a message can't be sent now."""
        tx.run("UPDATE outbox SET reason = ? WHERE id = ? AND state = 'waiting'", reason[:500], message_id)

    def state(self, message_id: str) -> str | None:
        """The state of a message."""
        row = self._journal.one("SELECT state FROM outbox WHERE id = ?", message_id)
        return row["state"] if row else None

    def totals(self) -> tuple[int, int]:
        """Messages and bytes that wait."""
        row = self._journal.one("SELECT count(*) AS n, coalesce(sum(size), 0) AS b FROM outbox WHERE state = 'waiting'")
        return (row["n"], row["b"]) if row else (0, 0)

    def set_aside(self) -> list[Row]:
        """Rows that the hub refused or that conflict there, for a human to look at."""
        return self._journal.all(
            "SELECT id, capture_id, state, reason FROM outbox WHERE state = 'conflict' OR reason <> ''"
        )
