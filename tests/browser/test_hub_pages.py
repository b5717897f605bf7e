"""The hub in a real browser: the worklist refreshes itself, the viewer works, a review is two actions, nothing overflows."""

from __future__ import annotations

import shutil
import socket
import threading
import time

import msgspec
import numpy as np
import pytest
import uvicorn
from playwright.sync_api import expect, sync_playwright
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from appliance.protocol.messages import OverlayPart
from appliance.records import Patient, Triage
from hub.blobs import BlobStore
from hub.cases import case, worklist
from hub.database import Database
from hub.receive import Receiver
from hub.web.app import make_app
from hub.web.site import Site
from tests.wire import incoming, incoming_chunk, pieces, result

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package chromium"),
]


class Hub:
    """A hub that is served, without a broker."""

    def __init__(self, folder):
        self.database = Database(f"sqlite:///{folder}/hub.sqlite")
        self.database.migrate()
        self.blobs = BlobStore(folder / "blobs")
        self.blobs.open()
        self.receiver = Receiver(self.database, self.blobs)
        self.site = Site(self.database, self.blobs)
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

    def picture(self, message):
        pixels = np.tile(np.linspace(0, 4095, 300).astype("<u2"), (200, 1))
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 200, 300, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelData = pixels.tobytes()
        path = self.blobs.folder / "made.dcm"
        dataset.save_as(path, enforce_file_format=True)
        for chunk in pieces(path.read_bytes(), capture=message.capture.id):
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
    expect(page.locator(".overlay")).to_be_visible()
    page.uncheck("#overlay-on")
    expect(page.locator(".overlay")).to_be_hidden()
    assert complaints == []


def test_a_case_can_be_reviewed_without_scripts(browser, hub):
    message = hub.take(critical())
    page, _ = opened(browser, scripts=False)
    page.goto(f"{hub.url}/case/{message.capture.id}")
    page.fill("input[name=reviewer]", "Dr Low")
    page.click("summary:has-text('Change findings')")
    page.check("input[name='finding:pneumothorax'][value=no]")
    page.click("text=Send modified")
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
