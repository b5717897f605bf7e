"""Which visit a capture belongs to, who confirmed it by what, and what was said before.

Rules:

1. A capture belongs to no visit until a person confirmed two identifiers of the patient, or began it within a visit that was
   so confirmed. Nothing is attached because numbers agree.
2. Each word is a row of its own (``revision``, from 1); the newest counts, earlier ones stay. Detaching is a word too.
3. Whoever attaches says which revision they saw (0: none); another one is refused (``Changed``): a stale page, a second
   tablet or a repeated click can't move a capture that was moved meanwhile.
4. The audit log gets the same word in the same transaction: who, which identifiers, which of them the sender contradicts,
   and never what they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from appliance.records import Capture, Moment, Patient, Record
from appliance.store import audit
from appliance.store.errors import StoreError
from appliance.store.journal import Reader, Row, Transaction
from appliance.store.patients import Changed, Visit

Identifier = Literal["number", "name", "birth-date", "age-and-sex"]
"""By what a person makes sure that it is the patient; an age and a sex together count as one."""

IDENTIFIERS: tuple[Identifier, ...] = ("number", "name", "birth-date", "age-and-sex")
NEEDED = 2
"""So many identifiers must be confirmed."""


class Attachment(Record, frozen=True, kw_only=True):
    """The newest word on a capture. ``visit``: empty when it was detached. ``differs``: what the sender contradicts."""

    capture_id: str
    revision: int
    visit: str
    by: str
    wall: str
    confirmed: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


class Attachments:
    """The state machine of attachments in a journal."""

    def __init__(self, journal: Reader) -> None:
        self._journal = journal

    def attach(
        self,
        tx: Transaction,
        capture_id: str,
        visit: Visit,
        *,
        seen: int,
        by: str,
        moment: Moment,
        confirmed: Iterable[Identifier],
        differs: Iterable[str] = (),
    ) -> Attachment:
        """Attach a capture to a visit, or move it there; raises ``Changed`` unless ``seen`` is the present revision.

        ``by``: who confirmed (the person's id); ``differs``: the identifiers that the sender says otherwise, which the
        person was shown and decided about.
        """
        sure = tuple(dict.fromkeys(one for one in confirmed if one in IDENTIFIERS))
        if len(sure) < NEEDED:
            raise StoreError(f"{NEEDED} identifiers of the patient must be confirmed; {len(sure)} were")
        return self._write(tx, capture_id, visit.id, seen, by, moment, sure, tuple(differs))

    def detach(self, tx: Transaction, capture_id: str, *, seen: int, by: str, moment: Moment) -> Attachment:
        """Take a capture away from its visit: it waits to be confirmed again."""
        return self._write(tx, capture_id, "", seen, by, moment, (), ())

    def current(self, capture_id: str, tx: Transaction | None = None) -> Attachment | None:
        """The newest word on a capture; ``None`` when nobody has said anything."""
        row = (tx or self._journal).one(
            "SELECT * FROM attachment WHERE capture_id = ? ORDER BY revision DESC LIMIT 1", capture_id
        )
        return None if row is None else _attachment(row)

    def history(self, capture_id: str) -> list[Attachment]:
        """Every word on a capture, oldest first."""
        rows = self._journal.all("SELECT * FROM attachment WHERE capture_id = ? ORDER BY revision", capture_id)
        return [_attachment(row) for row in rows]

    def of_visit(self, visit_id: str, tx: Transaction | None = None) -> list[str]:
        """The captures attached to a visit now, in the order they came."""
        rows = (tx or self._journal).all(
            "SELECT a.capture_id FROM attachment a JOIN capture c ON c.id = a.capture_id WHERE a.visit = ?"
            " AND a.revision = (SELECT max(revision) FROM attachment WHERE capture_id = a.capture_id)"
            " ORDER BY c.sequence",
            visit_id,
        )
        return [row["capture_id"] for row in rows]

    def waiting(self, limit: int = 100) -> list[str]:
        """The captures that wait to be confirmed, newest first."""
        rows = self._journal.all(
            "SELECT c.id FROM capture c LEFT JOIN attachment a ON a.capture_id = c.id"
            " AND a.revision = (SELECT max(revision) FROM attachment WHERE capture_id = c.id)"
            " WHERE coalesce(a.visit, '') = '' ORDER BY c.sequence DESC LIMIT ?",
            limit,
        )
        return [row["id"] for row in rows]

    def _write(
        self,
        tx: Transaction,
        capture_id: str,
        visit: str,
        seen: int,
        by: str,
        moment: Moment,
        confirmed: tuple[str, ...],
        differs: tuple[str, ...],
    ) -> Attachment:
        if tx.one("SELECT 1 FROM capture WHERE id = ?", capture_id) is None:
            raise StoreError(f"no capture {capture_id!r} on this box")
        present = self.current(capture_id, tx)
        if (present.revision if present else 0) != seen:
            raise Changed("somebody attached or moved this capture meanwhile; look again")
        tx.insert(
            "INSERT INTO attachment (capture_id, revision, visit, by, confirmed, differs, boot_id, monotonic_ns, wall)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            capture_id,
            seen + 1,
            visit,
            by,
            " ".join(confirmed),
            " ".join(differs),
            moment.boot_id,
            moment.monotonic_ns,
            moment.wall,
        )
        detail = f"visit={visit or '-'} by={by} confirmed={','.join(confirmed) or '-'}"
        if differs:
            detail += f" although the sender differs in {','.join(differs)}"
        event = "detached" if not visit else "moved" if present and present.visit else "attached"
        audit.append(tx, moment, event, capture_id, detail)
        return Attachment(
            capture_id=capture_id,
            revision=seen + 1,
            visit=visit,
            by=by,
            wall=moment.wall,
            confirmed=confirmed,
            differs=differs,
        )


def within(capture: Capture, visit: Visit | None, word: Attachment | None = None) -> Capture:
    """The capture as it goes out: the patient and the visit that a person confirmed stand before what the sender said.

    Where a person took it away from a visit (``word``), it is nobody's until somebody says whose it is.
    """
    if visit is not None:
        return msgspec.structs.replace(capture, patient=visit.patient, encounter_id=visit.id)
    if word is not None:
        return msgspec.structs.replace(capture, patient=Patient(), encounter_id="")
    return msgspec.structs.replace(capture, encounter_id="") if capture.encounter_id else capture


def _attachment(row: Row) -> Attachment:
    return Attachment(
        capture_id=row["capture_id"],
        revision=row["revision"],
        visit=row["visit"],
        by=row["by"],
        wall=row["wall"],
        confirmed=tuple(row["confirmed"].split()),
        differs=tuple(row["differs"].split()),
    )
