"""The live page's addresses: what a nurse's browser asks, without and with its script."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from appliance.capture import video_area, video_quality
from appliance.capture.video_scan import Scan
from appliance.console import binding
from appliance.console.binding import Confirmation
from appliance.console.scan_phrases import said
from appliance.console.sessions import EVERYBODY
from appliance.console.words import words
from appliance.records import Patient
from tests.probe_movies import live, until
from tests.scan_world import ScanWorld


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScanWorld]:
    made = ScanWorld(tmp_path_factory.mktemp("scan"))
    yield made
    made.close()


def clean(world: ScanWorld) -> None:
    for take in world.door.scan().takes:
        if take.recording:
            world.door.finish()
        world.door.discard(take.id)
    live(world.door, 5)


def test_by_plain_forms_a_clip_is_recorded_and_kept_in_four_taps(world: ScanWorld) -> None:
    clean(world)
    assert "Live ultrasound" in world.client.get("/scan").text  # 1
    assert world.client.post("/scan/clip").headers["location"] == "/scan"  # 2
    time.sleep(0.5)
    assert world.client.post("/scan/end").status_code == 303  # 3
    page = world.client.get("/scan").text
    (keep,) = re.findall(r'action="(/scan/takes/[0-9a-f]{32}/keep)"', page)
    kept = world.client.post(keep)  # 4
    assert re.fullmatch(r"/captures/[0-9a-f]{32}", kept.headers["location"])
    assert world.client.get(kept.headers["location"]).status_code == 200


def test_quiet_forms_answer_for_the_script(world: ScanWorld) -> None:
    clean(world)
    assert world.client.post("/scan/freeze", data={"quiet": "1", "number": "0"}).status_code == 204
    (take,) = world.door.scan().takes
    gone = world.client.post(f"/scan/takes/{take.id}/discard", data={"quiet": "1"})
    assert gone.status_code == 204
    again = world.client.post(f"/scan/takes/{take.id}/keep", data={"quiet": "1"})
    assert again.status_code == 409
    assert set(again.json()) == {"error", "remedy"}


def test_the_picture_comes_one_at_a_time_and_never_larger_than_asked_for(world: ScanWorld) -> None:
    clean(world)
    first = world.client.get("/scan/picture?width=320&refresh=1")
    assert first.headers["content-type"] == "image/jpeg"
    assert first.headers["cache-control"] == "no-store"
    second = world.client.get(f"/scan/picture?width=320&after={first.headers['x-number']}&refresh=1")
    assert int(second.headers["x-number"]) > int(first.headers["x-number"])
    assert len(second.content) < 60_000


def test_the_state_comes_as_events_in_the_visitor_s_language(world: ScanWorld) -> None:
    clean(world)
    with world.client.stream("GET", "/scan/events?refresh=1", headers={"accept-language": "fr"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        line = next(line for line in answer.iter_lines() if line.startswith("data: "))
    event = json.loads(line.removeprefix("data: "))
    assert event["word"] in {"Bonne image", "Image perdue", "Ouverture", "Recherche de l’image"}
    assert "area" in event


def test_a_take_is_of_the_patient_who_was_confirmed_for_this_page(world: ScanWorld) -> None:
    clean(world)
    store, moment = world.store, world.store.now()
    patient = Patient(id="K-77", name="Otieno^Amina", sex="F", age_years=34.0)
    known = store.journal.write(lambda tx: store.patients.enter(tx, patient))
    visit = store.journal.write(lambda tx: store.patients.open_visit(tx, known, moment))
    shown = binding.offer(store, EVERYBODY, visit.id)
    confirmation = Confirmation(visit=visit.id, seal=shown.seal, confirmed=("number", "name"))
    ticket = binding.ticket(store, EVERYBODY, confirmation)
    page = world.client.get("/scan", params={"ticket": ticket}).text
    assert "Amina" in page
    until(world.door, lambda scan: scan.phase == "live" and not scan.reason)
    world.client.post("/scan/freeze", data={"ticket": ticket, "quiet": "1"})
    (take,) = until(world.door, lambda scan: scan.takes)
    where = world.client.post(f"/scan/takes/{take.id}/keep", data={"quiet": "1"}).json()["go"]
    capture = store.captures.get(where.rsplit("/", 1)[1]).capture
    assert (capture.patient.id, capture.encounter_id) == ("K-77", visit.id)
    word = store.attachments.current(capture.id)
    assert word is not None
    assert (word.visit, word.by) == (visit.id, EVERYBODY.id)


def test_a_stale_or_forged_ticket_makes_it_nobody_s(world: ScanWorld) -> None:
    clean(world)
    page = world.client.get("/scan", params={"ticket": "a.b.c.d"}).text
    assert "For nobody yet" in page
    live(world.door, 1)
    world.client.post("/scan/freeze", data={"ticket": "a.b.c.d", "quiet": "1"})
    (take,) = until(world.door, lambda scan: scan.takes)
    where = world.client.post(f"/scan/takes/{take.id}/keep", data={"quiet": "1"}).json()["go"]
    capture = world.store.captures.get(where.rsplit("/", 1)[1]).capture
    assert (capture.patient, capture.encounter_id) == (Patient(), "")


def test_every_state_has_words_in_every_language() -> None:
    scans = [Scan(phase="live", reason=reason) for reason in video_area.REASONS]
    scans += [Scan(phase="live", quality=video_area.Quality(state=state)) for state in ("good", "frozen", "too-dark")]
    scans += [Scan(phase="gone", reason="no video grabber is plugged in"), Scan(phase="opening"), Scan(phase="gone")]
    english = {said(scan, words("en")).word for scan in scans}
    assert len(english) == len(scans), "each state has a word of its own"
    for language in ("fr", "es", "pt", "sw", "hi", "ar"):
        for scan in scans:
            assert said(scan, words(language)).hint != said(scan, words("en")).hint
    assert video_quality.Meter().latest.state == "good"
