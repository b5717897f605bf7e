"""The answer page of a capture brings the patient's other captures of the day together, and only theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.records import Modality, Patient, Triage
from tests.console_world import World, finding, png, wav
from tests.contract.test_console_words import Marked, untranslated

AMINA = Patient(id="P7", name="Otieno^Amina", age_years=52, sex="F")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def examined(world: World, patient: Patient = AMINA) -> list[str]:
    """An X-ray with an opacity, lungs that crackle, an ultrasound without consolidation; their ids."""
    film = world.keep(png(shade=1), patient=patient, view="PA")
    world.read(film, triage=Triage.URGENT, findings=(finding("Pneumonia", 0.83, confidence="high"),))
    lungs = world.keep(wav(), Modality.LUNG_SOUND, patient=patient)
    sounds = (finding("Crackle", 0.74, confidence="moderate"), finding("Wheeze", 0.2, confidence="high"))
    world.read(lungs, findings=sounds)
    clip = world.keep(png(shade=2), Modality.LUNG_ULTRASOUND, patient=patient)
    world.read(clip, findings=(finding("Consolidation", 0.1, confidence="high", experimental=True),))
    return [film, lungs, clip]


def test_the_page_says_what_the_findings_agree_with_and_what_is_for_and_against_it(world: World) -> None:
    film, lungs, clip = examined(world)
    for shown in (film, lungs, clip):
        text = world.client.get(f"/captures/{shown}").text
        card = text.partition('id="together"')[2].partition("</section>")[0]
        for said in (
            *("Findings agree in part with pneumonia.", "an opacity in the lung", "This speaks for it", "Crackle"),
            *("This speaks against it", "Consolidation", "do not detect tuberculosis", "Most urgent of these captures"),
            *("Urgent", "From 3 captures of this patient within 24 hours", "no study has tested them"),
        ):
            assert said in card, said
        linked = {other for other in (film, lungs, clip) if f'href="/captures/{other}"' in card}
        assert linked == {film, lungs, clip} - {shown}


def test_a_capture_without_a_patient_or_of_another_is_not_brought_together(world: World) -> None:
    film, *_ = examined(world)
    other = world.keep(png(shade=3), patient=Patient(id="P8"))
    world.read(other, findings=(finding("Pneumonia", 0.9),))
    nobody = [world.keep(png(shade=shade)) for shade in (4, 5)]
    for one in nobody:
        world.read(one, findings=(finding("Pneumonia", 0.9),))
    assert 'id="together"' in world.client.get(f"/captures/{film}").text
    for one in (other, *nobody):
        assert 'id="together"' not in world.client.get(f"/captures/{one}").text


def test_a_damaged_reading_of_another_capture_leaves_this_page_standing(world: World) -> None:
    film, lungs, _ = examined(world)
    world.store.journal.write(
        lambda tx: tx.run("UPDATE reading SET sealed = ? WHERE capture_id = ?", b"\0" * 64, lungs)
    )
    answer = world.client.get(f"/captures/{film}")
    assert answer.status_code == 200
    assert 'id="together"' not in answer.text


def test_its_words_go_through_the_catalogue(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.console.site.words", Marked)
    film, *_ = examined(world)
    card = world.client.get(f"/captures/{film}").text.partition('id="together"')[2].partition("</section>")[0]
    assert set(untranslated(f"<p {card}")) <= {"Pneumonia", "Crackle", "Wheeze", "Consolidation"}
