"""Patients and visits over HTTP: entered, known again, corrected, from the worklist; and what the hub is told of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.console.api_visits import ROUTES
from appliance.console.lines import Gatherer
from appliance.protocol.messages import Result
from appliance.records import Modality, Patient, Triage
from appliance.store import audit, setup_code
from appliance.store.files import RealFiles
from appliance.store.store import Store
from appliance.store.worklist import ScheduledStep
from appliance.sync.report import report_again
from tests.boxes import DEVICE, open_store, report
from tests.console_world import World, finding, png, wav

AMINA = {"sex": "F", "band": "adult", "number": "17", "name": "Amina Otieno"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def entered(world: World, **entry: str) -> str:
    answer = world.client.post("/patients", data={**AMINA, **entry})
    assert answer.status_code == 303, answer.text
    found = re.fullmatch(r"/visits/([0-9a-f]{32})", answer.headers["location"])
    assert found
    return found[1]


def form_of(text: str) -> dict[str, Any]:
    """What the form of a confirmation holds before anybody ticks."""
    seal = re.search(r'name="seal" value="(\w+)"', text)
    assert seal, text
    return {"seal": seal[1]}


def test_a_patient_is_entered_with_three_taps_and_gets_a_number_of_this_box(world: World) -> None:
    visit = entered(world, number="", name="", band="infant", sex="M")
    page = world.client.get(f"/visits/{visit}").text
    assert re.search(r"ID P-[2-9A-Z]{6}", page)
    assert "1 to 11 months" in page
    assert "Provisional number of this box" in page
    assert visit in world.client.get("/patients").text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sex": ""}, "sex from the list"),
        ({"band": ""}, "age from the list"),
        ({"band": "ancient"}, "age from the list"),
        ({"age": "-3"}, "number of years"),
        ({"age": "nan"}, "number of years"),
        ({"name": "x" * 90}, "too long"),
        ({"birth_date": "19"}, "year, a month and a day"),
    ],
)
def test_a_form_that_is_wrong_is_told_and_enters_nobody(world: World, wrong: dict[str, str], said: str) -> None:
    answer = world.client.post("/patients", data={**AMINA, **wrong})
    assert answer.status_code == 422
    assert said in answer.text
    assert world.store.patients.open_visits() == []


def test_a_number_that_is_known_leads_to_its_patient_and_never_to_a_second_one(world: World) -> None:
    first = entered(world)
    world.client.post(f"/visits/{first}/open", data={"open": "no"})
    assert first not in world.client.get("/patients").text
    answer = world.client.post("/patients", data={**AMINA, "name": "Somebody Else"})
    assert answer.status_code == 409
    assert "Amina Otieno" in answer.text
    form = dict(re.findall(r'name="(patient|revision)" value="(\w+)"', answer.text))
    again = world.client.post("/visits", data=form)
    assert again.status_code == 303
    assert not again.headers["location"].endswith(first), "another visit of the same patient"
    assert len({one.known.key for one in world.store.patients.open_visits()}) == 1
    assert world.client.post("/visits", data={**form, "revision": "7"}).status_code == 409


def test_the_pages_attach_only_what_was_ticked_and_say_whom_the_sender_named(world: World) -> None:
    visit = entered(world)
    capture = world.keep(png(), patient=Patient(id="99", name="Mwangi^Joseph", sex="M", age_years=60.0))
    world.read(capture)
    assert "Nobody has confirmed yet" in world.client.get(f"/captures/{capture}").text
    path = f"/captures/{capture}/attach/{visit}"
    text = world.client.get(path).text
    assert "Stop: the sender names somebody else" in text
    assert "Joseph Mwangi" in text
    form = {**form_of(text), "confirmed": ["number", "name"]}
    refused = world.client.post(path, data=form)
    assert refused.status_code == 422
    assert "Look at both before you confirm" in refused.text
    one = world.client.post(path, data={**form, "although": ["number", "name", "age-and-sex"], "confirmed": "name"})
    assert one.status_code == 422
    assert world.store.attachments.current(capture) is None
    done = world.client.post(path, data={**form, "although": ["number", "name", "age-and-sex"]})
    assert (done.status_code, done.headers["location"]) == (303, f"/captures/{capture}")
    text = world.client.get(f"/captures/{capture}").text
    assert "Amina Otieno" in text
    assert "although the sender differed" in text
    again = world.client.post(path, data={**form, "although": ["number", "name", "age-and-sex"]})
    assert again.status_code == 303, "the second tap of the same person is no error"
    assert len(world.store.attachments.history(capture)) == 1
    world.client.post(f"/captures/{capture}/detach", data={"seen": "1"})
    assert "Nobody has confirmed yet" in world.client.get(f"/captures/{capture}").text
    assert world.client.post(f"/captures/{capture}/detach", data={"seen": "1"}).status_code == 409


def test_a_recording_within_a_confirmed_visit_is_its_patient_s_at_once(world: World) -> None:
    visit = entered(world)
    form = form_of(world.client.get(f"/visits/{visit}/begin/add").text)
    refused = world.client.post(f"/visits/{visit}/begin/add", data={**form, "confirmed": "number"})
    assert refused.status_code == 422
    answer = world.client.post(f"/visits/{visit}/begin/add", data={**form, "confirmed": ["number", "age-and-sex"]})
    path = answer.headers["location"]
    assert path.startswith("/add?ticket=")
    page = world.client.get(path).text
    assert "Amina Otieno" in page
    ticket = re.search(r'name="ticket" value="([^"]+)"', page)
    assert ticket
    kept = world.client.post(
        "/captures", data={"ticket": ticket[1], "modality": "heart-sound"}, files={"file": ("x.wav", wav())}
    )
    capture = kept.headers["location"].rsplit("/", 1)[1]
    word = world.store.attachments.current(capture)
    assert word is not None
    assert (word.visit, word.confirmed) == (visit, ("number", "age-and-sex"))
    forged = world.client.get(path[:-1] + ("0" if path[-1] != "0" else "1"))
    assert "The confirmation has ended." in forged.text


def test_the_worklist_is_one_tap_away_and_opened_once(world: World) -> None:
    said = Patient(id="W-5", name="Njeri^Wanjiru", birth_date="19900102", sex="F", age_years=36.0)
    step = ScheduledStep(patient=said, accession_number="A1", procedure="Thorax PA", date="20260301", time="101500")
    now = world.clock.now()
    world.store.journal.write(lambda tx: world.store.worklist.replace(tx, [step], now))
    page = world.client.get("/patients").text
    assert "Wanjiru Njeri" in page
    assert "Thorax PA" in page
    origin = re.search(r'name="origin" value="(\w+)"', page)
    assert origin
    first = world.client.post("/visits", data={"origin": origin[1]})
    second = world.client.post("/visits", data={"origin": origin[1]})
    assert first.headers["location"] == second.headers["location"]
    visit = world.store.patients.open_visits()[0]
    assert (visit.accession_number, visit.procedure, visit.known.provisional) == ("A1", "Thorax PA", False)
    assert origin[1] not in world.client.get("/patients").text
    assert world.client.post("/visits", data={"origin": "0" * 32}).status_code == 409


def test_the_worklist_s_patient_is_not_merged_with_who_has_the_same_number_here(world: World) -> None:
    entered(world)
    step = ScheduledStep(patient=Patient(id="17", name="Mwangi^Joseph", sex="M", age_years=60.0), procedure="Thorax")
    now = world.clock.now()
    world.store.journal.write(lambda tx: world.store.worklist.replace(tx, [step], now))
    origin = re.search(r'name="origin" value="(\w+)"', world.client.get("/patients").text)
    assert origin
    assert world.client.post("/visits", data={"origin": origin[1]}).status_code == 409
    assert len(world.store.patients.open_visits()) == 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "reported")
    yield opened
    opened.close()


def test_the_hub_is_told_whose_it_is_as_the_next_revision_and_again_when_that_is_corrected(
    world: World, store: Store
) -> None:
    """The console over a store whose captures were reported before anybody confirmed anything."""
    from appliance.console.binding import Confirmation, Who, offer
    from appliance.console.reception import Entry, Reception

    context = msgspec.structs.replace(
        world.context, store=store, device=DEVICE, report_again=lambda tx, one: report_again(store, tx, DEVICE, one)
    )
    reception, who = Reception(context), Who(id="amina", session="s")
    capture = report(store, b"film", Triage.CRITICAL)
    visit = reception.enter(who, Entry(sex="F", band="adult", number="17", name="Amina Otieno"))
    shown = offer(store, who, visit.id, capture)
    reception.attach(who, capture, Confirmation(visit=visit.id, seal=shown.seal, confirmed=("number", "name")))
    reception.amend(who, visit.id, 0, Entry(sex="F", band="adult", number="17", name="Amina A. Otieno"))
    reception.detach(who, capture, 1)
    rows = store.journal.all("SELECT id, critical FROM outbox WHERE capture_id = ? ORDER BY sequence", capture)
    told = [msgspec.json.decode(store.outbox.payload(row["id"]), type=Result) for row in rows]
    assert [one.revision for one in told] == [0, 1, 2, 3]
    assert len({one.id for one in told}) == 4
    assert [one.capture.patient.name for one in told] == ["", "Amina Otieno", "Amina A. Otieno", ""]
    assert [bool(one.capture.encounter_id) for one in told] == [False, True, True, False]
    assert all(row["critical"] for row in rows), "it stays as urgent as it was"
    assert audit.verify(store.journal) is None


def test_a_result_that_the_hub_has_is_not_called_unsent_because_its_patient_was_confirmed(store: Store) -> None:
    capture = report(store, b"film")
    entry = store.captures.get(capture)
    assert Gatherer(store).line(entry).delivery == "waiting"
    store.journal.write(lambda tx: tx.run("UPDATE outbox SET state = 'delivered' WHERE capture_id = ?", capture))
    store.journal.write(lambda tx: report_again(store, tx, DEVICE, capture))
    assert store.outbox.totals()[0] == 1
    assert Gatherer(store).line(store.captures.get(capture)).delivery == "sending"


def test_every_address_of_the_interface_says_what_it_wants(world: World) -> None:
    visit = entered(world)
    for route in ROUTES:
        if route.method == "POST":
            path = route.path.replace("{id}", world.keep(png()) if "captures" in route.path else visit)
            answer = world.client.post(path, content=b"{]")
            assert answer.status_code == 422, path
            assert "openapi" in answer.json()["error"], path


def test_captures_of_a_visit_come_together_whatever_their_senders_said(world: World) -> None:
    visit = entered(world)
    films = [world.keep(png(shade=1)), world.keep(wav(), Modality.LUNG_SOUND)]
    for film, label in zip(films, ("Consolidation", "Crackle"), strict=True):
        world.read(film, triage=Triage.URGENT, findings=(finding(label, 0.9),))
        path = f"/captures/{film}/attach/{visit}"
        form = form_of(world.client.get(path).text)
        assert world.client.post(path, data={**form, "confirmed": ["number", "name"]}).status_code == 303
    assert 'id="together"' in world.client.get(f"/captures/{films[0]}").text


def test_the_code_of_the_box_is_printed_by_its_command(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    config = tmp_path / "box.toml"
    config.write_text(f'[storage]\nstate = "{state}"\n')
    bedside = Path(sys.executable).with_name("bedside")

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [bedside, "console-code", "--config", config, *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    none = run()
    assert none.returncode == 1
    assert "--new" in none.stderr
    code = setup_code.make(state, RealFiles())
    assert run().stdout.strip() == code
    fresh = run("--new").stdout.strip()
    assert fresh != code
    assert setup_code.matches(state, fresh)
