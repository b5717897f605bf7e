"""A thousand interrupted examinations by several people on several screens: no capture becomes the wrong patient's.

The people here are honest and hurried: each sends the form that their screen shows, early, late, twice, from a tab that they
left open, after somebody else signed in on it, with the answer lost on the way, while patients are corrected, visits closed,
captures moved and the box restarted. Now and then a form is sent that no screen showed. The oracle knows what every screen
showed; a word on a capture that is not exactly what the sender's screen showed, at that moment, to that person, is wrong.
"""

from __future__ import annotations

import functools
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from starlette.testclient import TestClient

from appliance.console import binding
from appliance.console.app import make_app
from appliance.console.context import Context, StatusView, Upload
from appliance.console.sessions import Sessions
from appliance.protocol.messages import Result
from appliance.records import Modality, Patient
from appliance.store import audit
from appliance.store.captures import Kept
from appliance.store.people import People, Role
from appliance.store.store import Store
from appliance.sync.report import report_again
from tests.boxes import DEVICE, now, open_store, report
from tests.console_world import QUICK

PINS = {"Amina": "480615", "Juma": "739204"}
FLOWS, OF_ONE_BOX = 1000, 125
NAMES = ("Otieno^Amina", "Otieno^Akinyi", "Mwangi^Juma", "Mwangi^Joseph", "")


class Screen(NamedTuple):
    """What a tab shows: of which capture (empty for captures to come), which visit, who the patient is, to whom."""

    capture: str
    visit: str
    patient: dict[str, Any]
    differs: tuple[str, ...]
    identifiers: tuple[str, ...]
    seal: str
    session: str


