"""The whole loop in a real browser: offline, answer at the bedside, link, review at the hub, back at the bedside."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tools.demo import send
from tools.programs import Programs, get

CHROMIUM = shutil.which("chromium")
ARTEFACTS = Path(__file__).resolve().parents[2] / "artefacts" / "loop"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(400),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package chromium"),
]
WORDS = "No pneumothorax. Repeat the film if she gets worse."


@pytest.fixture
def programs(tmp_path):
    made = Programs(tmp_path)
    made.start()
    yield made
    made.stop()


def test_a_film_is_answered_offline_reviewed_at_the_hub_and_the_word_comes_back(programs):
    from pydicom.data import get_testdata_file

    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        bedside = browser.new_context(viewport={"width": 800, "height": 1100}).new_page()
        reader = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()

        send(programs, Path(str(get_testdata_file("RG1_UNCR.dcm"))))
        captures = f"{programs.bedside_url}/api/captures"
        case = programs.wait(
            "the answer", lambda: [c for c in get(captures)["captures"] if c.get("state") == "reported"]
        )
        case_id = case[0]["id"]
        bedside.goto(f"{programs.bedside_url}/captures/{case_id}")
        expect(bedside.locator("main")).to_contain_text("What it could not judge")
        bedside.screenshot(path=ARTEFACTS / "1-answer-offline.png", full_page=True)
        assert get(f"{programs.hub_url}/api/cases")["cases"] == []

        reader.goto(programs.hub_url)
        reader.fill("#who-name", "Dr Roe")
        reader.click("text=Set")
        programs.link.refuse(False)
        expect(reader.locator(".open-case")).to_have_count(1, timeout=60_000)
        reader.locator(".open-case").click()
        expect(reader.locator("#h-report")).to_contain_text("Preliminary")
        reader.fill("textarea[name=text]", WORDS)
        reader.screenshot(path=ARTEFACTS / "2-at-the-hub.png", full_page=True)
        reader.click("text=Sign report")
        reader.keyboard.press("Enter")
        expect(reader.locator(".signed")).to_contain_text(WORDS)

        expect(bedside.locator("main")).to_contain_text(WORDS, timeout=60_000)
        bedside.screenshot(path=ARTEFACTS / "3-back-at-the-bedside.png", full_page=True)
        programs.wait(
            "the receipt at the hub",
            lambda: get(f"{programs.hub_url}/api/cases/{case_id}")["reviews"][0]["delivery"] == "stored",
        )
        reader.reload()
        expect(reader.locator(".reviews")).to_contain_text("Shown at the bedside")
        browser.close()
