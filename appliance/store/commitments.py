"""Requests for storage commitment: what a sender wants confirmed before it deletes its own copy.

Rules: a request is durable before it is accepted; it waits until its result has been taken by the sender, over any number of
restarts; the result is worked out anew at each attempt from what the journal and the vault hold then. The same transaction
asked again with the same references waits again; with others it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from appliance.records import Record
from appliance.store.captures import sealed_as
from appliance.store.errors import Damaged, IllegalTransition, StoreError
from appliance.store.journal import Reader, Row, Transaction
from appliance.store.keys import BoxKey

NO_SUCH_INSTANCE = 0x0112
"""Failure reasons: PS3.3, C.14.1.1."""
OTHER_CLASS = 0x0119
PROCESSING_FAILURE = 0x0110


class Reference(Record, frozen=True, kw_only=True):
    """An instance that is asked for."""

    sop_class_uid: str
    instance_uid: str


class Request(Record, frozen=True, kw_only=True):
    """A sender's request; ``requester`` is its AE title."""

    requester: str
    transaction_uid: str
    references: tuple[Reference, ...]


class Waiting(NamedTuple):
    """A request whose result has not been taken."""

    id: str
    attempts: int
    request: Request


class Verdict(NamedTuple):
    """An instance that was asked for; ``failure`` is 0 when it is safe here, else the reason why it is not."""

    reference: Reference
    failure: int


class Commitments:
    """The state machine of commitment requests."""

    def __init__(self, journal: Reader, key: BoxKey, check: Callable[[str], None]) -> None:
        """``check`` raises ``Damaged`` or ``OSError`` unless the blob of this SHA-256 can be read and has this hash."""
        self._journal = journal
        self._key = key
        self._check = check

    def ask(self, tx: Transaction, request: Request, wall: str) -> None:
        """Keep a request; raises ``IllegalTransition`` when the transaction is known with other references."""
        name = self._key.blind(f"commitment:{request.requester}\0{request.transaction_uid}")
        row = tx.one("SELECT id, sealed FROM commitment WHERE id = ?", name)
        if row is None:
            sealed = self._key.seal(msgspec.msgpack.encode(request), f"commitment:{name}")
            tx.insert(
                "INSERT INTO commitment (id, requester, wall, sealed) VALUES (?, ?, ?, ?)",
                name,
                request.requester,
                wall,
                sealed,
            )
        elif self._request(row) != request:
            raise IllegalTransition("the transaction UID was used before for other instances")
        else:
            tx.run("UPDATE commitment SET state = 'waiting', attempts = 0 WHERE id = ?", name)

    def waiting(self, requester: str = "") -> list[Waiting]:
        """Requests whose result has not been taken, in the order they came; of one requester, or of all."""
        rows = self._journal.all(
            "SELECT id, attempts, sealed FROM commitment WHERE state = 'waiting' AND (? = '' OR requester = ?1)"
            " ORDER BY sequence LIMIT 1000",
            requester,
        )
        return [Waiting(row["id"], row["attempts"], self._request(row)) for row in rows]

    def judge(self, request: Request) -> list[Verdict]:
        """What is true now of each instance that was asked for: its row is here, and its bytes have the hash of its row."""
        return [Verdict(reference, self._failure(reference)) for reference in request.references]

    def attempted(self, tx: Transaction, name: str) -> None:
        """The result could not be handed over this time."""
        self._change(tx, "attempts = attempts + 1", name)

    def reported(self, tx: Transaction, name: str) -> None:
        """The sender has taken the result."""
        self._change(tx, "state = 'reported'", name)

    def given_up(self, tx: Transaction, name: str) -> None:
        """The result is not offered any more; asking again makes it wait again."""
        self._change(tx, "state = 'given-up'", name)

    def counts(self) -> dict[str, int]:
        """Requests by state."""
        return {
            row["state"]: row["n"] for row in self._journal.all("SELECT state, count(*) n FROM commitment GROUP BY 1")
        }

    def _change(self, tx: Transaction, what: str, name: str) -> None:
        if not tx.run(f"UPDATE commitment SET {what} WHERE id = ? AND state = 'waiting'", name):  # noqa: S608 - ours
            raise IllegalTransition("no such commitment request waits")

    def _failure(self, reference: Reference) -> int:
        rows = self._journal.all(
            "SELECT id, sha256, sealed FROM capture WHERE instance_key = ? AND instance_key <> '' AND removed = ''",
            self._key.blind(f"instance:{reference.instance_uid}"),
        )
        if not rows:
            return NO_SUCH_INSTANCE
        try:
            for row in rows:  # every version of it that is kept: the sender can't say which one it means
                plain = msgspec.json.decode(self._key.unseal(row["sealed"], sealed_as(row["id"])))
                if plain.get("sop_class_uid", "") != reference.sop_class_uid:
                    return OTHER_CLASS
                self._check(row["sha256"])
        except (Damaged, StoreError, OSError):
            return PROCESSING_FAILURE
        return 0

    def _request(self, row: Row) -> Request:
        return msgspec.msgpack.decode(self._key.unseal(row["sealed"], f"commitment:{row['id']}"), type=Request)
