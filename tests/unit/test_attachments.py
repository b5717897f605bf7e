"""A capture belongs to whom a person confirmed, and every word about it stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.records import Patient
from appliance.store import audit
from appliance.store.attachments import within
from appliance.store.errors import StoreError
from appliance.store.patients import Changed, Known, Visit
from appliance.store.store import Store
from tests.boxes import DEVICE, keep, now, open_store

SURE = ("number", "name")
AMINA = Patient(id="17", name="Otieno^Amina", sex="F", age_years=34.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


def enter(store: Store, patient: Patient) -> Known:
    return store.journal.write(lambda tx: store.patients.enter(tx, patient, DEVICE))


def visit(store: Store, patient: Patient, origin: str = "") -> Visit:
    known = enter(store, patient)
    return store.journal.write(lambda tx: store.patients.open_visit(tx, known, now(), origin=origin))


def attach(store: Store, capture: str, to: Visit, seen: int, **rest: object) -> None:
    given = {"by": "nurse-1", "moment": now(), "confirmed": SURE, **rest}
    store.journal.write(lambda tx: store.attachments.attach(tx, capture, to, seen=seen, **given))  # type: ignore[arg-type]


def test_a_patient_without_a_number_gets_a_provisional_one_of_this_box(store: Store) -> None:
    known = enter(store, Patient(age_years=3.0, sex="M"))
    assert known.provisional
    assert known.patient.id.startswith("P-")
    assert known.patient.issuer == DEVICE
    assert [one.key for one in store.patients.with_number(known.patient.id, DEVICE)] == [known.key]


def test_a_number_that_is_taken_is_not_given_to_a_second_patient(store: Store) -> None:
    enter(store, AMINA)
    with pytest.raises(Changed, match="already"):
        enter(store, Patient(id="17", name="Somebody^Else"))
    other = enter(store, Patient(id="18", name="Somebody^Else"))
    with pytest.raises(Changed, match="already"):
        store.journal.write(lambda tx: store.patients.amend(tx, other.key, 0, AMINA))


def test_an_amendment_needs_what_was_seen_and_shows_at_once_in_the_visit(store: Store) -> None:
    opened = visit(store, Patient(age_years=3.0, sex="M"))
    number = Patient(id="99", name="Baraka", sex="M", age_years=3.0)
    store.journal.write(lambda tx: store.patients.amend(tx, opened.known.key, 0, number))
    assert store.patients.need(opened.id).patient == number
    assert not store.patients.need(opened.id).known.provisional
    with pytest.raises(Changed, match="look again"):
        store.journal.write(lambda tx: store.patients.amend(tx, opened.known.key, 0, AMINA))


def test_an_entry_of_the_worklist_is_opened_once(store: Store) -> None:
    first = visit(store, AMINA, origin="scheduled:1")
    known = first.known
    again = store.journal.write(lambda tx: store.patients.open_visit(tx, known, now(), origin="scheduled:1"))
    assert again.id == first.id
    assert store.patients.opened(["scheduled:1", "scheduled:2"]) == {"scheduled:1": first.id}
    store.journal.write(lambda tx: store.patients.close_visit(tx, first.id))
    assert store.patients.open_visits() == []
    assert [one.id for one in store.patients.visits_of(known.key)] == [first.id]


def test_a_capture_waits_until_two_identifiers_are_confirmed(store: Store) -> None:
    capture, opened = keep(store, b"film", patient=AMINA).capture_id, visit(store, AMINA)
    assert store.attachments.waiting() == [capture]
    with pytest.raises(StoreError, match="2 identifiers"):
        attach(store, capture, opened, 0, confirmed=("number", "number", "shoe size"))
    assert store.attachments.current(capture) is None
    attach(store, capture, opened, 0)
    assert store.attachments.waiting() == []
    assert store.attachments.of_visit(opened.id) == [capture]
    sent = within(store.captures.get(capture).capture, store.patients.visit(opened.id))
    assert (sent.patient, sent.encounter_id) == (AMINA, opened.id)


def test_a_stale_page_moves_nothing_and_a_correction_keeps_its_trace(store: Store) -> None:
    capture = keep(store, b"film").capture_id
    first, second = visit(store, AMINA), visit(store, Patient(id="18", name="Juma"))
    attach(store, capture, first, 0)
    with pytest.raises(Changed, match="look again"):
        attach(store, capture, second, 0)
    attach(store, capture, second, 1, by="nurse-2", differs=("name",))
    store.journal.write(lambda tx: store.attachments.detach(tx, capture, seen=2, by="nurse-2", moment=now()))
    assert [(one.visit, one.by) for one in store.attachments.history(capture)] == [
        *((first.id, "nurse-1"), (second.id, "nurse-2"), ("", "nurse-2")),
    ]
    assert store.attachments.waiting() == [capture]
    events = [row["event"] for row in audit.entries(store.journal)][-3:]
    assert events == ["attached", "moved", "detached"]
    said = " ".join(row["detail"] for row in audit.entries(store.journal))
    assert "sender differs in name" in said
    assert "Otieno" not in said
    assert "Juma" not in said