class Clinic:
    """A box with its people, patients and screens, and the oracle over them."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder, self.dice = folder, dice
        self.clock = 0.0
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.captures: list[str] = []
        self.visits: list[str] = []
        self.numbers = 0
        self.store = open_store(folder)
        self.people = {
            name: People(self.store.journal, self.store.key, QUICK).enter(name, Role.NURSE, pin).id
            for name, pin in PINS.items()
        }
        self.browsers: list[TestClient] = []
        self.signed: list[str] = []
        self.screens: list[list[Screen]] = [[], [], []]
        self.tickets: list[tuple[str, Screen]] = []
        self.sign_ins = 0
        self.open()

    def open(self) -> None:
        """Serve, as after a start of the box: the browsers keep their cookies and their screens."""
        self.store.people = People(self.store.journal, self.store.key, QUICK)
        store = self.store

        def again(tx: Any, capture_id: str) -> None:
            report_again(store, tx, DEVICE, capture_id)

        context = Context(
            store=store,
            status=StatusView,
            preview=lambda _: None,
            add=self.add,
            note_agreement=lambda *_: None,
            report_again=again,
            device=DEVICE,
        )
        sessions = Sessions(store.people, 300.0, lambda: self.clock)
        app = make_app(context, sessions=sessions)
        cookies = [browser.cookies for browser in self.browsers] or [None] * len(self.screens)
        url = "http://127.0.0.1"
        for browser in self.browsers:
            browser.__exit__()
        self.browsers = [
            TestClient(app, url, cookies=jar, headers={"origin": url}, follow_redirects=False) for jar in cookies
        ]
        for browser in self.browsers:
            browser.__enter__()  # one event loop for all its requests
        self.signed = [""] * len(self.browsers)

    def close(self) -> None:
        for browser in self.browsers:
            browser.__exit__()
        self.store.close()

    def restart(self) -> None:
        self.store.close()
        self.store = open_store(self.folder, reserve=4)
        self.open()

    def add(self, upload: Upload) -> Kept:
        from appliance.capture.intake import Facts, Intake

        with Intake(self.store, DEVICE).open() as incoming:
            incoming.write(upload.data)
            facts = Facts(modality=Modality.HEART_SOUND, media_type="audio/wav", source="console")
            if upload.held is None:
                return incoming.keep(facts)
            return incoming.keep(msgspec.structs.replace(facts, patient=upload.held.patient), upload.held.attach)

    # ---- what people do

    def ask(self, place: int, method: str, path: str, **rest: Any) -> Any:
        """A request of a browser; signed in first if the console asks for it (unless people gave up just then)."""
        answer = self.browsers[place].request(method, path, **rest)
        if answer.status_code == 401:
            self.counts["asked to sign in"] += 1
            self.signed[place] = ""
        return answer

    def sign_in(self, place: int) -> None:
        name = self.dice.choice(list(PINS))
        form = {"person": self.people[name], "pin": PINS[name]}
        assert self.browsers[place].post("/sign-in", data=form).status_code == 303
        self.sign_ins += 1
        self.signed[place] = f"{self.people[name]}/{self.sign_ins}"

    def patient(self, place: int) -> None:
        self.numbers += 1
        entry = {
            "sex": self.dice.choice("FM"),
            "band": self.dice.choice(["adult", "older"]),
            "name": self.dice.choice(NAMES),
            "number": self.dice.choice(["", str(self.numbers)]),
        }
        answer = self.ask(place, "POST", "/api/patients", json=entry)
        if answer.status_code == 201:
            self.visits.append(answer.json()["id"])

    def arrive(self, *_: int) -> None:
        """A capture by DICOM: of somebody who is here, of whom the device was set to before, or of nobody."""
        self.numbers += 1
        said = Patient()
        if self.visits and self.dice.random() < 0.7:
            said = self.store.patients.need(self.dice.choice(self.visits)).patient
        self.captures.append(report_as(self.store, f"film {self.numbers}".encode(), said))

    def look(self, place: int, *, to_take: bool = False) -> None:
        """Open the page that asks for confirmation; the tab keeps it."""
        capture = "" if to_take else self.dice.choice([*self.captures[-3:], ""])
        visit = self.dice.choice(self.visits[-4:])
        answer = self.ask(place, "GET", f"/api/visits/{visit}/offer", params={"capture": capture})
        if answer.status_code != 200:
            return
        shown = answer.json()
        patient = shown["visit"]["known"]["patient"]
        known = binding.identifiers_of(msgspec.convert(patient, Patient))
        differs = tuple(one["identifier"] for one in shown["compared"] if one.get("agrees") is False)
        self.screens[place].append(Screen(capture, visit, patient, differs, known, shown["seal"], self.signed[place]))

    def confirm(self, place: int) -> None:
        """Send a form: mostly the one just opened, also an old tab's; mostly as it is, also with parts of another."""
        if not self.screens[place]:
            return
        screen = self.screens[place][-1] if self.dice.random() < 0.6 else self.dice.choice(self.screens[place])
        capture, visit = screen.capture, screen.visit
        if self.dice.random() < 0.1 and self.captures and self.visits:
            capture, visit = self.dice.choice(
                [(capture, self.dice.choice(self.visits)), (self.dice.choice(self.captures), visit)]
            )
        ticked = self.dice.sample(screen.identifiers, k=min(len(screen.identifiers), self.dice.choice([1, 2, 2, 2, 3])))
        body = {
            "visit": visit,
            "seal": screen.seal,
            "confirmed": ticked,
            "although": list(screen.differs) if self.dice.random() < 0.8 else [],
        }
        path = f"/api/captures/{capture}/attach" if capture else f"/api/visits/{visit}/ticket"
        for _ in range(self.dice.choice([1, 1, 1, 2])):  # a second tap
            before = self.words(capture)
            answer = self.ask(place, "POST", path, json=body)
            if not capture and answer.status_code == 201:
                self.tickets.append((answer.json()["ticket"], screen._replace(session=self.signed[place])))
                self.judge_ticket(screen, visit, place)
            self.counts[f"confirm {answer.status_code}"] += 1
            self.judge(screen, capture, visit, place, before, ticked, body["although"])

    def look_and_confirm(self, place: int) -> None:
        self.look(place)
        self.confirm(place)

    def confirm_and_take(self, place: int) -> None:
        self.look(place, to_take=True)
        self.confirm(place)
        self.take(place)

    def take(self, place: int) -> None:
        """A recording within a confirmed visit: with a ticket, fresh or old, or somebody else's."""
        self.numbers += 1
        fresh = self.tickets[-1:] if self.dice.random() < 0.6 else self.tickets
        ticket, screen = self.dice.choice(fresh) if fresh else ("", None)
        file = {"file": ("x.wav", b"RIFF" + str(self.numbers).encode())}
        answer = self.ask(place, "POST", "/api/captures", files=file, data={"ticket": ticket})
        if answer.status_code != 201:
            return
        capture = answer.json()["capture_id"]
        self.captures.append(capture)
        word = self.store.attachments.current(capture)
        self.counts["taken with a ticket" if word else "taken without a patient"] += 1
        if word is not None:
            self.check(screen is not None and screen.visit == word.visit, "a ticket of another visit")
            self.check(screen is not None and screen.session == self.signed[place], "a ticket of another person")
            self.check(screen is not None and self.identity(word.visit) == screen.patient, "a ticket of who it was not")

    def amend(self, place: int) -> None:
        visit = self.store.patients.need(self.dice.choice(self.visits[-4:]))
        entry = {"sex": visit.patient.sex, "band": "adult", "name": self.dice.choice(NAMES), "number": visit.patient.id}
        body = {"revision": visit.known.revision, "entry": entry}
        self.ask(place, "POST", f"/api/visits/{visit.id}/patient", json=body)

    def detach(self, place: int) -> None:
        capture = self.dice.choice(self.captures[-4:])
        word = self.store.attachments.current(capture)
        if word is not None:
            self.ask(place, "POST", f"/api/captures/{capture}/detach", json={"seen": word.revision})

    def leave(self, place: int) -> None:
        visit = self.dice.choice(self.visits[-4:])
        self.ask(place, "POST", f"/api/visits/{visit}/open", json={"is_open": self.dice.random() < 0.6})

    def idle(self, place: int) -> None:
        """Nobody touches a screen until it locks, or somebody locks it."""
        if self.dice.random() < 0.5:
            self.clock += 301
        else:
            self.browsers[place].post("/sign-out", data={"back": "/"})

    # ---- the oracle

    def words(self, capture: str) -> int:
        return len(self.store.attachments.history(capture)) if capture else 0

    def identity(self, visit: str) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self.store.patients.need(visit).patient)
        return found

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    def judge_ticket(self, screen: Screen, visit: str, place: int) -> None:
        self.check(not screen.capture and screen.visit == visit, "a ticket from another page")
        self.check(screen.session == self.signed[place], "a ticket from somebody else's page")
        self.check(self.identity(visit) == screen.patient, "a ticket for who it was not")

    def judge(
        self, screen: Screen, capture: str, visit: str, place: int, before: int, ticked: list[str], although: list[str]
    ) -> None:
        if not capture or self.words(capture) == before:
            return
        word = self.store.attachments.history(capture)[-1]
        self.counts["attached"] += 1
        self.check(self.words(capture) == before + 1, "said twice")
        self.check((screen.capture, screen.visit) == (capture, visit), "not what the screen showed")
        self.check(word.visit == screen.visit, "another visit")
        self.check(self.identity(word.visit) == screen.patient, "not who the screen showed")
        self.check(screen.session == self.signed[place], "another person's screen")
        self.check(word.by == screen.session.partition("/")[0], "another name for it")
        self.check(len(set(ticked)) >= 2, "not sure by two")
        self.check(set(word.differs) == set(screen.differs) == set(although), "a difference passed over")

    def judge_all(self) -> None:
        """What the journal and the outbox hold in the end."""
        for capture in self.captures:
            word = self.store.attachments.current(capture)
            rows = self.store.journal.all("SELECT id FROM outbox WHERE capture_id = ? ORDER BY sequence", capture)
            if not rows:
                continue
            sent = msgspec.json.decode(self.store.outbox.payload(rows[-1]["id"]), type=Result).capture
            if word is None:
                self.check(sent.encounter_id == "", "a visit that nobody confirmed was sent")
            elif word.visit:
                self.check(sent.encounter_id == word.visit, "another visit was sent")
                self.check(msgspec.to_builtins(sent.patient) == self.identity(word.visit), "another patient was sent")
            else:
                self.check(sent.patient == Patient() and not sent.encounter_id, "a patient taken away was sent")


