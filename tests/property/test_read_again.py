"""What was not read for want of an age is read when a person says it: never lost, never read twice without a reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest

from appliance.config import LinkConfig
from appliance.inference.worker import Result
from appliance.pipeline import Pipeline
from appliance.protocol import messages
from appliance.reading.requests import Preview, ReadRequest
from appliance.records import CaptureState, Patient, Reading, Refusal, Triage
from appliance.store import audit
from appliance.store.attachments import Identifier
from appliance.store.patients import Visit
from appliance.sync.report import AGE_NEEDED, READ_AGAIN, report_again
from tests.boxes import DEVICE, keep, now, open_store, reading

SURE: tuple[Identifier, ...] = ("number", "name")


class AgeReaders:
    """Reads what it is told an age of and refuses the rest; ``meanwhile`` happens while a reading runs."""

    def __init__(self) -> None:
        self.ages: list[tuple[str, float | None]] = []
        self.meanwhile: Callable[[str], None] = lambda _capture: None
        self.stubborn = False

    def submit(self, request: bytes, priority: int, timeout_s: float) -> Future[Result]:
        asked = msgspec.msgpack.decode(request, type=ReadRequest)
        future: Future[Result] = Future()
        body: Preview | Reading = Preview(media_type="image/jpeg", data=b"jpeg " + asked.sha256.encode())
        if not asked.preview:
            self.ages.append((asked.known.capture_id, asked.known.age_years))
            self.meanwhile(asked.known.capture_id)
            body = self.reading(asked.known.capture_id, asked.known.age_years)
        future.set_result(Result(status="ok", body=msgspec.msgpack.encode(body), reason=""))
        return future

    def reading(self, capture_id: str, age: float | None) -> Reading:
        if age is not None and not self.stubborn:
            return reading(capture_id, Triage.CRITICAL)
        refusal = Refusal(code=AGE_NEEDED, reason="No age.", advice="Say it.")
        said = reading(capture_id, Triage.URGENT)
        return msgspec.structs.replace(said, status="not_read", findings=(), refusal=refusal)


class Box:
    """A box whose people say whose captures are, as the console does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.readers = folder, AgeReaders()
        self.store = open_store(folder)
        self.visits: list[Visit] = []

    def restart(self) -> None:
        self.store.close()
        self.store = open_store(self.folder)

    def step(self) -> None:
        Pipeline(self.store, self.readers, DEVICE, LinkConfig(send_originals="urgent"), 5.0).step()

    def enter(self, number: str, age: float | None) -> Visit:
        def write(tx):  # type: ignore[no-untyped-def]
            known = self.store.patients.enter(tx, Patient(id=number, name="A", sex="F", age_years=age))
            return self.store.patients.open_visit(tx, known, now())

        self.visits.append(self.store.journal.write(write))
        return self.visits[-1]

    def say_whose(self, capture: str, visit: str) -> None:
        store = self.store

        def write(tx):  # type: ignore[no-untyped-def]
            present = store.attachments.current(capture, tx)
            seen, found = present.revision if present else 0, store.patients.need(visit, tx) if visit else None
            if found is not None:
                store.attachments.attach(tx, capture, found, seen=seen, by="amina", moment=now(), confirmed=SURE)
            elif present is not None:
                store.attachments.detach(tx, capture, seen=seen, by="amina", moment=now())
            report_again(store, tx, DEVICE, capture)

        store.journal.write(write)

    def say_age(self, visit: str, age: float) -> None:
        store = self.store

        def write(tx):  # type: ignore[no-untyped-def]
            known = store.patients.need(visit, tx).known
            changed = msgspec.structs.replace(known.patient, age_years=age)
            store.patients.amend(tx, known.key, known.revision, changed)
            for capture in store.attachments.of_visit(visit, tx):
                report_again(store, tx, DEVICE, capture)

        store.journal.write(write)

    def reasons(self, capture: str) -> int:
        found = self.store.journal.one(
            "SELECT count(*) AS n FROM audit WHERE subject = ? AND event = ?", capture, READ_AGAIN
        )
        return int(found["n"]) if found else 0

    def results(self, capture: str) -> list[messages.Result]:
        rows = self.store.journal.all("SELECT id FROM outbox WHERE capture_id = ? ORDER BY sequence", capture)
        return [messages.decode(self.store.outbox.payload(row["id"]), messages.Result) for row in rows]


