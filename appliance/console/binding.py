"""Whose capture it is: what a person is shown, what they confirm, and that nothing else is attached than what they saw.

What this module keeps true:

1. The target of an attachment stands in what was shown and sent back, never in a session's or a tablet's "present patient":
   another tab, another person or a restart can't change it.
2. Every showing carries a seal over all that was on it: the capture and its present word, the visit, the patient as known, what
   the sender said, and to whom it was shown. A confirmation is checked against the present inside the transaction that
   writes it; when any of it is no longer so, nothing is attached and the person looks again.
3. What the sender of a capture says otherwise than the patient's record is said before, by name, and is confirmed apart.
4. A capture begun within a confirmed visit (a ticket) is attached in the very transaction that keeps it, or else kept without
   a patient and confirmed afterwards. It is never lost and never given to somebody else.
"""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Callable, Collection
from typing import NamedTuple, cast

import msgspec

from appliance.console.words import N_
from appliance.records import Moment, Patient, Record
from appliance.store.attachments import IDENTIFIERS, NEEDED, Attachment, Identifier
from appliance.store.captures import Kept
from appliance.store.errors import StoreError
from appliance.store.journal import Transaction
from appliance.store.patients import Changed, Known, Visit
from appliance.store.store import Store

_YEARS_APART = 2.0
"""Ages that differ by less are one age: boxes round, and birthdays come."""


class Who(Record, frozen=True, kw_only=True):
    """The person at the screen. ``session``: opaque, another one after each sign-in; ``id`` stands in the audit log."""

    id: str = "nobody"
    name: str = ""
    role: str = "nurse"
    session: str = ""


class Unsure(Exception):  # noqa: N818 - the condition's name
    """It can't be attached like this; the message says what is missing, in words of the catalogue."""


class Compared(Record, frozen=True, kw_only=True):
    """One identifier: of the patient here, as the sender said it, and whether they agree (``None``: can't be compared)."""

    identifier: Identifier
    agrees: bool | None = None


class Offer(Record, frozen=True, kw_only=True):
    """What is shown before a confirmation. ``said``: whom the sender named; ``seal``: goes back with the confirmation."""

    visit: Visit
    said: Patient
    compared: tuple[Compared, ...]
    seen: int
    seal: str

    @property
    def differs(self) -> tuple[Identifier, ...]:
        """What the sender says otherwise."""
        return tuple(one.identifier for one in self.compared if one.agrees is False)

    @property
    def identifiers(self) -> tuple[Identifier, ...]:
        """By what this patient can be made sure of."""
        return identifiers_of(self.visit.patient)


class Confirmation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes back. ``although``: the identifiers whose difference the person was shown and accepts."""

    visit: str
    seal: str
    confirmed: tuple[str, ...] = ()
    although: tuple[str, ...] = ()


class Held(NamedTuple):
    """A visit confirmed for captures that are still to come.

    ``patient`` and ``visit.id`` go into the capture's facts (``patient``, ``encounter_id``); ``attach`` is the ``also`` of
    ``Incoming.keep``. It never raises: what changed meanwhile leaves the capture waiting to be confirmed.
    """

    visit: Visit
    attach: Callable[[Transaction, Kept], None]

    @property
    def patient(self) -> Patient:
        """Whom the captures are of."""
        return self.visit.patient


def identifiers_of(patient: Patient) -> tuple[Identifier, ...]:
    """The identifiers that are known of a patient."""
    known = {
        "number": bool(patient.id),
        "name": bool(patient.name.strip("^ ")),
        "birth-date": bool(patient.birth_date),
        "age-and-sex": patient.age_years is not None and bool(patient.sex),
    }
    return tuple(one for one in IDENTIFIERS if known[one])


def offer(store: Store, who: Who, visit_id: str, capture_id: str = "", tx: Transaction | None = None) -> Offer:
    """What to show before a capture is attached to a visit; without a capture, before one is taken within it.

    Raises ``StoreError`` when there is no such visit or capture.
    """
    visit = store.patients.need(visit_id, tx)
    said = store.captures.get(capture_id).capture.patient if capture_id else Patient()
    present = store.attachments.current(capture_id, tx) if capture_id else None
    seen = present.revision if present else 0
    shown = _shown_to(who, capture_id, seen, visit, said)
    return Offer(
        visit=visit,
        said=said,
        compared=compare(visit.known, said),
        seen=seen,
        seal=store.key.blind("offer:" + msgspec.json.encode(shown).decode()),
    )


def attach(
    store: Store, tx: Transaction, who: Who, capture_id: str, confirmation: Confirmation, moment: Moment
) -> Attachment:
    """Attach a capture to what was confirmed; raises ``Changed``, or ``Unsure`` with what is missing."""
    shown = _checked(store, tx, who, capture_id, confirmation)
    if set(confirmation.although) != set(shown.differs):
        raise Unsure(N_("The sender of this capture names somebody else. Look at both before you confirm."))
    return store.attachments.attach(
        tx,
        capture_id,
        shown.visit,
        seen=shown.seen,
        by=who.id,
        moment=moment,
        confirmed=_sure(confirmation),
        differs=shown.differs,
    )


def ticket(store: Store, who: Who, confirmation: Confirmation) -> str:
    """Confirm a visit for captures to come: the ticket for pages that take them. Raises ``Changed`` or ``Unsure``."""
    visit = _checked(store, None, who, "", confirmation).visit
    fields = (visit.id, str(visit.known.revision), "~".join(_sure(confirmation)))
    return ".".join((*fields, _stamp(store, who, visit, fields)))


def held(store: Store, who: Who, text: str, now: Callable[[], Moment]) -> Held | None:
    """The visit of a ticket; ``None`` when it is not one, not this person's, or the patient changed since."""
    *fields, stamp = text.split(".")
    visit = store.patients.visit(fields[0]) if len(fields) == 3 else None
    if visit is None or not hmac.compare_digest(stamp.encode(), _stamp(store, who, visit, fields).encode()):
        return None
    confirmed = cast("list[Identifier]", fields[2].split("~"))
    if fields[1] != str(visit.known.revision) or not visit.is_open:
        return None

    def write(tx: Transaction, kept: Kept) -> None:
        present = store.patients.visit(visit.id, tx)
        if present != visit or store.attachments.current(kept.capture_id, tx) is not None:
            return
        store.attachments.attach(
            tx, kept.capture_id, visit, seen=0, by=who.id, moment=now(), confirmed=confirmed, differs=()
        )

    return Held(visit, write)