def report_as(store: Store, content: bytes, said: Patient) -> str:
    """A capture by DICOM that says whom it is of, read and reported."""
    import tests.boxes

    kept = tests.boxes.keep
    try:
        tests.boxes.keep = functools.partial(kept, patient=said)  # type: ignore[assignment]
        return report(store, content)
    finally:
        tests.boxes.keep = kept


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: what a disk does is another test's business."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


def flow(clinic: Clinic) -> None:
    """One examination: begun, interrupted, gone on with."""
    dice = clinic.dice
    acts = (
        [clinic.look] * 2
        + [clinic.look_and_confirm] * 3
        + [clinic.confirm] * 2
        + [clinic.take, clinic.confirm_and_take]
    )
    acts += [clinic.amend, clinic.detach, clinic.leave, clinic.idle, clinic.arrive, clinic.patient]
    clinic.arrive()
    place = dice.randrange(len(clinic.browsers))
    for _ in range(dice.randint(3, 6)):
        place = place if dice.random() < 0.7 else dice.randrange(len(clinic.browsers))
        if not clinic.signed[place] and dice.random() < 0.8:
            clinic.sign_in(place)
        dice.choice(acts)(place)
    if dice.random() < 0.05:
        clinic.restart()
        clinic.counts["restarts"] += 1


