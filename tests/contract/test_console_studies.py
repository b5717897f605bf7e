"""What of a study is missing, and whom a capture contradicts, is said in words where people look."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.console import study
from appliance.console.words import languages, words
from appliance.records import Patient
from appliance.store.studies import Completeness
from tests.console_world import World, png
from tests.contract.test_console_words import Marked, untranslated

STUDY = "1.2.826.0.1.77"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def arrive(world: World, shade: int, expected: int, **facts: object) -> str:
    """A picture of the study, by an association."""
    capture = world.keep(png(shade=shade), study_uid=STUDY, instance_uid=f"{STUDY}.{shade}", **facts)
    world.read(capture)
    world.store.journal.write(lambda tx: world.store.studies.arrived(tx, STUDY, expected, by_association=True))
    return capture


def attach(world: World, capture: str) -> str:
    entry = {"sex": "F", "band": "adult", "number": "17", "name": "Amina Otieno"}
    visit: str = world.client.post("/api/patients", json=entry).json()["id"]
    path = f"/captures/{capture}/attach/{visit}"
    seal = re.search(r'name="seal" value="(\w+)"', world.client.get(path).text)
    assert seal
    form = {"seal": seal[1], "confirmed": ["number", "name"]}
    assert world.client.post(path, data=form, headers={"origin": world.url}).status_code == 303
    return visit


def test_an_incomplete_study_is_said_on_the_answer_and_the_visit_until_the_rest_has_come(world: World) -> None:
    capture = arrive(world, 1, 3)
    visit = attach(world, capture)
    for path in (f"/captures/{capture}", f"/visits/{visit}"):
        assert "The study is not complete: 1 of 3 have come. Send the rest." in world.client.get(path).text
    arrive(world, 2, 3)
    arrive(world, 3, 3)
    assert "The study is complete: 3 have come." in world.client.get(f"/captures/{capture}").text
    assert "not complete" not in world.client.get(f"/visits/{visit}").text


def test_a_sending_that_broke_off_is_said_and_one_that_nobody_counted_is_not_judged(world: World) -> None:
    capture = arrive(world, 1, 0)
    assert "still coming" in world.client.get(f"/captures/{capture}").text
    world.store.journal.write(lambda tx: world.store.studies.ended(tx, [STUDY], in_order=False))
    assert "broke off. Send it again." in world.client.get(f"/captures/{capture}").text
    world.store.journal.write(lambda tx: world.store.studies.ended(tx, [STUDY], in_order=True))
    text = world.client.get(f"/captures/{capture}").text
    assert not any(word in text for word in ("broke off", "still coming", "The study is"))


def test_whom_a_capture_contradicts_is_said_above_the_answer_and_on_the_visit(world: World) -> None:
    first = world.keep(png(shade=1), patient=Patient(id="17", name="Otieno^Amina"))
    second = world.keep(png(shade=2), patient=Patient(id="17", name="Mwangi^Juma"))
    world.read(first)
    world.read(second)
    page = world.client.get(f"/captures/{second}").text
    alert = re.search(r'(?s)<p class="whose ask" role="alert">(.*?)</p>', page)
    assert alert
    assert "the same patient number and another name" in alert[1]
    assert f'href="/captures/{first}"' in alert[1]
    assert 'role="alert">' not in world.client.get(f"/captures/{first}").text
    entry = {"sex": "F", "band": "adult", "number": "18", "name": "Amina Otieno"}
    visit = world.client.post("/api/patients", json=entry).json()["id"]
    path = f"/captures/{second}/attach/{visit}"
    seal = re.search(r'name="seal" value="(\w+)"', world.client.get(path).text)
    assert seal
    form = {"seal": seal[1], "confirmed": ["number", "name"], "although": ["number", "name"]}
    assert world.client.post(path, data=form, headers={"origin": world.url}).status_code == 303
    assert "Contradicts an earlier capture: check whose it is" in world.client.get(f"/visits/{visit}").text


def test_the_words_go_through_the_catalogue(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = arrive(world, 1, 3)
    plain = untranslated(world.client.get(f"/captures/{capture}").text)
    monkeypatch.setattr("appliance.console.site.words", Marked)
    said = untranslated(world.client.get(f"/captures/{capture}").text)
    assert "study" in plain
    assert "study" not in said


def test_every_state_is_said_in_every_language() -> None:
    states = [
        Completeness("incomplete", "count", 1, 3),
        Completeness("incomplete", "association", 1, None),
        Completeness("in-progress", "association", 1, None),
        Completeness("complete", "count", 3, 3),
    ]
    english = [study.shown(words("en"), one) for one in states]
    assert len({one.text for one in english if one is not None}) == len(states)
    for language in languages():
        for one, plain in zip(states, english, strict=True):
            told = study.shown(words(language), one)
            assert told is not None
            assert plain is not None
            assert (told.text != plain.text) == (language != "en")
    assert study.shown(words("en"), Completeness("unknown", "none", 1, None)) is None
