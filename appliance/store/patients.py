"""Patients and their visits on this box: whom captures can be attached to.

Rules:

1. A patient is known by a key of the box's own (random), never by a number that somebody typed: numbers can be wrong, shared
   or changed. What is known of a patient is sealed; only a blinded number can be searched for.
2. A patient who has no number gets a provisional one that no other box gives out (its issuer is this box). The hub may
   replace it later: that is an ``amend`` like a corrected name, with the key, the visits and the attachments as they were.
3. Whoever changes a patient says which revision they saw; another revision is refused (``Changed``), so that nobody confirms
   or overwrites what they have not seen.
4. The same scheduled visit (its origin in the worklist) is opened once.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import msgspec

from appliance.records import Moment, Patient, Record
from appliance.store.errors import StoreError
from appliance.store.journal import Reader, Row, Transaction
from appliance.store.keys import BoxKey

_LETTERS = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
"""Of a provisional number: nothing that is read as something else (0 and O, 1, I and L)."""


class Changed(StoreError):  # noqa: N818 - the condition's name
    """What the person saw is no longer so: look again, then decide."""


class Known(Record, frozen=True, kw_only=True):
    """A patient of this box. ``key`` is the box's own; ``provisional``: the number was given out by this box."""

    key: str
    revision: int
    patient: Patient
    provisional: bool = False


class Visit(Record, frozen=True, kw_only=True):
    """One encounter: a patient at this place now. ``id`` is random and travels to the hub as ``encounter_id``.

    ``origin`` names the worklist's entry that it came from (blinded), ``procedure`` and ``accession_number`` what was asked.
    """

    id: str
    known: Known
    opened: Moment
    sequence: int
    is_open: bool = True
    accession_number: str = ""
    procedure: str = ""

    @property
    def patient(self) -> Patient:
        """Whose visit it is."""
        return self.known.patient


class _Asked(Record, frozen=True, kw_only=True):
    """What is sealed of a visit."""

    accession_number: str = ""
    procedure: str = ""


