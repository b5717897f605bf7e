"""The live ultrasound page in a real browser: seen, recorded, kept; by keyboard; on a phone; in every language."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.probe_movies import live
from tests.scan_world import ScanWorld

OTHERS = ("fr", "es", "pt", "sw", "hi")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScanWorld]:
    made = ScanWorld(tmp_path_factory.mktemp("scan"))
    yield made
    made.close()


def opened(browser: Browser, world: ScanWorld, width: int = 1280, *, language: str = "en") -> tuple[Page, list[str]]:
    context = browser.new_context(viewport={"width": width, "height": 800}, locale=language)
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if "Content Security" in message.text else None)
    page.goto(f"{world.url}/scan")
    return page, complaints


def test_the_picture_moves_and_a_clip_is_kept_with_the_keyboard_alone(browser: Browser, world: ScanWorld) -> None:
    page, complaints = opened(browser, world)
    expect(page.get_by_role("button", name="Record a clip")).to_be_enabled(timeout=30_000)
    number = page.locator("#scan-number")
    before = number.input_value()
    expect(page.get_by_role("img", name="Live picture")).to_be_visible()
    expect(number).not_to_have_value(before)
    lit = "(() => { const c = document.getElementById('scan-canvas'); const d = c.getContext('2d')"
    lit += ".getImageData(0, 0, c.width, c.height).data; return d.some((v, i) => i % 4 === 0 && v > 60); })()"
    assert page.evaluate(lit), "there is a picture on the canvas"
    page.get_by_role("button", name="Record a clip").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Recording:")).to_be_visible(timeout=10_000)
    expect(page.get_by_role("button", name="End the clip")).to_be_focused()
    page.wait_for_timeout(500)
    page.keyboard.press("Enter")
    keep = page.get_by_role("button", name="Keep", exact=True)
    expect(keep).to_be_focused(timeout=10_000)
    page.keyboard.press("Enter")
    page.wait_for_url("**/captures/*")
    assert not complaints


def test_a_freeze_is_discarded_and_gone_without_leaving_the_page(browser: Browser, world: ScanWorld) -> None:
    page, _ = opened(browser, world)
    expect(page.get_by_role("button", name="Freeze")).to_be_enabled(timeout=30_000)
    page.get_by_role("button", name="Freeze").click()
    expect(page.get_by_role("heading", name="Frozen picture")).to_be_visible(timeout=10_000)
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("heading", name="Frozen picture")).to_have_count(0, timeout=10_000)
    assert page.url.endswith("/scan")


@pytest.mark.parametrize("width", [360, pytest.param(1280, marks=pytest.mark.slow)])
def test_axe_finds_nothing_against_wcag_2_2_aa(browser: Browser, world: ScanWorld, width: int) -> None:
    page, _ = opened(browser, world, width)
    expect(page.get_by_role("button", name="Freeze")).to_be_enabled(timeout=30_000)
    page.get_by_role("button", name="Freeze").click()
    expect(page.get_by_role("heading", name="Frozen picture")).to_be_visible(timeout=10_000)
    page.locator("#scan-area summary").click()
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}})
    page.get_by_role("button", name="Discard").click()
    assert not found.response["violations"], found.generate_report()


@pytest.mark.parametrize("language", ["en", "ar", *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)])
def test_the_page_fits_a_phone_in_every_language(browser: Browser, world: ScanWorld, language: str) -> None:
    live(world.door, 1)
    page, _ = opened(browser, world, 360, language=language)
    page.locator("#scan-area summary").click()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.documentElement.dir") == ("rtl" if language == "ar" else "ltr")
    small = "[...document.querySelectorAll('main button')].filter((b) => b.offsetParent && b.offsetHeight < 44).length"
    assert page.evaluate(small) == 0, "every button is large enough for a finger"