def compare(known: Known, said: Patient) -> tuple[Compared, ...]:
    """Each identifier of the patient beside what a sender said."""
    here = known.patient
    number = None if known.provisional or not here.id or not said.id else here.id.strip() == said.id.strip()
    agreement: dict[Identifier, bool | None] = {
        "number": number,
        "name": _names_agree(here.name, said.name),
        "birth-date": here.birth_date == said.birth_date if here.birth_date and said.birth_date else None,
        "age-and-sex": _bodies_agree(here, said),
    }
    return tuple(Compared(identifier=one, agrees=agreement[one]) for one in IDENTIFIERS)


def _shown_to(who: Who, capture_id: str, seen: int, visit: Visit, said: Patient) -> tuple[object, ...]:
    """All that a confirmation depends on."""
    return who.session, capture_id, seen, visit.id, visit.is_open, visit.known, said


def _checked(store: Store, tx: Transaction | None, who: Who, capture_id: str, confirmation: Confirmation) -> Offer:
    try:
        shown = offer(store, who, confirmation.visit, capture_id, tx)
    except Changed:
        raise
    except StoreError as error:
        raise Changed(str(error)) from error
    if not hmac.compare_digest(shown.seal.encode(), confirmation.seal.encode()) or not shown.visit.is_open:
        raise Changed(N_("Something changed since this was shown. Look again, then confirm."))
    sure = _sure(confirmation)
    if len(sure) < NEEDED or not set(sure) <= set(shown.identifiers):
        raise Unsure(N_("Confirm two things by which you know the patient."))
    return shown


def _sure(confirmation: Confirmation) -> tuple[Identifier, ...]:
    return tuple(one for one in IDENTIFIERS if one in confirmation.confirmed)


def _stamp(store: Store, who: Who, visit: Visit, fields: Collection[str]) -> str:
    return store.key.blind("ticket:" + "\0".join((who.session, who.id, visit.known.key, *fields)))


def _names_agree(here: str, said: str) -> bool | None:
    """Whether two names are one: the same words in any order. ``None``: one is part of the other, or there is only one."""
    mine, theirs = _name_words(here), _name_words(said)
    if not mine or not theirs:
        return None
    if mine == theirs:
        return True
    return None if mine < theirs or theirs < mine else False


def _name_words(name: str) -> frozenset[str]:
    plain = unicodedata.normalize("NFKD", name.split("=", maxsplit=1)[0].replace("^", " ")).casefold()
    letters = "".join(one for one in plain if not unicodedata.combining(one))
    return frozenset(letters.replace("-", " ").replace(",", " ").split())


def _bodies_agree(here: Patient, said: Patient) -> bool | None:
    if here.sex and said.sex and here.sex != said.sex:
        return False
    if here.age_years is None or said.age_years is None:
        return True if here.sex and said.sex else None
    lowest, highest = here.age_years, here.age_years if here.age_until is None else here.age_until
    near = lowest - _YEARS_APART < said.age_years < highest + _YEARS_APART
    if not near:
        return False
    return True if here.sex and said.sex else None
