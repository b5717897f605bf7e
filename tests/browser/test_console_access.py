"""The console for everybody: every page by axe-core (WCAG 2.2 AA), every language on a phone, by keyboard, quickly.

Screenshots of each language at phone width go to ``artefacts/console`` for people to look at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from appliance.console.gate import COOKIE
from appliance.console.words import languages
from appliance.records import Modality, Patient, Triage
from appliance.store.people import Role
from tests.console_world import World, finding, png, wav

pytestmark = pytest.mark.browser
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
ARTEFACTS = Path(__file__).resolve().parents[2] / "artefacts" / "console"
PINS = {"Amina": ("480615", Role.NURSE), "Zawadi": ("739204", Role.ADMINISTRATOR)}


class Ward(World):
    """A box with people, patients and captures in every state."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sign_in="on")
        self.ids = {name: self.store.people.enter(name, role, pin).id for name, (pin, role) in PINS.items()}
        self.program = httpx.Client(base_url=self.url, headers={"origin": self.url})
        self.program.post("/sign-in", data={"person": self.ids["Amina"], "pin": PINS["Amina"][0]})
        self.visit = self.entered(sex="F", band="adult", name="Amina Otieno Wolfeschlegelsteinhausen", number="17")
        self.other = self.entered(sex="M", band="newborn")
        whose = Patient(id="17", name="Wolfeschlegelsteinhausen^Amina^Otieno", sex="F", age_years=34.0)
        self.film = self.keep(png(200, 160), patient=whose, view="PA")
        self.previews[self.film] = ("image/png", png(200, 160))
        self.read(
            self.film,
            triage=Triage.CRITICAL,
            advice="Let the radiologist's word decide.",
            findings=(finding("consolidation", 0.93), finding("pleural effusion", 0.2, confidence="low")),
            warnings=("The film is blurred.",),
            overlay=bytes(255 if 3 < place % 10 < 7 else 0 for place in range(100)),
            overlay_shape=(10, 10),
            overlay_finding="consolidation",
        )
        self.attach(self.film, self.visit)
        self.review(self.film, "modify", note="Drain", findings={"consolidation": True}, triage=Triage.URGENT)
        self.stray = self.keep(png(shade=3), patient=Patient(id="99", name="Mwangi^Joseph", sex="M", age_years=60.0))
        self.refuse(self.stray, "The film is blurred.", "Send the frontal film.")
        self.sound = self.keep(wav(seconds=2, rate=4000), Modality.HEART_SOUND, position="mitral")

    def entered(self, **entry: str) -> str:
        visit: str = self.program.post("/api/patients", json=entry).json()["id"]
        return visit

    def attach(self, capture: str, visit: str) -> None:
        offer = self.program.get(f"/api/visits/{visit}/offer", params={"capture": capture}).json()
        body = {"visit": visit, "seal": offer["seal"], "confirmed": ["number", "name"]}
        assert self.program.post(f"/api/captures/{capture}/attach", json=body).status_code == 200

    def pages(self) -> dict[str, str]:
        """Every page by a name, for who may see it."""
        return {
            "captures": "/",
            "patients": "/patients",
            "new": "/patients/new",
            "known": f"/patients/new?capture={self.stray}",
            "visit": f"/visits/{self.visit}",
            "correct": f"/visits/{self.visit}/patient",
            "begin": f"/visits/{self.visit}/begin/add",
            "choose": f"/captures/{self.stray}/attach",
            "mismatch": f"/captures/{self.stray}/attach/{self.visit}",
            "confirm": f"/captures/{self.film}/attach/{self.visit}",
            "answer": f"/captures/{self.film}",
            "not-read": f"/captures/{self.stray}",
            "sound": f"/captures/{self.sound}",
            "add": "/add",
            "pin": "/pin",
            "people": "/people",
            "problem": "/captures/none",
            "sign-in": "/sign-in",
            "setup": "/setup",
        }

    def close(self) -> None:
        self.program.close()
        super().close()


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    made = Ward(tmp_path_factory.mktemp("box"))
    yield made
    made.close()


def signed_in(browser: Browser, ward: Ward, name: str = "Zawadi", **options: Any) -> BrowserContext:
    """A browser in which somebody is signed in, by a request and not by hand."""
    context = browser.new_context(**{"viewport": {"width": 360, "height": 740}, **options})
    form = {"person": ward.ids[name], "pin": PINS[name][0]}
    answer = httpx.post(f"{ward.url}/sign-in", data=form, headers={"origin": ward.url})
    context.add_cookies([{"name": COOKIE, "value": answer.cookies[COOKIE], "url": ward.url}])
    return context


