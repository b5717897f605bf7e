"""The stethoscope's page in a real browser: live while it records, in three taps, on a phone, in every language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from appliance.console.words import languages
from tests.listening_world import ListeningWorld

pytestmark = pytest.mark.browser


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ListeningWorld]:
    made = ListeningWorld(tmp_path)
    yield made
    made.close()


def accessible(page: Page) -> None:
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})
    assert not found.response["violations"], found.generate_report()


def test_a_tap_on_the_body_start_and_keep_make_a_capture(world: ListeningWorld, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    world.waits = 60
    page.goto(f"{world.url}/listen")
    accessible(page)
    page.locator(".front .spot", has_text="T").click()
    expect(page.locator(".go-card .place-name")).to_contain_text("Tricuspid area")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#guide-text")).to_have_text("Good. Hold still.", timeout=10_000)
    accessible(page)
    filled = page.locator(".ring-fill").get_attribute("stroke-dasharray") or "0"
    assert 0 < float(filled.split()[0]) < 100
    drawn = "document.getElementById('wave').getContext('2d').getImageData(0, 0, 900, 160).data.some((value) => value)"
    assert page.evaluate(drawn)
    world.sources[-1].go_on.set()
    expect(page.get_by_text("Enough was heard: it stopped by itself.")).to_be_visible(timeout=10_000)
    accessible(page)
    keep = page.get_by_role("button", name="Keep")
    box, bar = keep.bounding_box(), page.locator(".advice").bounding_box()
    assert box is not None
    assert bar is not None
    assert box["y"] + box["height"] <= bar["y"], "it can be tapped without scrolling"
    keep.click()
    expect(page.get_by_role("link", name="See the answer")).to_be_visible()
    assert len(world.store.captures.latest()) == 1
    assert not complaints
    page.close()


def test_it_works_without_scripts_and_by_the_list_alone(world: ListeningWorld, browser: Browser) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(f"{world.url}/listen")
    page.get_by_role("link", name="Back, upper right lung").click()
    expect(page.locator(".go-card .place-name")).to_have_text("Back, upper right lung")
    world.sound = world.sound[:16000]
    with page.expect_navigation():
        page.get_by_role("button", name="Start").click()
    assert world.sources[-1].reached.wait(10)
    page.reload()
    with page.expect_navigation():
        page.get_by_role("button", name="Stop").click()
    page.reload()
    page.get_by_role("button", name="Throw away").click()
    expect(page.get_by_role("button", name="Start")).to_be_visible()
    assert world.store.captures.latest() == []
    page.close()


def test_no_language_overflows_a_phone(world: ListeningWorld, browser: Browser) -> None:
    pages = {tag: browser.new_page(viewport={"width": 360, "height": 740}, locale=tag) for tag in languages()}

    def fit(phase: str) -> None:
        for language, page in pages.items():
            page.goto(f"{world.url}/listen")
            page.wait_for_selector(f"[data-phase={phase}]")
            assert page.locator("html").get_attribute("lang") == language
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, (language, phase)

    fit("idle")
    pages["en"].locator(".begin").click()
    pages["en"].wait_for_selector("[data-phase=stopped]")
    fit("stopped")
    for page in pages.values():
        page.close()
