"""The stethoscope's page: what it shows in every state, whose a recording becomes, and that an old page does no harm."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pydicom
import pytest

from appliance.capture.stethoscope import Live
from appliance.capture.stethoscope_messages import Failure
from appliance.capture.stethoscope_positions import PLACES
from appliance.console import binding
from appliance.console.binding import Confirmation
from appliance.console.gate import COOKIE
from appliance.console.listen import shown
from appliance.console.listen_words import GUIDANCE, TROUBLE, WHY
from appliance.console.listen_words import PLACES as SAID
from appliance.console.sessions import EVERYBODY
from appliance.console.words import words
from appliance.interop.waveform import SOP_CLASS
from appliance.records import Code, Finding, Modality, Patient, Reading, Triage
from appliance.store.people import Role
from tests.console_world import png, wav
from tests.contract.test_console_words import Marked, untranslated
from tests.listening_world import ListeningWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ListeningWorld]:
    made = ListeningWorld(tmp_path)
    yield made
    made.close()


def until(world: ListeningWorld, phase: str) -> Live:
    deadline = time.monotonic() + 10
    while (live := world.stethoscope.live()).phase != phase:
        assert time.monotonic() < deadline, live
        time.sleep(0.01)
    return live


def post(world: ListeningWorld, what: str, **fields: str) -> httpx.Response:
    return world.client.post(f"/listen/{what}", data=fields, headers={"origin": world.url})


def confirmed(world: ListeningWorld) -> tuple[str, str]:
    """A visit and the ticket of who confirmed it."""
    store = world.store
    patient = Patient(id="17", name="Otieno^Amina", sex="F", age_years=34.0)
    known = store.journal.write(lambda tx: store.patients.enter(tx, patient, "site-1/box-1"))
    visit = store.journal.write(lambda tx: store.patients.open_visit(tx, known, world.clock.now(), origin=""))
    seal = binding.offer(store, EVERYBODY, visit.id).seal
    sure = Confirmation(visit=visit.id, seal=seal, confirmed=("number", "name"))
    return visit.id, binding.ticket(store, EVERYBODY, sure)


def test_three_taps_make_a_capture_of_the_confirmed_patient(world: ListeningWorld) -> None:
    visit, ticket = confirmed(world)
    page = world.client.get("/listen", params={"ticket": ticket})
    assert "Amina" in page.text
    post(world, "begin", place="mitral", ticket=ticket)  # the place that was tapped, then "Start"
    live = until(world, "stopped")  # by itself
    assert live.why == "enough"
    answer = post(world, "keep", recording=live.recording, place="mitral", ticket=ticket)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/listen?place=mitral&ticket=")
    capture = world.store.captures.latest()[0].capture
    assert (capture.patient.id, capture.encounter_id, capture.position) == ("17", visit, "mitral")
    assert world.store.attachments.of_visit(visit) == [capture.id]
    again = world.client.get(answer.headers["location"])
    assert f"/captures/{capture.id}" in again.text
    assert again.text.count("recorded") == 1, "the list says what is done already"


def test_without_a_confirmed_patient_a_recording_waits_to_be_confirmed(world: ListeningWorld) -> None:
    assert "waits to be confirmed" in world.client.get("/listen").text
    world.sound = world.sound[:16000]  # too short for enough
    post(world, "begin", place="lung-back-lower-left")
    world.sources[-1].reached.wait(10)
    post(world, "end", place="lung-back-lower-left")
    live = until(world, "stopped")
    post(world, "keep", recording=live.recording, place="lung-back-lower-left")
    capture = world.store.captures.latest()[0].capture
    assert (capture.patient, capture.encounter_id) == (Patient(), "")
    assert world.store.attachments.waiting() == [capture.id]


def test_a_ticket_that_no_longer_holds_begins_nothing(world: ListeningWorld) -> None:
    _, ticket = confirmed(world)
    forged = ticket[:-1] + ("0" if ticket[-1] != "0" else "1")
    answer = post(world, "begin", place="mitral", ticket=forged)
    assert answer.status_code == 409
    assert "The confirmation has ended" in answer.text
    assert not world.sources


def test_an_old_page_can_neither_keep_nor_throw_away_another_recording(world: ListeningWorld) -> None:
    post(world, "begin", place="mitral")
    live = until(world, "stopped")
    for what in ("keep", "discard"):
        assert post(world, what, recording="0" * 32, place="mitral").status_code == 409
    assert post(world, "begin", place="nowhere").status_code == 409
    assert world.stethoscope.live() == live
    assert post(world, "discard", recording=live.recording, place="mitral").status_code == 303
    assert world.store.captures.latest() == []


def test_a_write_from_another_site_is_refused(world: ListeningWorld) -> None:
    answer = world.client.post("/listen/begin", data={"place": "mitral"}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert not world.sources


def test_what_is_heard_comes_as_events_in_the_visitors_language(world: ListeningWorld) -> None:
    world.waits = 60
    post(world, "begin", place="mitral")
    assert world.sources[-1].reached.wait(10)
    with world.client.stream("GET", "/listen/events?refresh", headers={"accept-language": "fr"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        line = next(line for line in stream.iter_lines() if line.startswith("data: "))
    told = msgspec.json.decode(line.removeprefix("data: "))
    assert told["phase"] == "recording"
    assert told["needed"] == 12.0
    assert "battements" in told["count"]
    assert 0 < len(told["wave"]) <= 600
    assert max(told["wave"]) > 100


def test_a_screen_that_records_does_not_lock(tmp_path: Path) -> None:
    world = ListeningWorld(tmp_path, sign_in="on", idle_lock=5)
    try:
        sessions, present = world.server._app.state.sessions, [1000.0]
        sessions._clock = lambda: present[0]
        person = world.store.people.enter("Amina", Role.NURSE, "480615")
        world.client.cookies.set(COOKIE, sessions.open_for(person.id))
        world.waits = 60
        post(world, "begin", place="mitral")
        assert world.sources[-1].reached.wait(10)
        for _ in range(3):
            present[0] += 200
            with world.client.stream("GET", "/listen/events?refresh") as stream:
                assert stream.status_code == 200
                next(line for line in stream.iter_lines() if line.startswith("data: "))
        present[0] += 301
        assert world.client.get("/listen", headers={"x-refresh": "by itself"}).status_code == 401
    finally:
        world.close()


@pytest.mark.parametrize("code", list(TROUBLE))
def test_each_trouble_is_said_with_what_to_do(world: ListeningWorld, code: str) -> None:
    world.sound = np.zeros(0, np.int32)
    world.failure = Failure(code=code, what="DATA", remedy="DATA")  # type: ignore[arg-type]  # each of the codes
    post(world, "begin", place="mitral")
    until(world, "idle")
    assert TROUBLE[code] in world.client.get("/listen").text.replace("&#39;", "'")


def test_the_page_says_no_word_past_the_catalogue_in_any_state(
    world: ListeningWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.console.site.words", Marked)
    _, ticket = confirmed(world)

    of_the_status_bar = {"chest", "xray", "onnxruntime", "CPUExecutionProvider"}

    def left() -> list[str]:
        return [
            word
            for address in (f"/listen?ticket={ticket}", "/listen", "/listen?ticket=x.y.z.w", "/listen?place=erb")
            for word in untranslated(world.client.get(address).text)
            if word not in {"Amina", "Otieno", *of_the_status_bar}
        ]

    assert left() == []
    world.waits = 60
    post(world, "begin", place="aortic", ticket=ticket)
    until(world, "recording")
    assert left() == []
    world.sources[-1].go_on.set()
    post(world, "keep", recording=until(world, "stopped").recording, place="aortic", ticket=ticket)
    assert left() == []


def test_every_place_guidance_and_reason_has_words() -> None:
    assert set(SAID) == set(PLACES)
    from appliance.capture.stethoscope_finish import _WHY
    from appliance.capture.stethoscope_messages import Trouble

    assert set(TROUBLE) == set(Trouble.__args__)
    assert set(WHY) == set(_WHY) - {""}
    source = (Path(__file__).parents[2] / "appliance" / "reading" / "listening.py").read_text()
    for code in GUIDANCE:
        assert f'"{code}"' in source, f"nothing ever says {code}"


def test_numbers_are_written_as_the_language_writes_them() -> None:
    assert shown(Live(), words("en")).count == "0 of 1 clean beats"
    assert shown(Live(lost_s=0.2), words("en")).lost


def test_a_box_without_a_stethoscope_says_so(world: ListeningWorld) -> None:
    world.server._app.state.site.context = msgspec.structs.replace(world.context, stethoscope=None)
    assert world.client.get("/listen").status_code == 404


def test_a_running_result_is_shown_as_not_the_answer_yet() -> None:
    code = Code(scheme="99BEDSIDE", value="x", meaning="x")
    found = Finding(id="x", label="Abnormal heart sound", code=code, probability=0.63, positive=True, threshold=0.5)
    reading = Reading(
        capture_id="", modality=Modality.HEART_SOUND, status="read", triage=Triage.URGENT, advice="", findings=(found,)
    )
    said = shown(Live(preview=reading), words("en"))
    assert said.preview == "So far, not the answer yet: Abnormal heart sound 63%"
    refused = msgspec.structs.replace(reading, status="not_read", findings=())
    assert shown(Live(preview=refused), words("en")).preview == ""


def test_nobody_listens_who_is_not_signed_in(tmp_path: Path) -> None:
    locked = ListeningWorld(tmp_path, sign_in="on")
    try:
        for address in ("/listen", "/listen/events"):
            answer = locked.client.get(address)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/sign-in")
        for what in ("begin", "end", "keep", "discard"):
            assert post(locked, what, place="mitral").headers["location"].startswith("/sign-in")
        assert locked.client.get(f"/captures/{'0' * 32}/dicom").status_code == 303
        assert not locked.sources
    finally:
        locked.close()


def test_a_recording_is_downloaded_as_dicom_of_whom_it_was_confirmed_to_be(world: ListeningWorld) -> None:
    _, ticket = confirmed(world)
    post(world, "begin", place="mitral", ticket=ticket)
    recording = until(world, "stopped").recording
    kept = post(world, "keep", recording=recording, place="mitral", ticket=ticket).headers["location"].split("kept=")[1]
    page = world.client.get(f"/captures/{kept}")
    assert f"/captures/{kept}/dicom" in page.text
    assert "data-filters" in page.text
    answer = world.client.get(f"/captures/{kept}/dicom")
    assert answer.headers["content-type"] == "application/dicom"
    dataset = pydicom.dcmread(io.BytesIO(answer.content))
    assert (dataset.PatientID, dataset.SOPClassUID) == ("17", SOP_CLASS)
    picture = world.keep(png())
    assert world.client.get(f"/captures/{picture}/dicom").status_code == 404


def test_a_file_from_a_stethoscope_with_its_own_app_is_handed_in_with_its_place(world: ListeningWorld) -> None:
    page = world.client.get("/add").text
    assert all(f'value="{place}"' in page for place in PLACES)
    answer = world.client.post(
        "/api/captures",
        data={"modality": "lung-sound", "position": "lung-back-lower-left"},
        files={"file": ("a.wav", wav())},
        headers={"origin": world.url},
    )
    assert answer.status_code == 201
    assert world.uploads[-1].position == "lung-back-lower-left"
