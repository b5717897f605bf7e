"""What people do about patients at the console: enter, open a visit, attach, correct; the same for the pages and the API.

What this module keeps true: each act is one transaction with its line in the audit log (who, on what, never the patient's
name); what the hub should know of it stands in the outbox when the act is committed.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal, cast

import msgspec

from appliance.console import binding
from appliance.console.bands import BANDS, Band
from appliance.console.binding import Confirmation, Who
from appliance.console.context import Context
from appliance.console.words import N_
from appliance.records import Patient, Record
from appliance.store import audit
from appliance.store.attachments import Attachment
from appliance.store.journal import Transaction
from appliance.store.patients import Changed, Known, Visit
from appliance.store.worklist import ScheduledStep

_TEXT = 64


class Planned(Record, frozen=True, kw_only=True, omit_defaults=False):
    """An entry of the worklist; ``origin`` names it, ``visit`` is the visit that was opened from it, or empty."""

    origin: str
    step: ScheduledStep
    visit: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A patient as entered at the bedside: all but age and sex may be left out.

    ``band``: one of ``BANDS``, or an exact ``age_years``.
    """

    sex: Literal["F", "M", "O"]
    number: str = ""
    name: str = ""
    band: str = ""
    age_years: float | None = None
    birth_date: str = ""


class Taken(Changed):
    """The number is a patient's already: ``known`` are those who have it."""

    def __init__(self, known: list[Known]) -> None:
        super().__init__(N_("This number is already a patient's here. Look whether it is the same person."))
        self.known = known


class Unclear(Exception):  # noqa: N818 - the condition's name
    """What was entered can't be taken; the message names the field, in words of the catalogue."""