class Patients:
    """The patients and visits of a journal. ``issuer`` names this box in provisional numbers."""

    def __init__(self, journal: Reader, key: BoxKey) -> None:
        self._journal = journal
        self._key = key

    def enter(self, tx: Transaction, patient: Patient, issuer: str = "") -> Known:
        """A patient who was not known here; without a number they get a provisional one of ``issuer``.

        Raises ``Changed`` when the number is already a patient's of this box: look whether it is the same person.
        """
        provisional = not patient.id
        if provisional:
            patient = msgspec.structs.replace(patient, id=self._number(tx, issuer), issuer=issuer)
        elif self.with_number(patient.id, patient.issuer, tx):
            raise Changed("this number is already a patient's here; look whether it is the same person")
        known = Known(key=secrets.token_hex(16), revision=0, patient=patient, provisional=provisional)
        tx.insert(
            "INSERT INTO patient (key, revision, number_key, provisional, sealed) VALUES (?, 0, ?, ?, ?)",
            known.key,
            self._blind(patient),
            int(provisional),
            self._sealed(known.key, patient),
        )
        return known

    def amend(self, tx: Transaction, key: str, revision: int, patient: Patient, *, provisional: bool = False) -> Known:
        """Change what is known of a patient; raises ``Changed`` unless ``revision`` is the present one."""
        row = tx.one("SELECT * FROM patient WHERE key = ?", key)
        if row is None or row["revision"] != revision:
            raise Changed("somebody changed this patient meanwhile; look again")
        if any(one.key != key for one in self.with_number(patient.id, patient.issuer, tx)):
            raise Changed("this number is already another patient's here; look whether it is the same person")
        tx.run(
            "UPDATE patient SET revision = revision + 1, number_key = ?, provisional = ?, sealed = ? WHERE key = ?",
            self._blind(patient),
            int(provisional),
            self._sealed(key, patient),
            key,
        )
        return Known(key=key, revision=revision + 1, patient=patient, provisional=provisional)

    def open_visit(
        self,
        tx: Transaction,
        known: Known,
        moment: Moment,
        *,
        origin: str = "",
        accession_number: str = "",
        procedure: str = "",
    ) -> Visit:
        """Open a visit; the one there is when the worklist's entry ``origin`` was opened before."""
        blind = self._key.blind(f"origin:{origin}") if origin else ""
        row = tx.one("SELECT id FROM visit WHERE origin = ? AND origin <> ''", blind) if blind else None
        if row is not None:
            return self.need(str(row["id"]), tx)
        asked = _Asked(accession_number=accession_number, procedure=procedure)
        identity = secrets.token_hex(16)
        sequence = tx.insert(
            "INSERT INTO visit (id, patient, origin, boot_id, monotonic_ns, wall, sealed) VALUES (?, ?, ?, ?, ?, ?, ?)",
            identity,
            known.key,
            blind,
            moment.boot_id,
            moment.monotonic_ns,
            moment.wall,
            self._key.seal(msgspec.json.encode((moment, asked)), f"visit:{identity}"),
        )
        return Visit(
            id=identity,
            known=known,
            opened=moment,
            sequence=sequence,
            accession_number=accession_number,
            procedure=procedure,
        )

    def close_visit(self, tx: Transaction, visit_id: str) -> bool:
        """The patient has left; whether the visit was open. What is attached stays attached."""
        return bool(tx.run("UPDATE visit SET open = 0 WHERE id = ? AND open = 1", visit_id))

    def reopen_visit(self, tx: Transaction, visit_id: str) -> bool:
        """The patient is here after all; whether the visit was closed."""
        return bool(tx.run("UPDATE visit SET open = 1 WHERE id = ? AND open = 0", visit_id))

    def visit(self, visit_id: str, tx: Transaction | None = None) -> Visit | None:
        """A visit with its patient as known now."""
        row = (tx or self._journal).one(f"{_VISITS} WHERE v.id = ?", visit_id)
        return None if row is None else self._visit(row)

    def need(self, visit_id: str, tx: Transaction | None = None) -> Visit:
        """``visit``; raises ``StoreError`` when there is none of this id."""
        found = self.visit(visit_id, tx)
        if found is None:
            raise StoreError(f"no visit {visit_id!r} on this box")
        return found

    def open_visits(self, limit: int = 200) -> list[Visit]:
        """The visits of patients who are here, newest first."""
        rows = self._journal.all(f"{_VISITS} WHERE v.open = 1 ORDER BY v.sequence DESC LIMIT ?", limit)
        return [self._visit(row) for row in rows]

    def visits_of(self, key: str, tx: Transaction | None = None) -> list[Visit]:
        """All visits of a patient, newest first."""
        rows = (tx or self._journal).all(f"{_VISITS} WHERE v.patient = ? ORDER BY v.sequence DESC", key)
        return [self._visit(row) for row in rows]

    def opened(self, origins: Iterable[str]) -> dict[str, str]:
        """Which of the worklist's entries have been opened: origin to the visit's id."""
        found = {}
        for origin in origins:
            row = self._journal.one("SELECT id FROM visit WHERE origin = ?", self._key.blind(f"origin:{origin}"))
            if row is not None:
                found[origin] = str(row["id"])
        return found

    def with_number(self, number: str, issuer: str = "", tx: Transaction | None = None) -> list[Known]:
        """The patients who have this number of this issuer."""
        if not number:
            return []
        blind = self._blind(Patient(id=number, issuer=issuer))
        rows = (tx or self._journal).all("SELECT * FROM patient WHERE number_key = ?", blind)
        return [self._known(row) for row in rows]

    def _number(self, tx: Transaction, issuer: str) -> str:
        while True:
            number = "P-" + "".join(secrets.choice(_LETTERS) for _ in range(6))
            if not self.with_number(number, issuer, tx):
                return number

    def _visit(self, row: Row) -> Visit:
        plain = self._key.unseal(row["visit_sealed"], f"visit:{row['id']}")
        moment, asked = msgspec.json.decode(plain, type=tuple[Moment, _Asked])
        return Visit(
            id=row["id"],
            known=self._known(row),
            opened=moment,
            sequence=row["sequence"],
            is_open=bool(row["open"]),
            accession_number=asked.accession_number,
            procedure=asked.procedure,
        )

    def _known(self, row: Row) -> Known:
        plain = self._key.unseal(row["sealed"], f"patient:{row['key']}")
        patient = msgspec.json.decode(plain, type=Patient)
        return Known(key=row["key"], revision=row["revision"], patient=patient, provisional=bool(row["provisional"]))

    def _sealed(self, key: str, patient: Patient) -> bytes:
        return self._key.seal(msgspec.json.encode(patient), f"patient:{key}")

    def _blind(self, patient: Patient) -> str:
        return self._key.blind(f"patient:{patient.issuer}\0{patient.id}")


_VISITS = (
    "SELECT v.id, v.sequence, v.open, v.sealed AS visit_sealed, p.* FROM visit v JOIN patient p ON p.key = v.patient"
)
