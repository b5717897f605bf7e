"""The whole loop as people see it, in a real browser, over the real programs.

No link; a film arrives by itself; its answer; whose it is; the link; the radiologist's word; back at the bedside.
Screenshots of each step go to ``artefacts/loop``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tools.demo import inputs, send
from tools.programs import Programs, get

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package chromium"),
    pytest.mark.skipif(
        not (shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists()),
        reason="no mosquitto: install Debian's package mosquitto",
    ),
]
ARTEFACTS = Path(__file__).resolve().parents[2] / "artefacts" / "loop"
PATIENCE = 60_000


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context(viewport={"width": 1024, "height": 768}, locale="en").new_page()
        browser.close()


def kept(page: Page, name: str) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)


def test_from_a_film_without_a_link_to_the_radiologist_s_word_at_the_bedside(programs: Programs, page: Page) -> None:
    page.goto(programs.bedside_url)
    expect(page.get_by_role("heading", name="No captures yet")).to_be_visible()
    expect(page.get_by_label("How the box is")).to_contain_text("Offline")
    kept(page, "1-offline")

    films = inputs(programs.folder / "captures")
    send(programs, next(films)[1])
    films.close()  # type: ignore[attr-defined]  # a generator: the other captures are not made
    row = page.locator(".rows .row").first
    expect(row).to_be_visible(timeout=PATIENCE)
    expect(row).not_to_contain_text("Being read", timeout=PATIENCE)
    expect(row).to_contain_text("Whose is it? Not confirmed")
    row.get_by_role("link").click()
    expect(page.get_by_role("heading", name="What to do next")).to_be_visible()
    kept(page, "2-answer")
    capture = page.url.rsplit("/", 1)[1]

    page.get_by_role("link", name="Confirm the patient").click()
    page.get_by_role("link", name="New patient").click()
    page.get_by_label("Patient's number here (optional)").fill("MRN-17")
    page.get_by_label("Patient's name (optional)").fill("Amina Otieno")
    page.get_by_label("15 to 49 years").check()
    page.get_by_label("female", exact=True).check()
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("heading", name="Is it this patient?")).to_be_visible()
    for difference in page.locator("input[name=although]").all():
        difference.check()  # the film is a teaching file of somebody else
    page.get_by_label("Number MRN-17").check()
    page.get_by_label("Name Amina Otieno").check()
    kept(page, "3-confirm")
    page.get_by_role("button", name="Yes, it is this patient").click()
    expect(page.locator(".whose")).to_contain_text("Amina Otieno")

    programs.link.refuse(False)
    expect(page.get_by_label("How the box is")).to_contain_text("Online", timeout=PATIENCE)
    programs.wait("the case at the hub", lambda: _case(programs, capture))
    case = get(f"{programs.hub_url}/api/cases/{capture}")
    told = case["result"]["capture"]
    assert (told["patient"]["id"], told["patient"]["name"]) == ("MRN-17", "Amina Otieno")
    assert len(told["encounter_id"]) == 32
    kept(page, "4-online")

    review = {
        "result_id": case["result"]["id"],
        "decision": "modify",
        "note": "Repeat in two days.",
        "reviewer": "Dr Anna",
        "findings": {case["result"]["findings"][0]["id"]: True},
    }
    answer = httpx.post(f"{programs.hub_url}/api/cases/{capture}/review", json=msgspec.to_builtins(review))
    assert answer.is_success, answer.text
    expect(page.get_by_text("Repeat in two days.")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#human")).to_contain_text("Dr Anna")
    kept(page, "5-word")
    page.get_by_role("button", name="Agree", exact=True).click()
    expect(page.get_by_text("Noted. You can change it.")).to_be_visible()


def _case(programs: Programs, capture: str) -> bool:
    """Whether the hub holds the case as it is after the patient was confirmed."""
    try:
        case = get(f"{programs.hub_url}/api/cases/{capture}")
    except OSError:
        return False
    return bool(case["result"]["capture"].get("encounter_id"))