def examine(folder: Path, seed: int, flows: int) -> Clinic:
    clinic = Clinic(folder, random.Random(seed))
    try:
        clinic.sign_in(0)
        for _ in range(3):
            clinic.patient(0)
        for _ in range(flows):
            flow(clinic)
        clinic.judge_all()
        assert audit.verify(clinic.store.journal) is None
    finally:
        clinic.close()
    return clinic


@pytest.mark.parametrize("seed", range(FLOWS // OF_ONE_BOX))
def test_no_interrupted_examination_gives_a_capture_to_the_wrong_patient(folder: Path, seed: int) -> None:
    clinic = examine(folder, seed, OF_ONE_BOX)
    assert not clinic.wrong, (seed, Counter(clinic.wrong), clinic.counts)
    assert clinic.counts["attached"] > OF_ONE_BOX // 10, clinic.counts
    assert clinic.counts["confirm 409"] > OF_ONE_BOX // 10, "too few were stale to prove anything"
    assert clinic.counts["taken with a ticket"] > 2, clinic.counts


@pytest.mark.parametrize("seal", ["same for all", "not of the patient", "not of the person"])
def test_the_oracle_notices_a_seal_that_says_too_little(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seal: str
) -> None:
    made = binding._shown_to

    def weak(*shown: Any) -> Any:
        session, capture, seen, visit, is_open, known, said = made(*shown)
        weakened = {
            "same for all": (),
            "not of the patient": (session, capture, seen, visit, is_open, said),
            "not of the person": (capture, seen, visit, is_open, known, said),
        }
        return weakened[seal]

    monkeypatch.setattr(binding, "_shown_to", weak)
    assert examine(folder, 1, OF_ONE_BOX // 2).wrong


def test_every_form_is_checked_in_the_transaction_that_writes_it(tmp_path: Path) -> None:
    """A patient corrected between the check and the write: the two are one."""
    clinic = Clinic(tmp_path, random.Random(5))
    try:
        assert now().boot_id
        clinic.sign_in(0)
        clinic.patient(0)
        clinic.arrive()
        capture, visit = clinic.captures[0], clinic.store.patients.need(clinic.visits[0])
        who = binding.Who(id="amina", session="s")
        shown = binding.offer(clinic.store, who, visit.id, capture)
        form = binding.Confirmation(visit=visit.id, seal=shown.seal, confirmed=shown.identifiers)
        changed = Patient(
            id=visit.patient.id, issuer=visit.patient.issuer, name="Somebody^Else", sex="F", age_years=2.0
        )
        store = clinic.store
        amended, attached = store.journal.submit_together(
            lambda tx: store.patients.amend(tx, visit.known.key, 0, changed),
            lambda tx: binding.attach(store, tx, who, capture, form, now()),
        )
        amended.result()
        with pytest.raises(binding.Changed):
            attached.result()
        assert store.attachments.current(capture) is None
    finally:
        clinic.close()
