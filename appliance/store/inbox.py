"""The inbox: what the hub said, kept before it is confirmed, each once.

Rules: the same id with the same bytes is confirmed again and changes nothing; the same id with other bytes is a conflict,
counted beside the first and never put in its place.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from appliance.protocol.messages import Command, ReviewMessage
from appliance.store.journal import Reader, Transaction
from appliance.store.keys import BoxKey

Taken = Literal["new", "duplicate", "conflict"]


class Inbox:
    """The state machine of incoming reviews and commands."""

    def __init__(self, journal: Reader, key: BoxKey) -> None:
        self._journal = journal
        self._key = key

    def take(self, tx: Transaction, message: ReviewMessage | Command, sha256: str, wall: str) -> Taken:
        """Keep a message; what it was."""
        row = tx.one("SELECT sha256 FROM inbox WHERE id = ?", message.id)
        if row is not None:
            if row["sha256"] == sha256:
                return "duplicate"
            tx.run("UPDATE inbox SET conflicts = conflicts + 1 WHERE id = ?", message.id)
            return "conflict"
        tx.insert(
            "INSERT INTO inbox (id, leaf, capture_id, sha256, wall, sealed) VALUES (?, ?, ?, ?, ?, ?)",
            message.id,
            "review" if isinstance(message, ReviewMessage) else "command",
            message.capture_id or "",
            sha256,
            wall,
            self._key.seal(msgspec.json.encode(message), f"inbox:{message.id}"),
        )
        return "new"

    def reviews(self, capture_id: str) -> list[ReviewMessage]:
        """The reviews of a capture, in the order they came."""
        rows = self._journal.all(
            "SELECT id, sealed FROM inbox WHERE capture_id = ? AND leaf = 'review' ORDER BY sequence", capture_id
        )
        return [
            msgspec.json.decode(self._key.unseal(row["sealed"], f"inbox:{row['id']}"), type=ReviewMessage)
            for row in rows
        ]

    def commands(self, capture_id: str) -> list[Command]:
        """The commands about a capture, in the order they came."""
        rows = self._journal.all(
            "SELECT id, sealed FROM inbox WHERE capture_id = ? AND leaf = 'command' ORDER BY sequence", capture_id
        )
        return [
            msgspec.json.decode(self._key.unseal(row["sealed"], f"inbox:{row['id']}"), type=Command) for row in rows
        ]

    def noted(self, capture_id: str) -> bool:
        """Whether the hub said that a human has taken note of a capture."""
        return any(command.kind == "acknowledged" for command in self.commands(capture_id))

    def reviewed(self) -> int:
        """Captures with at least one review."""
        row = self._journal.one("SELECT count(DISTINCT capture_id) AS n FROM inbox WHERE leaf = 'review'")
        return row["n"] if row else 0
