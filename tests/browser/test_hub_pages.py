"""The hub in a real browser: the worklist refreshes itself, the viewer works, a review is two actions, nothing overflows.

Every page is looked at by axe-core (WCAG 2.2 AA) in both schemes; screenshots at desktop and tablet width go to
``artefacts/hub`` for people to look at.
"""

from __future__ import annotations

import io
import shutil
import socket
import threading
import time
from pathlib import Path

import argon2
import axe_playwright_python
import msgspec
import numpy as np
import pytest
import soundfile
import uvicorn
from playwright.sync_api import expect, sync_playwright
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from appliance.protocol.messages import OverlayPart, Status, Telemetry
from appliance.records import Modality, Moment, Patient, Triage
from hub.blobs import BlobStore
from hub.cases import case, worklist
from hub.database import Database
from hub.people import People, Role
from hub.receive import Receiver
from hub.reviews import ReviewRequest, claim, review
from hub.sessions import Sessions
from hub.users import Passwords
from hub.web.app import make_app
from hub.web.site import Site
from tests.wire import incoming, incoming_chunk, pieces, result

PASSWORD = "correct horse battery"  # noqa: S105
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
ARTEFACTS = Path(__file__).resolve().parents[2] / "artefacts" / "hub"
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package chromium"),
]


class Hub:
    """A hub that is served, without a broker."""

    def __init__(self, folder, people=None):
        self.database = Database(f"sqlite:///{folder}/hub.sqlite")
        self.database.migrate()
        self.blobs = BlobStore(folder / "blobs")
        self.blobs.open()
        self.receiver = Receiver(self.database, self.blobs)
        quick = Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        self.people = People(self.database, None, quick) if people else None
        for name, roles in (people or {}).items():
            self.people.add(name, roles, PASSWORD, "test", 0)
        self.sessions = Sessions(self.database, self.people, idle_ms=4000) if people else None
        self.site = Site(self.database, self.blobs, self.people, sessions=self.sessions)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(make_app(self.site), log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    def close(self):
        self.site.closing.set()
        self.server.should_exit = True
        self.thread.join(10)
        self.database.close()

    def take(self, message):
        self.receiver.handle([incoming(message)])
        return message

    def picture(self, message, frames=1, **fields):
        pixels = np.tile(np.linspace(0, 4095, 300).astype("<u2"), (200, 1))
        stack = np.stack([np.roll(pixels, 20 * number, axis=1) for number in range(frames)])
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 200, 300, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelData = stack.tobytes()
        if frames > 1:
            dataset.NumberOfFrames = frames
        for name, value in fields.items():
            setattr(dataset, name, value)
        path = self.blobs.folder / "made.dcm"
        dataset.save_as(path, enforce_file_format=True)
        for chunk in pieces(path.read_bytes(), capture=message.capture.id):
            self.receiver.handle([incoming_chunk(chunk)])

    def sound(self, message):
        """Two seconds of 120 Hz, and 900 Hz in the second one."""
        times = np.arange(8000) / 4000
        values = 0.5 * np.sin(2 * np.pi * 120 * times) + 0.3 * (times > 1) * np.sin(2 * np.pi * 900 * times)
        file = io.BytesIO()
        soundfile.write(file, values, 4000, format="WAV", subtype="PCM_16")
        for chunk in pieces(file.getvalue(), capture=message.capture.id, media_type="audio/wav"):
            self.receiver.handle([incoming_chunk(chunk)])


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def hub(tmp_path):
    made = Hub(tmp_path)
    yield made
    made.close()


def opened(browser, width=1280, *, scripts=True):
    page = browser.new_context(viewport={"width": width, "height": 800}, java_script_enabled=scripts).new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, complaints


def critical(number=1):
    overlay = OverlayPart(finding="pneumothorax", rows=4, columns=4, data=bytes(range(0, 256, 16)))
    message = result(number, overlay=overlay)
    patient = Patient(id="P-" + "7" * 40, name="WOLFESCHLEGELSTEINHAUSENBERGERDORFF^AMINA", age_years=41)
    return msgspec.structs.replace(message, capture=msgspec.structs.replace(message.capture, patient=patient))


def test_a_new_case_appears_above_less_urgent_ones_by_itself(browser, hub):
    hub.take(result(5, triage=Triage.ROUTINE))
    page, complaints = opened(browser)
    page.goto(hub.url)
    expect(page.locator(".line")).to_have_count(1)
    hub.take(critical())
    expect(page.locator(".line")).to_have_count(2, timeout=10_000)
    expect(page.locator(".line").first).to_contain_text("Critical")
    assert complaints == []


def test_a_reader_opens_sees_and_accepts_a_case_and_escalation_stops(browser, hub):
    message = hub.take(critical())
    hub.picture(message)
    page, complaints = opened(browser)
    page.goto(hub.url)
    page.fill("#who-name", "Dr Röe, Anna")
    page.click("text=Set")
    page.locator(".open-case").first.click()
    expect(page.locator("#stage canvas")).to_be_visible(timeout=20_000)
    page.wait_for_function("!document.getElementById('acknowledge')")
    page.fill("textarea[name=note]", "Agreed: pneumothorax.")
    page.click("button.accept")
    expect(page.locator(".reviews")).to_contain_text("Accepted by Dr Röe, Anna")
    with hub.database.read() as connection:
        found = case(connection, message.capture.id, hub.receiver.now_ms())
    assert found.summary.acknowledged_by == "Dr Röe, Anna"
    assert [part.review.note for part in found.reviews] == ["Agreed: pneumothorax."]
    assert complaints == []


def test_contrast_changes_the_pixels_and_the_overlay_can_be_turned_off(browser, hub):
    message = hub.take(critical())
    hub.picture(message)
    page, complaints = opened(browser)
    page.goto(f"{hub.url}/case/{message.capture.id}")
    expect(page.locator("#stage canvas")).to_be_visible(timeout=20_000)
    middle = (
        "() => {const c = document.querySelector('#stage canvas');"
        "return [...c.getContext('2d').getImageData(75, 100, 151, 1).data].filter((_, i) => i % 4 === 0)}"
    )
    before = page.evaluate(middle)
    assert abs(before[75] - 128) < 4
    page.evaluate(
        "() => {const w = document.getElementById('width'); w.value = 20; w.dispatchEvent(new Event('input'))}"
    )
    page.wait_for_timeout(200)
    after = page.evaluate(middle)
    assert (after[0], after[-1]) == (0, 255)
    assert len(set(after)) < len(set(before))
    page.click("#invert")
    page.wait_for_timeout(200)
    assert page.evaluate(middle)[0] == 255
    page.click("#reset")
    page.wait_for_timeout(200)
    assert page.evaluate(middle) == before
    expect(page.locator(".overlay")).to_be_visible()
    page.uncheck("#overlay-on")
    expect(page.locator(".overlay")).to_be_hidden()
    assert complaints == []


def test_a_case_can_be_reviewed_without_scripts(browser, hub):
    message = hub.take(critical())
    page, _ = opened(browser, scripts=False)
    page.goto(f"{hub.url}/case/{message.capture.id}")
    page.fill("input[name=reviewer]", "Dr Low")
    page.check("input[name='finding:pneumothorax'][value=no]")
    page.click("button.modify-button")
    expect(page.locator(".reviews")).to_contain_text("pneumothorax: absent")
    with hub.database.read() as connection:
        assert worklist(connection, hub.receiver.now_ms()) == []


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overflows_and_every_control_is_large_enough_to_touch(browser, hub, width):
    message = hub.take(critical())
    hub.take(result(2, triage=Triage.URGENT, status="not_read", findings=[], reason="This is no chest. " * 8))
    hub.picture(message)
    page, complaints = opened(browser, width)
    for path in ("/", f"/case/{message.capture.id}", f"/case/{result(2).capture.id}", "/devices", "/nowhere"):
        page.goto(hub.url + path)
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        small = page.eval_on_selector_all(
            "button, nav a, input:not([type=hidden]):not([type=range]):not([type=radio]):not([type=checkbox])",
            "items => items.filter(i => i.offsetParent && i.getBoundingClientRect().height < 24).map(i => i.outerHTML)",
        )
        assert small == [], path
    assert [text for text in complaints if "404" not in text] == []


def reader(browser, hub, message, name="Dr Roe", width=1280, **options):
    """A case opened by somebody where nobody signs in."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    context.add_cookies([{"name": "reviewer", "value": name, "url": hub.url}])
    page = context.new_page()
    page.goto(f"{hub.url}/case/{message.capture.id}")
    return page


@pytest.mark.parametrize(("key", "decision"), [("a", "accept"), ("r", "reject")])
def test_a_case_is_accepted_or_rejected_by_one_key_and_its_confirmation(browser, hub, key, decision):
    message = hub.take(result())
    page = reader(browser, hub, message)
    page.keyboard.press(key)
    expect(page.locator("#confirm")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#confirm")).to_be_hidden()
    page.keyboard.press(key)
    page.keyboard.press("Enter")
    expect(page.locator(".reviews li")).to_have_count(1)
    with hub.database.read() as connection:
        assert case(connection, message.capture.id, 0).summary.decision == decision


def test_a_finding_is_changed_and_sent_by_keys_alone(browser, hub):
    message = hub.take(result())
    page = reader(browser, hub, message)
    page.keyboard.press("m")
    page.keyboard.press("ArrowRight")
    expect(page.locator("button.accept")).to_be_disabled()
    page.keyboard.press("m")
    page.keyboard.press("Enter")
    expect(page.locator(".reviews")).to_contain_text("pneumothorax: absent")


def test_a_report_is_preliminary_until_it_is_signed_with_a_confirmation(browser, hub):
    message = hub.take(result())
    page = reader(browser, hub, message)
    expect(page.locator("#h-report")).to_contain_text("Preliminary")
    page.fill("textarea[name=text]", "Pneumothorax on the right.")
    page.click("text=Sign report")
    page.keyboard.press("Enter")
    expect(page.locator(".signed")).to_contain_text("Pneumothorax on the right.")
    expect(page.locator("#h-report")).to_contain_text("Signed")
    expect(page.locator(".reviews")).to_contain_text("Pneumothorax on the right.")


def test_an_open_case_says_that_somebody_else_has_claimed_it(browser, hub):
    message = hub.take(result())
    page = reader(browser, hub, message)
    expect(page.locator("#changed")).to_be_hidden()
    page.wait_for_function("!document.getElementById('acknowledge')")
    with hub.database.write() as connection:
        claim(connection, hub.database, message.capture.id, "Dr Low", hub.receiver.now_ms())
    expect(page.locator("#changed")).to_contain_text("changed meanwhile", timeout=10_000)
    page.click("#changed a")
    expect(page.locator("main")).to_contain_text("Dr Low is reading this case")


def test_a_length_is_measured_by_two_presses_in_millimetres_at_the_detector(browser, hub):
    message = hub.take(result())
    hub.picture(message, ImagerPixelSpacing=["0.5", "0.5"], Modality="DX")
    page = reader(browser, hub, message)
    expect(page.locator("#stage canvas")).to_be_visible(timeout=20_000)
    page.click("[data-tool=measure]")
    box = page.locator("#stage canvas").bounding_box()
    for share in (0.2, 0.6):
        page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    words = page.locator("#length").inner_text()
    assert "at the detector" in words
    assert abs(float(words.split()[0]) - 0.4 * 300 * 0.5) < 1
    page.click("#larger")
    page.click("#larger")
    box = page.locator("#stage").bounding_box()
    for share in (0.3, 0.7):
        page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    zoomed = float(page.locator("#length").inner_text().split()[0])
    shown = page.locator("#stage canvas").bounding_box()["width"]
    assert abs(zoomed - 0.4 * box["width"] / shown * 150) < 1


def test_a_clip_plays_steps_and_says_its_times(browser, hub):
    message = hub.take(result())
    hub.picture(message, frames=5, FrameTime="40")
    page = reader(browser, hub, message)
    expect(page.locator("#frame-time")).to_have_text("1 of 5, 0.00 s", timeout=20_000)
    page.click("#step-on")
    expect(page.locator("#frame-time")).to_have_text("2 of 5, 0.04 s")
    page.click("#step-back")
    page.click("#step-back")
    expect(page.locator("#frame-time")).to_have_text("5 of 5, 0.16 s")
    page.click("#play")
    expect(page.locator("#frame-time")).to_have_text("3 of 5, 0.08 s", timeout=10_000)
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Play")


def test_a_recording_is_drawn_from_its_own_samples_and_filtered(browser, hub):
    message = result(2, findings=[])
    message = msgspec.structs.replace(
        message, capture=msgspec.structs.replace(message.capture, modality=Modality.HEART_SOUND, position="mitral")
    )
    hub.take(message)
    hub.sound(message)
    page = reader(browser, hub, message)
    expect(page.locator("#spectrum")).to_be_visible(timeout=20_000)
    bright = """([x, hz]) => {
      const c = document.getElementById('spectrum');
      const y = Math.round(c.height * (1 - hz / 2000));
      return c.getContext('2d').getImageData(Math.round(c.width * x), y, 1, 1).data[0];
    }"""
    assert page.evaluate(bright, [0.75, 900]) > 150
    assert page.evaluate(bright, [0.25, 900]) < 60
    assert page.evaluate(bright, [0.25, 120]) > 150
    page.click("text=Heart, 25–400 Hz")
    expect(page.locator(".band[aria-pressed=true]")).to_have_count(1)


def test_a_page_that_nobody_touches_locks_and_the_password_leads_back(browser, tmp_path):
    hub = Hub(tmp_path, {"rita": {Role.READER}})
    message = hub.take(result())
    page, _ = opened(browser)
    page.goto(f"{hub.url}/case/{message.capture.id}")
    page.fill("[name=name]", "rita")
    page.fill("[name=password]", PASSWORD)
    page.click("main button")
    expect(page.locator("h1")).to_contain_text("DOE")
    expect(page.locator("h1")).to_have_text("Locked", timeout=15_000)
    page.fill("[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("DOE")
    hub.close()


class Ward:
    """A hub with cases in every state, for looking at."""

    def __init__(self, hub):
        self.hub = hub
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 20 * 60))
        received = Moment(boot_id="boot", monotonic_ns=1, wall=now, uncertainty_s=1.0)
        patient = Patient(id="17", name="OTIENO^AMINA", sex="F", age_years=41)
        overlay = OverlayPart(
            finding="pneumothorax", rows=4, columns=4, data=bytes(range(0, 256, 16)), box=(0.1, 0.5, 0.5, 0.9)
        )
        self.film = self.of(result(1, overlay=overlay), received=received, patient=patient, view="PA")
        sound = {"modality": Modality.LUNG_SOUND, "position": "left upper chest"}
        self.sound = self.of(result(2, findings=[], triage=Triage.URGENT), received=received, patient=patient, **sound)
        unread = result(3, triage=Triage.ROUTINE, status="not_read", findings=[], reason="This is not a chest.")
        self.unread = self.of(unread, received=received)
        self.read = self.of(result(4), received=received)
        for message in (self.film, self.sound, self.unread, self.read):
            hub.take(message)
        hub.picture(self.film, ImagerPixelSpacing=["0.5", "0.5"], Modality="DX")
        hub.sound(self.sound)
        status = Status(online=True, version="0.1.0", bundles={"chest-xray": "1.0.0"}, free_bytes=9 * 10**9)
        hub.receiver.handle([incoming(status, leaf="status")])
        values = {"sent_bytes": 4e7, "sent_again_bytes": 1e6, "disk_total": 64e9, "temperature_c": 51.0}
        hub.receiver.handle([incoming(Telemetry(values=values), leaf="telemetry")])

    def of(self, message, **changes):
        return msgspec.structs.replace(message, capture=msgspec.structs.replace(message.capture, **changes))

    def pages(self):
        return {
            "worklist": "/",
            "none": "/?text=nobody",
            "reviewed": "/?shown=reviewed",
            "film": f"/case/{self.film.capture.id}",
            "sound": f"/case/{self.sound.capture.id}",
            "unread": f"/case/{self.unread.capture.id}",
            "read": f"/case/{self.read.capture.id}",
            "boxes": "/devices",
            "quality": "/quality",
            "card": "/model/chest-xray/1.0.0",
            "people": "/people",
            "audit": "/audit",
            "sign-in": "/sign-in",
            "problem": "/nowhere",
        }


@pytest.fixture
def ward(hub):
    made = Ward(hub)
    with hub.database.write() as connection:
        request = ReviewRequest(decision="modify", result_id=made.read.id, findings={"effusion": True}, note="Drain.")
        review(connection, hub.database, made.read.capture.id, request, "Dr Low", hub.receiver.now_ms())
    return made


def violations(page):
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("rules => axe.run({runOnly: {type: 'tag', values: rules}})", RULES)
    return [f"{one['id']}: {node['html'][:160]}" for one in found["violations"] for node in one["nodes"]]


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 800)])
def test_no_page_violates_wcag_2_2_aa_or_overflows(browser, ward, scheme, width):
    page = reader(browser, ward.hub, ward.film, width=width, color_scheme=scheme, bypass_csp=True)
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    wrong = {}
    for name, path in ward.pages().items():
        page.goto(ward.hub.url + path)
        page.wait_for_timeout(700 if name in ("film", "sound") else 50)
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
        page.screenshot(path=ARTEFACTS / f"{name}-{width}.png", full_page=True)
        found = violations(page)
        if page.evaluate("document.documentElement.scrollWidth - innerWidth") > 0:
            found.append("overflows")
        if found:
            wrong[name] = found
    assert wrong == {}
