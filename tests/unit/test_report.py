"""The printed report is one page in every language, whatever the visit holds, with every glyph there."""

from __future__ import annotations

import itertools
import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.console import report as module
from appliance.console.lines import Gatherer
from appliance.console.report import NoFonts, Printed, code_of, report
from appliance.console.words import languages, words
from appliance.records import Modality, Patient, Triage
from tests.console_world import World, finding, png


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("box"))
    yield made
    made.close()


SIZES = itertools.count()


@pytest.fixture(scope="module")
def crowded(world: World) -> Printed:
    """More than fits on a page, with a note in two scripts."""
    return visit(world, 12, "ضع أنبوب الصدر छाती में नली डालें " * 20)


def visit(world: World, captures: int, note: str = "Chest drain now.") -> Printed:
    store, now = world.store, world.clock.now()
    patient = Patient(id=f"N{captures}", name="Otieno^Amina", sex="F", age_years=15.0, age_until=50.0)
    known = store.patients.with_number(patient.id) or [
        store.journal.write(lambda tx: store.patients.enter(tx, patient, "site-1/box-1"))
    ]
    opened = store.journal.write(lambda tx: store.patients.open_visit(tx, known[0], now, procedure="Thorax PA"))
    made = []
    for _ in range(captures):
        capture = world.keep(png(rows=20, columns=20 + next(SIZES)), Modality.CHEST_XRAY, view="PA")
        found = (finding("Pneumothorax", 0.9), finding("Effusion", 0.4, confidence="low"))
        world.read(capture, triage=Triage.CRITICAL, advice="Give oxygen. " * 30, findings=found)
        world.review(capture, "modify", note=note)
        made.append(capture)
    gatherer = Gatherer(store)
    return Printed(opened, [gatherer.whole(store.captures.get(one)) for one in made], now, "site-1/box-1")


@pytest.mark.parametrize("language", list(languages()))
def test_it_is_one_page_with_every_glyph(crowded: Printed, language: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        page = report(crowded, words(language))
    assert page.startswith(b"%PDF")
    assert page.count(b"/Type /Page\n") == 1
    assert not [record.message for record in caplog.records if "glyph" in record.message.lower()]


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext: install Debian's poppler-utils")
def test_it_says_whom_what_and_that_it_is_advice(world: World, tmp_path: Path) -> None:
    path = tmp_path / "report.pdf"
    path.write_bytes(report(visit(world, 2), words("en")))
    said = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True).stdout
    wanted = ("Amina Otieno", "ID N2", "15 to 49 years", "Critical", "Pneumothorax 90%", "Chest drain now.")
    for text in (*wanted, "Advice for a health worker, not a diagnosis.", "site-1/box-1", "chest-xray 1.0.0"):
        assert text in said, text


def test_its_code_is_the_visit_and_the_most_urgent_case(world: World) -> None:
    printed = visit(world, 1)
    assert code_of(printed) == f"urn:bedside:visit:{printed.visit.id}:case:{printed.captures[0].line.id}"
    assert code_of(printed._replace(captures=[])) == f"urn:bedside:visit:{printed.visit.id}"
    assert report(printed._replace(captures=[]), words("en")).count(b"/Type /Page\n") == 1


def test_a_box_without_the_fonts_says_what_to_install(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEVANAGARI", Path("/nowhere/Lohit.ttf"))
    with pytest.raises(NoFonts, match="apt-get install"):
        report(visit(world, 0), words("en"))


def test_the_console_gives_it_as_a_file(world: World) -> None:
    opened = visit(world, 3).visit
    answer = world.client.get(f"/visits/{opened.id}/report.pdf")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/pdf")
    assert "Amina" not in str(answer.url) + answer.headers["content-disposition"]
