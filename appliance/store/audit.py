"""The audit log: append-only, each line chained to the one before by SHA-256, its end witnessed by the box's key.

What this module keeps true: an entry holds what happened to which capture or setting and never who the patient is; an
entry that is changed, removed or put between breaks the chain at that place, and one that is missing at the end contradicts
the head, which only this box can write (``judge``). Who has the box's key too can write another log, and is found by the
checkpoints that the hub holds (``checkpoints``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from appliance.records import Moment
from appliance.store.checkpoints import contradiction
from appliance.store.journal import Journal, Row, Transaction

_START = "0" * 64
_HEAD = "audit-head"


def append(tx: Transaction, moment: Moment, event: str, subject: str, detail: str = "") -> None:
    """Write one entry in the caller's transaction."""
    last = tx.one("SELECT chain FROM audit ORDER BY sequence DESC LIMIT 1")
    before = last["chain"] if last else _START
    chain = _link(before, moment.wall, moment.boot_id, moment.monotonic_ns, event, subject, detail)
    sequence = tx.insert(
        "INSERT INTO audit (wall, boot_id, monotonic_ns, event, subject, detail, chain) VALUES (?, ?, ?, ?, ?, ?, ?)",
        moment.wall,
        moment.boot_id,
        moment.monotonic_ns,
        event,
        subject,
        detail,
        chain,
    )
    tx.run(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        _HEAD,
        _head(sequence, chain, tx.witness),
    )


def head_problem(tx: Transaction) -> str:
    """What is wrong with the log's end, empty when nothing is or when an older program wrote it, which had no head."""
    head = tx.one("SELECT value FROM meta WHERE key = ?", _HEAD)
    if head is None:
        return ""
    last = tx.one("SELECT sequence, chain FROM audit ORDER BY sequence DESC LIMIT 1")
    said = _head(int(last["sequence"]), str(last["chain"]), tx.witness) if last else ""
    return (
        ""
        if said == head["value"]
        else f"the log ended at entry {head['value'].partition(' ')[0][:20]}, and does not now"
    )


def entries(journal: Journal) -> Iterator[Row]:
    """All entries, oldest first."""
    yield from journal.all("SELECT * FROM audit ORDER BY sequence")


class Verdict(NamedTuple):
    """How many entries there are, the first that is not as it was written (``None``: all are), and in words."""

    entries: int
    broken: int | None
    words: str


def judge(
    rows: Sequence[Row],
    head: str | None,
    checkpoints: Sequence[Row],
    witness: Callable[[str], str],
    public: Collection[bytes] | None,
) -> Verdict:
    """The verdict on a whole log. ``witness``: that of the box's key; ``public``: the keys that it signed with."""
    broken = first_broken(rows)
    if broken is not None:
        return Verdict(len(rows), broken, f"entry {broken} was changed, removed or put between")
    last = rows[-1] if rows else None
    if head != (_head(int(last["sequence"]), str(last["chain"]), witness) if last else None):
        after = len(rows) + 1
        return Verdict(len(rows), after, f"entries from {after} on were removed, or the head is not this box's")
    wrong = contradiction(rows, checkpoints, public)
    if wrong is not None:
        return Verdict(len(rows), wrong, f"the signed checkpoint at entry {wrong} says otherwise")
    said = next((int(row["sequence"]) for row in rows if row["event"] == "broken"), None)
    if said is not None:
        return Verdict(len(rows), said, f"entry {said} says that the log was shortened before it")
    return Verdict(len(rows), None, f"unbroken, {len(checkpoints)} checkpoints")


def verify(journal: Journal) -> int | None:
    """The sequence of the first entry that breaks the chain, or ``None``."""
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


def head_of(connection: Any) -> str | None:
    """The head as it is kept, of a SQLite connection."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_HEAD,)).fetchone()
    return str(row[0]) if row else None


def _head(sequence: int, chain: str, witness: Callable[[str], str]) -> str:
    return f"{sequence} {chain} {witness(f'audit {sequence} {chain}')}"


def _link(before: str, *fields: str | int) -> str:
    return hashlib.sha256(chr(0).join((before, *map(str, fields))).encode()).hexdigest()
