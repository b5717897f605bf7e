"""The console in a real browser: it refreshes itself, fits a phone, breaks no rule of its own policy, works without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from appliance.records import Modality, Patient, Triage
from tests.console_world import World, finding, png, wav

pytestmark = pytest.mark.browser


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def critical(world: World) -> str:
    """A capture with a critical answer, its overlay and its picture."""
    capture = world.keep(png(200, 160), patient=Patient(id="P-" + "7" * 40, name="Wolfeschlegelsteinhausen^Amina"))
    world.previews[capture] = ("image/png", png(200, 160))
    overlay = bytes(255 if 3 < place % 10 < 7 else 0 for place in range(100))
    world.read(
        capture,
        triage=Triage.CRITICAL,
        advice="Give oxygen and call the clinician now.",
        findings=(finding("Pneumothorax", 0.93), finding("Effusion", 0.2)),
        overlay=overlay,
        overlay_shape=(10, 10),
        overlay_finding="pneumothorax",
    )
    return capture


def opened(browser: Browser, width: int = 1280, *, scripts: bool = True) -> tuple[Page, list[str]]:
    """A page and the list that its complaints (script errors, blocked resources) go to."""
    page = browser.new_context(viewport={"width": width, "height": 800}, java_script_enabled=scripts).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, complaints


def test_an_answer_and_the_radiologist_s_word_appear_without_a_reload(world: World, browser: Browser) -> None:
    page, complaints = opened(browser)
    page.goto(world.url)
    expect(page.get_by_role("heading", name="No captures yet")).to_be_visible()
    page.evaluate("window.kept = true")
    capture = critical(world)
    expect(page.get_by_role("heading", name="1 capture needs you now")).to_be_visible(timeout=10_000)
    assert page.title().startswith("(1)")
    page.get_by_role("link", name="Pneumothorax 93%").click()
    expect(page.get_by_role("heading", name="Critical")).to_be_visible()
    page.evaluate("window.kept = true")
    page.get_by_label("Zoom").fill("300")
    world.review(capture, "modify", note="Chest drain now", findings={"effusion": True})
    expect(page.get_by_text("Chest drain now")).to_be_visible(timeout=10_000)
    assert page.get_by_label("Zoom").input_value() == "300", "the picture stays as the health worker had set it"
    assert page.evaluate("window.kept") is True
    assert not complaints


def test_the_overlay_goes_on_and_off_and_fades(world: World, browser: Browser) -> None:
    capture = critical(world)
    page, complaints = opened(browser)
    page.goto(f"{world.url}/captures/{capture}")
    overlay = page.get_by_alt_text("Where the model looked")
    expect(overlay).to_be_visible()
    assert overlay.evaluate("image => image.naturalWidth") == 320
    page.get_by_text("Show where the model looked").click()
    expect(overlay).to_be_hidden()
    page.get_by_text("Show where the model looked").click()
    page.get_by_label("Strength").fill("30")
    assert overlay.evaluate("image => getComputedStyle(image).opacity") == "0.3"
    assert not complaints


def test_a_slow_recording_can_be_played(world: World, browser: Browser) -> None:
    capture = world.keep(wav(seconds=2, rate=2000), Modality.HEART_SOUND)
    page, complaints = opened(browser)
    page.goto(f"{world.url}/captures/{capture}")
    page.wait_for_function("document.querySelector('audio').duration > 1.9")
    expect(page.locator(".wave")).to_be_visible()
    assert not complaints


def test_without_scripts_the_answer_and_the_forms_still_work(world: World, browser: Browser) -> None:
    capture = critical(world)
    page, _ = opened(browser, scripts=False)
    page.goto(f"{world.url}/captures/{capture}")
    expect(page.get_by_alt_text("Where the model looked")).to_be_visible()
    page.get_by_text("Show where the model looked").click()
    expect(page.get_by_alt_text("Where the model looked")).to_be_hidden()
    page.get_by_role("button", name="Disagree").click()
    assert world.agreements == {capture: False}
    page.goto(f"{world.url}/add")
    page.get_by_label("File", exact=True).set_input_files(
        {"name": "x.png", "mimeType": "image/png", "buffer": png(shade=77)}
    )
    page.get_by_label("Chest X-ray").check()
    page.get_by_role("button", name="Save and read").click()
    expect(page.get_by_role("heading", name="Being read")).to_be_visible()
    assert world.uploads[-1].modality is Modality.CHEST_XRAY


@pytest.mark.parametrize("width", [360, 768, 1024])
def test_no_page_is_wider_than_its_screen(world: World, browser: Browser, width: int) -> None:
    capture = critical(world)
    world.refuse(world.keep(png(shade=78)), "W" * 120, "Send it again.")
    page, complaints = opened(browser, width)
    for path in ("/", "/add", f"/captures/{capture}"):
        page.goto(world.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        small = page.evaluate(
            "[...document.querySelectorAll('main a, main button, summary, nav a')].filter(e => e.offsetParent)"
            ".filter(e => e.getBoundingClientRect().height < 24).map(e => e.textContent.trim())"
        )
        assert not [text for text in small if text != "add a file with this screen"], path
        expect(page.get_by_text("Advice for a health worker, not a diagnosis.")).to_be_in_viewport()
    assert not complaints


def test_a_box_that_does_not_answer_is_told(world: World, browser: Browser) -> None:
    page, _ = opened(browser)
    page.goto(world.url)
    world.server.stop()
    expect(page.get_by_text("The box does not answer.")).to_be_visible(timeout=15_000)


def test_the_printed_answer_is_one_page(world: World, browser: Browser) -> None:
    capture = critical(world)
    page, _ = opened(browser)
    page.goto(f"{world.url}/captures/{capture}")
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") == 1
