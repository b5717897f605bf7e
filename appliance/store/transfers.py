"""Transfers: blobs on their way to the hub, resumed where its receipt says.

Rules:

1. A transfer's bytes lie in the vault before its row is written; its id derives from capture, kind and bytes.
2. ``confirmed`` only grows with the hub's receipts, except that a hub may say a smaller offset (it lost its disk): then it
   is believed, because what it doesn't have must be sent.
3. It is closed only by a ``stored`` receipt with its SHA-256, sent by the hub after it has compared the whole.
4. An original is *due* from the moment its capture is reported until it is *prepared*: encoded for the link or, when that
   is not possible, as it is. One transaction ends the one and begins the other, so that no original is ever forgotten. The
   attempt is counted before it begins; the second one doesn't encode.
5. ``conflict`` sets a transfer aside; an encoded original that the hub can't restore goes as it is instead.
6. ``removed``: the bytes may leave the vault (they are delivered, and the capture goes or has its original beside them).
"""

from __future__ import annotations

from typing import NamedTuple

from appliance.protocol.chunks import Kind, transfer_id
from appliance.store.errors import IllegalTransition, StoreError
from appliance.store.journal import Reader, Row, Transaction
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


class Due(NamedTuple):
    """An original to be prepared. ``attempts``: how often that was begun before."""

    capture_id: str
    priority: int
    critical: bool
    attempts: int


class Transfers:
    """The state machine of transfers."""

    def __init__(self, journal: Reader) -> None:
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
        row = tx.one("SELECT * FROM transfer WHERE id = ?", identity)
        if row is None or row["sha256"] != sha256 or row["state"] == "delivered":
            return None
        if outcome == "conflict" and row["encoding"]:
            return self._send_plain(tx, row)
        state = "waiting" if outcome == "refused" else outcome
        grown = ", confirmed = size" if outcome == "delivered" else ""
        tx.run(f"UPDATE transfer SET state = ?, reason = ?{grown} WHERE id = ?", state, reason[:500], identity)  # noqa: S608
        capture_id: str = row["capture_id"]
        return capture_id

    def _send_plain(self, tx: Transaction, row: Row) -> str:
        """The hub can't make the original of this encoding: the original itself goes instead."""
        capture = tx.one("SELECT id, sha256, size FROM capture WHERE id = ?", row["capture_id"])
        if capture is None:
            raise StoreError(f"transfer {row['id']}: its capture {row['capture_id']} is not in the journal")
        tx.run("DELETE FROM transfer WHERE id = ?", row["id"])
        self.put(
            tx,
            capture_id=capture["id"],
            kind=row["kind"],
            priority=row["priority"],
            sha256=capture["sha256"],
            size=capture["size"],
            media_type=row["media_type"],
            critical=bool(row["critical"]),
        )
        identity: str = capture["id"]
        return identity

    def reopen(self, tx: Transaction, capture_id: str) -> int:
        """Send a capture's blobs again from the start; how many. What is no longer in the vault is not sent again."""
        spent = tx.one(
            "SELECT t.id, t.priority, t.critical FROM transfer t JOIN capture c ON c.id = t.capture_id"
            " WHERE c.id = ? AND c.removed = '' AND t.kind = 'original' AND t.removed = 1",
            capture_id,
        )
        if spent is not None:
            tx.run("DELETE FROM transfer WHERE id = ?", spent["id"])
            self.put_due(tx, capture_id, spent["priority"], critical=bool(spent["critical"]))
        again = "UPDATE transfer SET state = 'waiting', confirmed = 0, reason = '' WHERE capture_id = ? AND removed = 0"
        return tx.run(again, capture_id) + (spent is not None)

    def put_due(self, tx: Transaction, capture_id: str, priority: int, *, critical: bool) -> None:
        """The capture's original is to be sent once it is prepared."""
        tx.run(
            "INSERT INTO original (capture_id, priority, critical) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            capture_id,
            int(priority),
            int(critical),
        )

    def next_due(self) -> Due | None:
        """The most urgent original that is due, the oldest of them."""
        row = self._journal.one(
            "SELECT o.* FROM original o JOIN capture c ON c.id = o.capture_id ORDER BY o.priority, c.sequence LIMIT 1"
        )
        return Due(row["capture_id"], row["priority"], bool(row["critical"]), row["attempts"]) if row else None

    def begin_preparing(self, tx: Transaction, capture_id: str) -> None:
        """Count an attempt before it begins."""
        tx.run("UPDATE original SET attempts = attempts + 1 WHERE capture_id = ?", capture_id)

    def prepared(
        self, tx: Transaction, due: Due, *, sha256: str, size: int, media_type: str, encoding: str = ""
    ) -> None:
        """The original stands in the vault as it will be sent (``sha256``, ``size``): it waits for the link now."""
        if not tx.run("DELETE FROM original WHERE capture_id = ?", due.capture_id):
            raise IllegalTransition(f"capture {due.capture_id}: its original is not due")
        self.put(
            tx,
            capture_id=due.capture_id,
            kind="original",
            priority=due.priority,
            sha256=sha256,
            size=size,
            media_type=media_type,
            encoding=encoding,
            critical=due.critical,
        )

    def give_up(self, tx: Transaction, due: Due) -> None:
        """The original is gone from the disk: there is nothing to send."""
        tx.run("DELETE FROM original WHERE capture_id = ?", due.capture_id)

    def removed(self, tx: Transaction, capture_id: str) -> list[str]:
        """The bytes of all of a capture's transfers may go; their SHA-256."""
        rows = tx.all("SELECT sha256 FROM transfer WHERE capture_id = ? AND removed = 0", capture_id)
        tx.run("UPDATE transfer SET removed = 1 WHERE capture_id = ?", capture_id)
        return [row["sha256"] for row in rows]

    def remove_spent(self, tx: Transaction, limit: int = 100) -> list[str]:
        """Encoded originals that were delivered are not needed beside the originals themselves; their SHA-256."""
        rows = tx.all(
            "SELECT id, sha256 FROM transfer WHERE encoding <> '' AND state = 'delivered' AND removed = 0"
            " ORDER BY sequence LIMIT ?",
            limit,
        )
        for row in rows:
            tx.run("UPDATE transfer SET removed = 1 WHERE id = ?", row["id"])
        return [row["sha256"] for row in rows]

    def trouble(self, tx: Transaction, identity: str, reason: str) -> None:
        """Note why a transfer can't be sent now."""
        tx.run("UPDATE transfer SET reason = ? WHERE id = ? AND state = 'waiting'", reason[:500], identity)

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
        """Transfers that wait or are due, and the bytes of them that the hub doesn't hold."""
        row = self._journal.one(
            "SELECT count(*) AS n, coalesce(sum(b), 0) AS b FROM (SELECT size - confirmed AS b FROM transfer"
            " WHERE state = 'waiting' UNION ALL SELECT c.size FROM original o JOIN capture c ON c.id = o.capture_id)"
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