def violations(page: Page) -> list[str]:
    """What axe-core finds against WCAG 2.2 AA, in its words."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("rules => axe.run({runOnly: {type: 'tag', values: rules}})", RULES)
    return [f"{one['id']}: {node['html'][:160]}" for one in found["violations"] for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_no_page_violates_wcag_2_2_aa(ward: Ward, browser: Browser, scheme: Any) -> None:
    context = signed_in(browser, ward, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    found = {}
    for name, path in ward.pages().items():
        page.goto(ward.url + path)
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        wrong = violations(page)
        if wrong:
            found[name] = wrong
    context.close()
    assert not found


def test_the_check_would_notice_a_violation(ward: Ward, browser: Browser) -> None:
    context = signed_in(browser, ward, bypass_csp=True)
    page = context.new_page()
    page.goto(ward.url + "/add")
    page.evaluate("document.querySelector('label[for=file]').remove()")
    assert any(one.startswith("label") for one in violations(page))
    context.close()


@pytest.mark.parametrize("language", list(languages()))
def test_every_page_fits_a_phone_in_every_language(ward: Ward, browser: Browser, language: str) -> None:
    context = signed_in(browser, ward, locale=language)
    page = context.new_page()
    folder = ARTEFACTS / language
    folder.mkdir(parents=True, exist_ok=True)
    wide = []
    for name, path in ward.pages().items():
        if name in {"new", "begin", "confirm", "not-read", "problem", "pin"}:
            continue  # these are made of what the others show
        page.goto(ward.url + path)
        assert page.evaluate("document.documentElement.lang") == language
        if page.evaluate("document.documentElement.scrollWidth") > 360:
            wide.append(name)
        if name in {"patients", "mismatch", "answer", "sign-in"}:
            page.screenshot(path=folder / f"{name}.png", full_page=True)
    context.close()
    assert not wide


def test_the_first_page_is_small_and_quick_on_a_slow_tablet(ward: Ward, browser: Browser) -> None:
    context = signed_in(browser, ward, "Amina")
    page = context.new_page()
    sizes: list[int] = []
    page.on("response", lambda response: sizes.append(int(response.headers.get("content-length", "0"))))
    page.goto(ward.url + "/setup")  # the browser itself is awake
    sizes.clear()
    slow = context.new_cdp_session(page)
    slow.send("Network.setCacheDisabled", {"cacheDisabled": True})
    slow.send("Emulation.setCPUThrottlingRate", {"rate": 4})
    took = []
    for _ in range(3):
        page.goto(ward.url + "/", wait_until="load")
        took.append(page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"))
    context.close()
    assert sum(sizes) / 3 < 200_000
    assert 0 < min(took) < 1000, took


def test_a_capture_is_confirmed_by_keyboard_alone(ward: Ward, browser: Browser) -> None:
    capture = ward.keep(png(shade=77), patient=Patient(id="17", sex="F"))
    context = signed_in(browser, ward, "Amina", viewport={"width": 1024, "height": 600})
    page = context.new_page()
    page.goto(f"{ward.url}/captures/{capture}")

    def tab_to(text: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "() => { const one = document.activeElement; "
                "return (one.labels?.length ? one.labels[0].innerText : one.innerText) || ''; }"
            )
            if text in focused:
                assert page.evaluate(
                    "getComputedStyle(document.activeElement).outlineStyle !== 'none' || "
                    "document.activeElement.matches('.tick input')"
                ), text
                return
        raise AssertionError(f"no way to {text!r} by Tab")

    tab_to("Confirm the patient")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Whose is it?")).to_be_visible()
    tab_to("Wolfeschlegelsteinhausen")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Is it this patient?")).to_be_visible()
    for what in ("Number", "Name"):
        tab_to(what)
        page.keyboard.press("Space")
    tab_to("Yes, it is this patient")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Wolfeschlegelsteinhausen")).to_be_visible()
    word = ward.store.attachments.current(capture)
    context.close()
    assert word is not None
    assert (word.visit, word.confirmed, word.by) == (ward.visit, ("number", "name"), ward.ids["Amina"])


def test_a_capture_that_names_somebody_else_stops_until_that_is_said(ward: Ward, browser: Browser) -> None:
    capture = ward.keep(png(shade=78), patient=Patient(id="55", name="Somebody^Else", sex="M", age_years=70.0))
    context = signed_in(browser, ward, "Amina")
    page = context.new_page()
    page.goto(f"{ward.url}/captures/{capture}/attach/{ward.visit}")
    expect(page.get_by_role("alert")).to_contain_text("the sender names somebody else")
    page.get_by_label("Number 17").check()
    page.get_by_label("Age and sex").last.check()
    page.get_by_role("button", name="Yes, it is this patient").click()
    assert ward.store.attachments.current(capture) is None, "the browser itself asks for what is missing"
    page.evaluate("document.querySelector('form.confirm').noValidate = true")
    page.get_by_role("button", name="Yes, it is this patient").click()
    expect(page.get_by_text("The sender of this capture names somebody else.")).to_be_visible()
    assert ward.store.attachments.current(capture) is None
    context.close()


def test_the_next_person_signs_in_by_finger_and_the_screen_locks_by_itself(ward: Ward, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 800, "height": 480}, has_touch=True)
    page = context.new_page()
    page.goto(f"{ward.url}/patients")
    expect(page.get_by_role("heading", name="Who are you?")).to_be_visible()
    page.get_by_label("Amina").check()
    for digit in PINS["Amina"][0]:
        page.get_by_role("button", name=digit, exact=True).tap()
    page.get_by_role("button", name="Sign in").tap()
    expect(page.get_by_role("heading", name="Patients", exact=True)).to_be_visible()
    for session in list(ward.server._app.state.sessions._held.values()):
        if session.person == ward.ids["Amina"]:
            ward.server._app.state.sessions.end_of(session.person)
    expect(page.get_by_role("heading", name="Who are you?")).to_be_visible(timeout=10_000)
    assert "Wolfeschlegel" not in page.content()
    context.close()
    ward.program.post("/sign-in", data={"person": ward.ids["Amina"], "pin": PINS["Amina"][0]})


def test_guidance_is_read_aloud_where_there_is_a_voice_for_its_language(ward: Ward, browser: Browser) -> None:
    voices = """
        window.said = [];
        Object.defineProperty(window, 'speechSynthesis', {value: {
            getVoices: () => [{lang: 'fr-FR'}], addEventListener: () => {}, cancel: () => {}, speaking: false,
            speak: (one) => window.said.push([one.lang, one.text]),
        }});
        window.SpeechSynthesisUtterance = function (text) { this.text = text; };
    """
    for language, is_said in (("fr", True), ("sw", False)):
        context = signed_in(browser, ward, "Amina", locale=language)
        context.add_init_script(voices)
        page = context.new_page()
        page.goto(f"{ward.url}/captures/{ward.film}")
        button = page.locator("[data-speak]").first
        if is_said:
            button.click()
            assert page.evaluate("window.said") == [["fr-FR", "Suivez l’avis du radiologue."]]
        else:
            expect(button).to_be_hidden()
        context.close()


def test_a_picture_is_windowed_over_all_its_stored_values(ward: Ward, browser: Browser) -> None:
    import numpy as np

    from appliance.reading.requests import Raw

    stored = np.full((160, 200), 2000, "<u2")
    stored[60:100, 80:120] = 2010  # 10 of 4096: nothing that 8 bits would show
    ward.greys[ward.film] = Raw(rows=160, columns=200, low=0.0, high=4096.0, data=stored.tobytes())
    context = signed_in(browser, ward, "Amina", viewport={"width": 1024, "height": 900})
    page = context.new_page()
    page.goto(f"{ward.url}/captures/{ward.film}")
    page.get_by_label("Contrast").fill("800")
    canvas = page.locator(".sheet canvas")
    expect(canvas).to_be_visible()
    difference = """one => {
        const pen = one.getContext('2d'), at = (x, y) => pen.getImageData(x, y, 1, 1).data[0];
        return at(100, 80) - at(10, 10);
    }"""
    page.wait_for_function("document.querySelector('.sheet canvas')")
    assert canvas.evaluate(difference) >= 4
    page.get_by_role("button", name="As it was").click()
    page.wait_for_timeout(100)
    assert canvas.evaluate(difference) <= 1
    context.close()