@pytest.fixture
def box(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Box(tmp_path)
    yield made
    made.store.close()


def test_a_capture_refused_for_want_of_an_age_is_read_when_its_patient_is_confirmed(box: Box) -> None:
    capture = keep(box.store, b"sound").capture_id
    box.step()
    assert box.results(capture)[0].refusal_code == AGE_NEEDED
    box.say_whose(capture, box.enter("17", 4.0).id)
    box.step()
    box.step()
    assert box.readers.ages == [(capture, None), (capture, 4.0)]
    told = box.results(capture)
    assert [(one.revision, one.status, one.capture.patient.id) for one in told] == [
        (0, "not_read", ""),
        (1, "read", "17"),
    ]
    newest = box.store.captures.reading(capture)
    assert newest is not None
    assert (newest.status, newest.triage) == ("read", Triage.CRITICAL)
    assert box.store.captures.get(capture).state is CaptureState.REPORTED
    assert box.store.captures.triage_counts() == {Triage.CRITICAL: 1}
    assert (box.reasons(capture), audit.verify(box.store.journal)) == (1, None)


def test_an_age_said_while_it_is_being_read_is_not_forgotten(box: Box) -> None:
    capture, visit = keep(box.store, b"sound").capture_id, box.enter("17", 4.0)

    def said(_: str) -> None:
        box.readers.meanwhile = lambda _capture: None
        box.say_whose(capture, visit.id)

    box.readers.meanwhile = said
    box.step()
    box.step()
    assert box.readers.ages == [(capture, None), (capture, 4.0)]
    newest = box.store.captures.reading(capture)
    assert newest is not None
    assert newest.status == "read"


def test_a_patient_whose_age_is_corrected_later_is_reason_enough(box: Box) -> None:
    capture, visit = keep(box.store, b"sound").capture_id, box.enter("17", None)
    box.step()
    box.say_whose(capture, visit.id)
    box.step()
    assert len(box.readers.ages) == 1
    box.say_age(visit.id, 30.0)
    box.step()
    assert box.readers.ages == [(capture, None), (capture, 30.0)]


def test_what_was_read_or_refused_for_another_reason_is_not_read_again(box: Box) -> None:
    aged = keep(box.store, b"sound", patient=Patient(id="9", age_years=50.0)).capture_id
    box.step()
    box.say_whose(aged, box.enter("17", 4.0).id)
    box.step()
    assert box.readers.ages == [(aged, 50.0)]
    assert box.reasons(aged) == 0
    assert len(box.results(aged)) == 2, "the hub is told whose it is all the same"


def test_a_reader_that_refuses_whatever_is_said_is_asked_once_for_each_word_of_a_person(box: Box) -> None:
    box.readers.stubborn = True
    capture, visit = keep(box.store, b"sound").capture_id, box.enter("17", 4.0)
    box.step()
    box.say_whose(capture, visit.id)
    for _ in range(5):
        box.step()
    assert len(box.readers.ages) == 2
    box.say_age(visit.id, 5.0)
    for _ in range(5):
        box.step()
    assert len(box.readers.ages) == 3


def test_what_is_no_longer_on_the_disk_is_reported_as_it_was(box: Box) -> None:
    capture = keep(box.store, b"sound").capture_id
    box.step()
    box.store.vault.remove(box.store.captures.get(capture).capture.sha256)
    box.say_whose(capture, box.enter("17", 4.0).id)
    assert box.store.captures.get(capture).state is CaptureState.REPORTED
    assert [one.capture.patient.id for one in box.results(capture)] == ["", "17"]


@pytest.mark.parametrize("seed", range(6))
def test_in_any_order_nothing_is_lost_and_nothing_read_twice_without_a_reason(tmp_path: Path, seed: int) -> None:
    dice, box = random.Random(seed), Box(tmp_path)
    captures: list[str] = []
    visits = [box.enter("1", None), box.enter("2", 6.0), box.enter("3", 60.0)]
    aged: set[str] = set()

    def somebody(_: str = "") -> None:
        if captures and dice.random() < 0.5:
            box.say_whose(dice.choice(captures), dice.choice(["", *(one.id for one in visits)]))

    box.readers.meanwhile = somebody
    for turn in range(60):
        act = dice.choice(["keep", "step", "whose", "whose", "age", "restart", "delivered"])
        if act == "keep" and len(captures) < 8:
            age = dice.choice([None, None, 33.0])
            captures.append(keep(box.store, b"%d" % turn, patient=Patient(age_years=age)).capture_id)
            aged.update(captures[-1:] if age is not None else ())
        elif act == "step":
            box.step()
        elif act == "whose":
            somebody()
        elif act == "age":
            box.say_age(dice.choice(visits).id, dice.choice([5.0, 40.0]))
        elif act == "restart":
            box.restart()
        elif act == "delivered":
            box.store.journal.write(lambda tx: tx.run("UPDATE outbox SET state = 'delivered'"))
            box.store.journal.write(lambda tx: tx.run("UPDATE transfer SET state = 'delivered'"))
            box.store.journal.write(lambda tx: box.store.captures.delivered_if_complete(tx, *captures))
    box.readers.meanwhile = lambda _: None
    for _ in range(3):
        box.step()
    for capture in captures:
        entry, newest = box.store.captures.get(capture), box.store.captures.reading(capture)
        assert entry.state in (CaptureState.REPORTED, CaptureState.DELIVERED)
        assert newest is not None
        times = sum(one == capture for one, _ in box.readers.ages)
        assert times == box.store.captures.readings(capture) == 1 + box.reasons(capture)
        word = box.store.attachments.current(capture)
        visit = box.store.patients.visit(word.visit) if word is not None and word.visit else None
        if capture in aged or (visit is not None and visit.patient.age_years is not None):
            assert newest.status == "read", "an age is known"
        last = box.results(capture)[-1]
        assert (last.status, last.capture.patient.id) == (newest.status, visit.patient.id if visit is not None else "")
    assert audit.verify(box.store.journal) is None
    box.store.close()
