"""The audit log: append-only, each line chained to the one before by SHA-256.

What this module keeps true: an entry holds what happened to which capture or setting and never who the patient is; an
entry that is changed, removed or put between breaks the chain at that place (``verify``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from appliance.records import Moment
from appliance.store.journal import Journal, Row, Transaction

_START = "0" * 64


def append(tx: Transaction, moment: Moment, event: str, subject: str, detail: str = "") -> None:
    """Write one entry in the caller's transaction."""
    last = tx.one("SELECT chain FROM audit ORDER BY sequence DESC LIMIT 1")
    before = last["chain"] if last else _START
    chain = _link(before, moment.wall, moment.boot_id, moment.monotonic_ns, event, subject, detail)
    tx.insert(
        "INSERT INTO audit (wall, boot_id, monotonic_ns, event, subject, detail, chain) VALUES (?, ?, ?, ?, ?, ?, ?)",
        moment.wall,
        moment.boot_id,
        moment.monotonic_ns,
        event,
        subject,
        detail,
        chain,
    )


def entries(journal: Journal) -> Iterator[Row]:
    """All entries, oldest first."""
    yield from journal.all("SELECT * FROM audit ORDER BY sequence")


def verify(journal: Journal) -> int | None:
    """The sequence of the first entry that is not as it was written, or ``None``."""
    return first_broken(entries(journal))


def first_broken(rows: Iterable[Row]) -> int | None:
    """``verify`` for entries already read, oldest first."""
    before = _START
    for expected, row in enumerate(rows, start=1):
        fields = (row["wall"], row["boot_id"], row["monotonic_ns"], row["event"], row["subject"], row["detail"])
        if row["sequence"] != expected or row["chain"] != _link(before, *fields):
            return expected
        before = row["chain"]
    return None


def _link(before: str, *fields: str | int) -> str:
    return hashlib.sha256(chr(0).join((before, *map(str, fields))).encode()).hexdigest()