class Reception:
    """The acts of one console."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def enter(self, who: Who, entry: Entry) -> Visit:
        """A new patient and their visit. Raises ``Unclear``, or ``Taken`` when the number is somebody's."""
        patient = patient_of(entry)
        present = self._store.patients.with_number(patient.id, patient.issuer)
        if present:
            raise Taken(present)
        moment = self._store.now()

        def write(tx: Transaction) -> Visit:
            known = self._store.patients.enter(tx, patient, self._context.device)
            visit = self._store.patients.open_visit(tx, known, moment)
            audit.append(tx, moment, "patient-entered", known.key, f"by={who.id} provisional={known.provisional}")
            audit.append(tx, moment, "visit-opened", visit.id, f"patient={known.key} by={who.id}")
            return visit

        return self._store.journal.write(write)

    def open(self, who: Who, key: str, revision: int) -> Visit:
        """A visit of a patient who was here before, as ``revision`` showed them; the open one when there is one."""
        moment = self._store.now()

        def write(tx: Transaction) -> Visit:
            past = tx.one("SELECT id FROM visit WHERE patient = ? ORDER BY open DESC, sequence DESC", key)
            visit = None if past is None else self._store.patients.visit(past["id"], tx)
            if visit is None or visit.known.revision != revision:
                raise Changed(N_("Something changed since this was shown. Look again, then confirm."))
            if visit.is_open:
                return visit
            visit = self._store.patients.open_visit(tx, visit.known, moment)
            audit.append(tx, moment, "visit-opened", visit.id, f"patient={key} by={who.id}")
            return visit

        return self._store.journal.write(write)

    def start(self, who: Who, origin: str) -> Visit:
        """The visit of an entry of the worklist. Raises ``Changed`` when it is not there (any more), ``Taken``."""
        step = next((one.step for one in self.planned() if one.origin == origin), None)
        if step is None:
            raise Changed(N_("This is not on the worklist any more. Look again."))
        moment = self._store.now()

        def write(tx: Transaction) -> Visit:
            present = self._store.patients.with_number(step.patient.id, step.patient.issuer, tx)
            known = next((one for one in present if _same(one, step.patient)), None)
            if known is None and present:
                raise Taken(present)
            if known is None:
                known = self._store.patients.enter(tx, step.patient, self._context.device)
            visit = self._store.patients.open_visit(
                tx,
                known,
                moment,
                origin=origin,
                accession_number=step.accession_number,
                procedure=step.procedure or step.step,
            )
            audit.append(tx, moment, "visit-opened", visit.id, f"patient={known.key} by={who.id} from the worklist")
            return visit

        return self._store.journal.write(write)

    def amend(self, who: Who, visit_id: str, revision: int, entry: Entry) -> Known:
        """Correct what is known of a visit's patient; everything attached to them is reported again. Raises ``Taken``."""
        visit = self._need(visit_id)
        before = visit.known
        patient = patient_of(entry)
        if not patient.id:
            patient = msgspec.structs.replace(patient, id=before.patient.id, issuer=before.patient.issuer)
        elif patient.id == before.patient.id:
            patient = msgspec.structs.replace(patient, issuer=before.patient.issuer)
        others = [one for one in self._store.patients.with_number(patient.id, patient.issuer) if one.key != before.key]
        if others:
            raise Taken(others)
        provisional = before.provisional and patient.id == before.patient.id
        moment = self._store.now()

        def write(tx: Transaction) -> Known:
            known = self._store.patients.amend(tx, before.key, revision, patient, provisional=provisional)
            changed = ",".join(
                name for name in patient.__struct_fields__ if getattr(patient, name) != getattr(before.patient, name)
            )
            audit.append(tx, moment, "patient-amended", before.key, f"by={who.id} changed={changed or '-'}")
            for one in self._store.patients.visits_of(before.key, tx):
                for capture_id in self._store.attachments.of_visit(one.id, tx):
                    self._context.report_again(tx, capture_id)
            return known

        known = self._store.journal.write(write)
        self._context.wake()
        return known

    def close(self, who: Who, visit_id: str) -> None:
        """The patient has left."""
        self._mark(who, visit_id, "visit-closed")

    def reopen(self, who: Who, visit_id: str) -> None:
        """The patient is here after all."""
        self._mark(who, visit_id, "visit-reopened")

    def attach(self, who: Who, capture_id: str, confirmation: Confirmation) -> Attachment:
        """Attach a capture to what was confirmed; raises ``Changed`` or ``Unsure``."""
        moment = self._store.now()

        def write(tx: Transaction) -> Attachment:
            done = binding.attach(self._store, tx, who, capture_id, confirmation, moment)
            self._context.report_again(tx, capture_id)
            return done

        done = self._store.journal.write(write)
        self._context.wake()
        return done

    def detach(self, who: Who, capture_id: str, seen: int) -> Attachment:
        """Take a capture away from its visit; raises ``Changed``."""
        moment = self._store.now()

        def write(tx: Transaction) -> Attachment:
            done = self._store.attachments.detach(tx, capture_id, seen=seen, by=who.id, moment=moment)
            self._context.report_again(tx, capture_id)
            return done

        done = self._store.journal.write(write)
        self._context.wake()
        return done

    def planned(self) -> list[Planned]:
        """The worklist as it last answered."""
        steps = {_origin(step): step for step in self._store.worklist.answer().steps}
        opened = self._store.patients.opened(steps)
        return [Planned(origin=one, step=step, visit=opened.get(one, "")) for one, step in steps.items()]

    def _mark(self, who: Who, visit_id: str, event: str) -> None:
        self._need(visit_id)
        moment, patients = self._store.now(), self._store.patients

        def write(tx: Transaction) -> None:
            change = patients.close_visit if event == "visit-closed" else patients.reopen_visit
            if change(tx, visit_id):
                audit.append(tx, moment, event, visit_id, f"by={who.id}")

        self._store.journal.write(write)

    def _need(self, visit_id: str) -> Visit:
        return self._store.patients.need(visit_id)


def patient_of(entry: Entry) -> Patient:
    """The record of what was entered; raises ``Unclear``."""
    band = BANDS.get(entry.band)
    if entry.band and band is None:
        raise Unclear(N_("Choose the age from the list."))
    years = entry.age_years
    if years is not None and not (math.isfinite(years) and 0 <= years <= 130):
        raise Unclear(N_("The age must be a number of years from 0 to 130."))
    if years is None and band is None:
        raise Unclear(N_("Choose the age from the list."))
    if entry.birth_date and not (len(entry.birth_date) == 8 and entry.birth_date.isdecimal()):
        raise Unclear(N_("The date of birth must have a year, a month and a day."))
    texts = [" ".join(text.split()) for text in (entry.number, entry.name)]
    if any(len(text) > _TEXT or not text.isprintable() for text in texts):
        raise Unclear(N_("A name or number is too long. At most 120 characters fit."))
    exact = years is not None
    return Patient(
        id=texts[0],
        name=texts[1],
        birth_date=entry.birth_date,
        sex=entry.sex,
        age_years=years if exact else cast("Band", band).low,
        age_until=None if exact else cast("Band", band).high,
    )


def _same(known: Known, said: Patient) -> bool:
    """Whether a worklist's patient is the one with that number here: nothing that both say differs."""
    return not any(one.agrees is False for one in binding.compare(known, said))


def _origin(step: ScheduledStep) -> str:
    fields = (step.patient.id, step.accession_number, step.procedure_id, step.step_id, step.study_uid, step.date)
    return hashlib.sha256("\0".join(fields).encode()).hexdigest()[:32]
