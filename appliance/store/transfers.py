"""Transfers: blobs on their way to the hub, resumed where its receipt says.

Rules:

1. A transfer's bytes lie in the vault before its row is written; its id derives from capture, kind and bytes.
2. ``confirmed`` only grows with the hub's receipts, except that a hub may say a smaller offset (it lost its disk): then it
   is believed, because what it doesn't have must be sent.
3. It is closed only by a ``stored`` receipt with its SHA-256, sent by the hub after it has compared the whole.
"""

from __future__ import annotations

from typing import NamedTuple

from appliance.protocol.chunks import Kind, transfer_id
from appliance.store.journal import Journal, Row, Transaction
from appliance.store.outbox import Outcome


class Transfer(NamedTuple):
    """A blob on its way. ``confirmed``: bytes from the start that the hub holds durably."""

    sequence: int
    id: str
    capture_id: str
    kind: Kind
    priority: int
    critical: bool
    sha256: str
    size: int
    media_type: str
    encoding: str
    confirmed: int


class Transfers:
    """The state machine of transfers."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def put(
        self,
        tx: Transaction,
        *,
        capture_id: str,
        kind: Kind,
        priority: int,
        sha256: str,
        size: int,
        media_type: str,
        encoding: str = "",
        critical: bool = False,
    ) -> bool:
        """Add a transfer of a blob in the vault; whether it is new."""
        identity = transfer_id(capture_id, kind, sha256)
        if tx.one("SELECT 1 FROM transfer WHERE id = ?", identity):
            return False
        tx.insert(
            "INSERT INTO transfer (id, capture_id, kind, priority, critical, sha256, size, media_type, encoding)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            identity,
            capture_id,
            kind,
            int(priority),
            int(critical),
            sha256,
            size,
            media_type,
            encoding,
        )
        return True

    def confirm(self, tx: Transaction, identity: str, sha256: str, offset: int) -> bool:
        """The hub holds ``offset`` bytes; whether the receipt belongs to a waiting transfer."""
        return bool(
            tx.run(
                "UPDATE transfer SET confirmed = min(?, size) WHERE id = ? AND sha256 = ? AND state = 'waiting'",
                offset,
                identity,
                sha256,
            )
        )

    def close(self, tx: Transaction, identity: str, sha256: str, outcome: Outcome, reason: str = "") -> str | None:
        """Apply a final receipt; the capture it belongs to, or ``None`` if it closes nothing."""
        row = tx.one("SELECT capture_id, sha256, state FROM transfer WHERE id = ?", identity)
        if row is None or row["sha256"] != sha256 or row["state"] == "delivered":
            return None
        state = "waiting" if outcome == "refused" else outcome
        grown = ", confirmed = size" if outcome == "delivered" else ""
        tx.run(f"UPDATE transfer SET state = ?, reason = ?{grown} WHERE id = ?", state, reason[:500], identity)  # noqa: S608
        capture_id: str = row["capture_id"]
        return capture_id

    def reopen(self, tx: Transaction, capture_id: str) -> int:
        """Send a capture's blobs again from the start; how many."""
        return tx.run(
            "UPDATE transfer SET state = 'waiting', confirmed = 0, reason = '' WHERE capture_id = ?", capture_id
        )

    def waiting(self, limit: int = 20) -> list[Transfer]:
        """What waits, most urgent first."""
        rows = self._journal.all(
            "SELECT * FROM transfer WHERE state = 'waiting' ORDER BY priority, sequence LIMIT ?", limit
        )
        return [_transfer(row) for row in rows]

    def get(self, identity: str) -> Transfer | None:
        """One transfer, whatever its state."""
        row = self._journal.one("SELECT * FROM transfer WHERE id = ?", identity)
        return _transfer(row) if row else None

    def of_capture(self, capture_id: str) -> list[tuple[Transfer, str]]:
        """The transfers of a capture, each with its state."""
        rows = self._journal.all("SELECT * FROM transfer WHERE capture_id = ? ORDER BY sequence", capture_id)
        return [(_transfer(row), row["state"]) for row in rows]

    def totals(self) -> tuple[int, int]:
        """Transfers that wait and the bytes of them that the hub doesn't hold."""
        row = self._journal.one(
            "SELECT count(*) AS n, coalesce(sum(size - confirmed), 0) AS b FROM transfer WHERE state = 'waiting'"
        )
        return (row["n"], row["b"]) if row else (0, 0)


def _transfer(row: Row) -> Transfer:
    return Transfer(
        sequence=row["sequence"],
        id=row["id"],
        capture_id=row["capture_id"],
        kind=row["kind"],
        priority=row["priority"],
        critical=bool(row["critical"]),
        sha256=row["sha256"],
        size=row["size"],
        media_type=row["media_type"],
        encoding=row["encoding"],
        confirmed=row["confirmed"],
    )
