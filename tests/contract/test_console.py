"""The console over HTTP, the real server on a free port, a real store behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from appliance.capture.intake import StoreFull
from appliance.config import ConsoleConfig
from appliance.console import api, api_visits
from appliance.console.guard import named
from appliance.console.listener import ConsoleError
from appliance.console.server import ConsoleServer
from appliance.reading.requests import Raw
from appliance.records import Measure, Modality, Patient, Triage
from appliance.store.store import Store
from tests.console_world import World, finding, png, wav

HOSTILE = '<script>alert("x")</script>"\'><img src=x onerror=alert(1)>{{ 7*7 }}'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("box"))
    yield world
    world.close()


@pytest.fixture
def world(made: World) -> World:
    """The box of this module, as a fresh one for what is not in the store."""
    made.client.cookies.clear()
    return made


def page(world: World, path: str, status: int = 200) -> str:
    answer = world.client.get(path)
    assert answer.status_code == status, answer.text
    return answer.text


def test_a_box_without_captures_explains_how_to_send_the_first_one(tmp_path: Path) -> None:
    empty = World(tmp_path)
    try:
        text = page(empty, "/")
    finally:
        empty.close()
    assert "No captures yet" in text
    assert "DICOM destination" in text
    assert "listening on port 11112 as BEDSIDE" in text


def test_a_capture_is_listed_at_once_as_being_read_and_then_with_its_answer(world: World) -> None:
    capture = world.keep(png(shade=1), patient=Patient(id="P1", name="Otieno^Amina", age_years=0.5, sex="F"))
    before = row(page(world, "/"), capture)
    assert "Being read" in before
    assert " · ".join(f"<bdi>{part}</bdi>" for part in ("Amina Otieno", "ID P1", "6 months", "female")) in before
    world.read(capture, triage=Triage.URGENT, findings=(finding("Consolidation", 0.71), finding("Effusion", 0.2)))
    after = row(page(world, "/"), capture)
    assert "Urgent" in after
    assert "Consolidation 71%" in after
    assert "Effusion" not in after


def test_the_human_s_word_replaces_the_waiting(world: World) -> None:
    capture = world.keep(png(shade=2))
    world.read(capture)
    assert "Not sent yet" in row(page(world, "/"), capture)
    world.report(capture)
    assert "Not sent yet" in row(page(world, "/"), capture)
    other = world.keep(png(shade=3))
    world.read(other)
    world.report(other, receipt=True)
    assert "Waiting for a radiologist" in row(page(world, "/"), other)
    world.review(other, "modify", note="Repeat tomorrow", findings={"effusion": True}, triage=Triage.URGENT)
    assert "Radiologist changed the findings" in row(page(world, "/"), other)
    text = page(world, f"/captures/{other}")
    assert "Repeat tomorrow" in text
    assert "Dr. Amina Otieno" in text
    assert "How soon: Urgent" in text
    assert re.search(r"effusion</span>: <strong>yes", text)


def test_a_critical_capture_calls_until_a_human_has_noted_it(world: World) -> None:
    capture = world.keep(png(shade=4))
    world.read(capture, triage=Triage.CRITICAL, findings=(finding("Pneumothorax", 0.93),))
    assert capture in attention(page(world, "/"))
    assert "No radiologist has seen this yet" in page(world, f"/captures/{capture}")
    world.command(capture, "acknowledged")
    assert capture not in attention(page(world, "/"))
    assert "A radiologist has taken note" in row(page(world, "/"), capture)


def test_who_still_has_not_been_seen_is_one_tap_away(world: World) -> None:
    seen, unseen = world.keep(png(shade=41)), world.keep(png(shade=42))
    for capture in (seen, unseen):
        world.read(capture, triage=Triage.ROUTINE)
    world.review(seen)
    assert "not yet seen by a radiologist" in page(world, "/")
    text = page(world, "/?shown=unseen")
    assert row(text, unseen)
    assert f"/captures/{seen}" not in text


def test_an_escalated_capture_calls_until_it_is_reviewed(world: World) -> None:
    capture = world.keep(png(shade=5))
    world.read(capture, triage=Triage.URGENT)
    world.command(capture, "escalate")
    assert capture in attention(page(world, "/"))
    world.review(capture)
    assert capture not in attention(page(world, "/"))


def test_the_answer_shows_what_was_found_how_sure_by_what_and_what_to_do(world: World) -> None:
    capture = world.keep(png(shade=6), view="PA", description="Thorax")
    world.read(
        capture,
        triage=Triage.URGENT,
        advice="Refer today. Advice for a health worker, not a diagnosis.",
        findings=(finding("Effusion", 0.71, confidence="low"), finding("Nodule", 0.004, experimental=True)),
        measures=(Measure(id="rate", label="Heart rate", value=84.2, unit="/min"),),
        warnings=("The film is rotated.",),
    )
    text = page(world, f"/captures/{capture}")
    for said in (
        *("Refer today.", "Effusion", "71%", "&lt; 1%", "uncertain", "counts as found from 45%", "experimental"),
        *("The film is rotated.", "Effusion: the answer is uncertain.", "84 per minute"),
        *(
            "The model looked only for: Effusion, Nodule.",
            "chest-xray 1.0.0",
            "CPUExecutionProvider",
            "passed",
            "83 ms",
        ),
    ):
        assert said in text, said
    assert text.count("Advice for a health worker, not a diagnosis.") == 1


def test_a_capture_that_is_not_read_says_why_and_what_to_do(world: World) -> None:
    capture = world.keep(png(shade=7))
    world.refuse(capture, "This is not a chest X-ray.", "Send the chest film.")
    text = page(world, f"/captures/{capture}")
    assert "Not read" in text
    assert "This is not a chest X-ray." in text
    assert "Send the chest film." in text
    assert "Routine" not in text
    assert "Not read" in row(page(world, "/"), capture)


def test_hostile_text_from_a_sender_or_the_hub_is_shown_and_never_run(world: World) -> None:
    patient = Patient(id=HOSTILE[:60], name=HOSTILE)
    capture = world.keep(png(shade=8), patient=patient, description=HOSTILE, view=HOSTILE, position=HOSTILE)
    world.read(capture, advice=HOSTILE, warnings=(HOSTILE,), findings=(finding(HOSTILE, 0.9),), overlay_finding=HOSTILE)
    world.review(capture, "reject", note=HOSTILE, reviewer=HOSTILE, findings={HOSTILE: True})
    for path in ("/", f"/captures/{capture}"):
        text = page(world, path)
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;alert" in text
        assert "49" not in text.split("&lt;script&gt;")[1][:60]


@pytest.mark.parametrize(
    "identity", ["0" * 32, "nope", "..%2f..%2fetc%2fpasswd", "A" * 32, "%00", "a" * 5000, "'%20OR%201=1--", "é"]
)
@pytest.mark.parametrize(
    "path", ["/captures/{}", "/api/captures/{}", "/api/captures/{}/preview", "/api/captures/{}/original"]
)
def test_an_unknown_or_hostile_id_gets_a_clear_not_here(world: World, path: str, identity: str) -> None:
    answer = world.client.get(path.format(identity))
    assert answer.status_code == 404
    if path.startswith("/api"):
        assert msgspec.json.decode(answer.content)["error"] == "There is no such page or capture on this box."
    else:
        assert "There is no such page or capture on this box." in answer.text


def test_a_damaged_blob_is_told_with_its_remedy_and_hides_no_other(world: World) -> None:
    capture, other = world.keep(png(shade=9)), world.keep(png(shade=10))
    path = world.store.vault.path(world.store.captures.get(capture).capture.sha256)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    answer = world.client.get(f"/api/captures/{capture}/original")
    assert answer.status_code == 500
    assert "damaged" in answer.json()["error"]
    assert "Take the capture again" in answer.json()["remedy"]
    assert other in page(world, "/")


def test_a_damaged_record_is_one_line_of_the_list_and_a_clear_page(world: World) -> None:
    capture, other = world.keep(png(shade=11)), world.keep(png(shade=12))
    world.read(capture)
    world.store.journal.write(
        lambda tx: tx.run("UPDATE reading SET sealed = zeroblob(40) WHERE capture_id = ?", capture)
    )
    text = page(world, "/")
    assert "Damaged" in row(text, capture)
    assert other in text
    assert "Take the capture again" in page(world, f"/captures/{capture}", 500)
    world.store.journal.write(lambda tx: tx.run("DELETE FROM reading WHERE capture_id = ?", capture))


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_write_from_another_site_is_refused(world: World, headers: dict[str, str]) -> None:
    capture = world.keep(png(shade=13))
    uploads = len(world.uploads)
    for path in ("/api/captures", "/captures", f"/captures/{capture}/agreement", f"/api/captures/{capture}/agreement"):
        answer = world.client.post(path, headers=headers, files={"file": ("x.png", png(shade=14))})
        assert answer.status_code == 403
        assert "another site" in answer.text
    assert len(world.uploads) == uploads
    assert capture not in world.agreements


def test_the_console_s_own_origin_may_write(world: World) -> None:
    capture = world.keep(png(shade=15))
    headers = {"origin": world.url, "sec-fetch-site": "same-origin"}
    answer = world.client.post(f"/captures/{capture}/agreement", data={"agree": "yes"}, headers=headers)
    assert answer.status_code == 303
    assert world.agreements[capture] is True


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "a@127.0.0.1", "x/y"]
)
def test_a_foreign_name_is_refused(world: World, host: str) -> None:
    answer = world.client.get("/", headers={"host": host})
    assert answer.status_code in {400, 421}
    assert "Captures" not in answer.text or answer.status_code == 421


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "192.168.1.7", "[::1]:8080", "[fe80::1]", "LOCALHOST", "localhost."]
)
def test_an_address_or_own_name_is_answered(host: str) -> None:
    assert named(host.lower(), {"localhost"})


def test_every_answer_carries_the_protecting_headers(world: World) -> None:
    capture = world.keep(png(shade=16))
    for path in ("/", "/add", f"/captures/{capture}", "/captures/none", "/api/status", "/static/console.css"):
        headers = world.client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")


def test_no_page_needs_what_the_policy_forbids(world: World) -> None:
    capture = world.keep(png(shade=17))
    world.read(capture, findings=(finding("Effusion", 0.7),))
    for path in ("/", "/add", f"/captures/{capture}"):
        text = page(world, path)
        assert not re.search(r"<\w[^<>]*\s(style|on\w+)=", text)
        assert not re.search(r"<script(?![^>]*\ssrc=\"/static/)", text)
        assert not re.search(r"(src|href|action)=\"(https?:)?//", text)


def test_the_first_page_is_small(world: World) -> None:
    text = page(world, "/")
    linked = re.findall(r"(?:src|href)=\"(/static/[^\"]+)\"", text)
    assert len(linked) >= 3
    total = len(text.encode()) + sum(len(world.client.get(path).content) for path in set(linked))
    assert total < 200_000


def test_a_handed_in_file_is_kept_and_shown(world: World) -> None:
    form = {"modality": "chest-xray", "age": "0,5", "sex": "F", "patient_id": "P9", "patient_name": "Amina"}
    answer = world.client.post("/captures", data=form, files={"file": ("secret name.png", png(shade=18))})
    assert answer.status_code == 303
    assert re.fullmatch(r"/captures/[0-9a-f]{32}", answer.headers["location"])
    upload = world.uploads[-1]
    assert (upload.modality, upload.age_years, upload.patient_id) == (Modality.CHEST_XRAY, 0.5, "P9")
    assert upload.data == png(shade=18)
    assert "<bdi>Amina</bdi> · <bdi>ID P9</bdi>" in page(world, answer.headers["location"])


def test_a_large_handed_in_file_never_lies_on_the_disk_in_plain(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rolled = []
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", lambda _: rolled.append(1))
    data = png() + b"\0" * 5_000_000
    answer = world.client.post("/api/captures", files={"file": ("x.png", data)})
    assert answer.status_code == 201
    assert world.store.vault.read(world.store.captures.get(answer.json()["capture_id"]).capture.sha256) == data
    assert not rolled


def test_the_same_file_handed_in_twice_is_one_capture(world: World) -> None:
    first = world.client.post("/api/captures", files={"file": ("x.png", png(shade=19))})
    second = world.client.post("/api/captures", files={"file": ("y.png", png(shade=19))})
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json() == {"capture_id": first.json()["capture_id"], "duplicate": True, "conflict": False}


@pytest.mark.parametrize(
    ("form", "file", "said"),
    [
        ({}, None, "No file was chosen"),
        ({}, b"", "The file is empty"),
        ({}, b"just text", "no DICOM, PNG, JPEG, WAV or FLAC"),
        ({"age": "old"}, png(), "The age must be a number"),
        ({"age": "nan"}, png(), "The age must be a number"),
        ({"age": "-1"}, png(), "The age must be a number"),
        ({"modality": "brain"}, png(), "from the list"),
        ({"sex": "x"}, png(), "from the list"),
        ({"position": "elbow"}, png(), "from the list"),
        ({"patient_name": "x" * 200}, png(), "too long"),
        ({"patient_name": "x" * 5000}, png(), "could not be understood"),
    ],
)
def test_a_form_that_is_wrong_is_refused_with_the_remedy(
    world: World, form: dict[str, str], file: bytes | None, said: str
) -> None:
    files = {"file": ("x.png", file)} if file is not None else {"other": ("", b"")}
    answer = world.client.post("/api/captures", data=form, files=files)
    assert answer.status_code == 422
    assert said in answer.json()["error"]
    assert answer.json()["remedy"] == "Nothing was saved."


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    world = World(tmp_path, upload_limit=100_000)
    try:
        told = world.client.post("/api/captures", files={"file": ("x.png", png() + b"\0" * 200_000)})
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\n'
        parts = (head if number == 0 else b"x" * 50_000 for number in range(10))
        chunked = world.client.post(
            "/api/captures", content=parts, headers={"content-type": "multipart/form-data; boundary=x"}
        )
    finally:
        world.close()
    assert told.status_code == chunked.status_code == 413
    assert "by DICOM or through the folder" in told.json()["remedy"]
    assert not world.uploads


def test_a_full_disk_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "free", lambda _: -5_000_000)
    answer = world.client.post("/api/captures", files={"file": ("x.png", png(shade=20))})
    assert answer.status_code == 507
    assert "nearly full" in answer.json()["error"]
    assert StoreFull.code == "store-full"


def test_agreement_is_noted_by_page_and_by_api_and_shown(world: World) -> None:
    capture = world.keep(png(shade=21))
    world.read(capture)
    world.client.post(f"/captures/{capture}/agreement", data={"agree": "no"})
    assert world.agreements[capture] is False
    assert re.search(r'value="no"[^>]*aria-pressed="true"', page(world, f"/captures/{capture}"))
    answer = world.client.post(f"/api/captures/{capture}/agreement", json={"agree": True})
    assert answer.json() == {"agree": True}
    assert world.agreements[capture] is True
    for wrong in (b"", b"{}", b'{"agree": "maybe"}', b"[1]"):
        assert world.client.post(f"/api/captures/{capture}/agreement", content=wrong).status_code == 422
    assert world.client.post(f"/captures/{capture}/agreement", data={"agree": "maybe"}).status_code == 422
    assert world.client.post(f"/api/captures/{'0' * 32}/agreement", json={"agree": True}).status_code == 404


def test_the_original_comes_back_byte_for_byte_whole_and_in_ranges(world: World) -> None:
    data = wav(seconds=2)
    capture = world.keep(data, Modality.HEART_SOUND)
    url = f"/api/captures/{capture}/original"
    whole = world.client.get(url)
    assert (whole.content, whole.headers["content-type"]) == (data, "audio/wav")
    assert capture in whole.headers["content-disposition"]
    for asked, start, end in (("0-0", 0, 1), ("100-199", 100, 200), ("15000-", 15000, None), ("-10", -10, None)):
        part = world.client.get(url, headers={"range": f"bytes={asked}"})
        assert (part.status_code, part.content) == (206, data[start:end])
    assert world.client.get(url, headers={"range": "bytes=999999-"}).status_code == 416
    assert world.client.get(url, headers={"range": "bytes=0-1,5-6"}).content == data


def test_a_dicom_original_is_a_download_and_never_shown_in_place(world: World) -> None:
    capture = world.keep(b"\0" * 128 + b"DICM<script>", media_type="application/dicom")
    headers = world.client.get(f"/api/captures/{capture}/original").headers
    assert headers["content-disposition"] == f'attachment; filename="{capture}.dcm"'
    odd = world.keep(b"<script>alert(1)</script>", media_type="text/html")
    headers = world.client.get(f"/api/captures/{odd}/original").headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"].startswith("attachment")


def test_the_preview_is_what_the_box_made_and_only_a_picture(world: World) -> None:
    capture = world.keep(png(shade=22))
    assert world.client.get(f"/api/captures/{capture}/preview").status_code == 404
    world.previews[capture] = ("image/png", png(shade=22))
    assert world.client.get(f"/api/captures/{capture}/preview").content == png(shade=22)
    world.previews[capture] = ("text/html", b"<script>")
    assert world.client.get(f"/api/captures/{capture}/preview").status_code == 404


def test_the_stored_values_come_with_all_their_depth_and_what_they_mean(world: World) -> None:
    capture = world.keep(png(shade=31))
    assert world.client.get(f"/api/captures/{capture}/pixels").status_code == 404
    values = np.arange(12, dtype="<u2").reshape(3, 4) * 5000
    world.greys[capture] = Raw(
        rows=3, columns=4, offset=-32768, low=-100.0, high=900.5, invert=True, data=values.tobytes()
    )
    answer = world.client.get(f"/api/captures/{capture}/pixels")
    assert answer.status_code == 200, answer.text
    assert np.array_equal(np.frombuffer(answer.content, "<u2").reshape(3, 4), values)
    said = {name: answer.headers[f"x-{name}"] for name in ("rows", "columns", "offset", "window", "invert")}
    assert said == {"rows": "3", "columns": "4", "offset": "-32768", "window": "-100 900.5", "invert": "1"}


def test_a_recording_of_any_rate_is_played_as_a_rate_that_browsers_take(world: World) -> None:
    slow = world.keep(wav(seconds=1, rate=2000), Modality.HEART_SOUND)
    answer = world.client.get(f"/api/captures/{slow}/sound")
    assert answer.headers["content-type"] == "audio/wav"
    assert int.from_bytes(answer.content[24:28], "little") == 8000
    assert abs(len(answer.content) - 44 - 2 * 8000) < 64
    part = world.client.get(f"/api/captures/{slow}/sound", headers={"range": "bytes=44-99"})
    assert (part.status_code, part.content) == (206, answer.content[44:100])
    assert "<audio" in page(world, f"/captures/{slow}")
    picture = world.keep(png(shade=23))
    assert world.client.get(f"/api/captures/{picture}/sound").status_code == 404


def test_the_list_by_api_is_newest_first_and_as_long_as_asked(world: World) -> None:
    older, newer = world.keep(png(shade=24)), world.keep(png(shade=25))
    given = world.client.get("/api/captures", params={"limit": 2}).json()["captures"]
    assert [line["id"] for line in given] == [newer, older]
    assert all(line["level"] == "reading" for line in given)
    for odd in ("0", "-1", "x", "9" * 50, "1e3"):
        assert world.client.get("/api/captures", params={"limit": odd}).status_code == 200


def test_the_status_by_api_is_what_the_status_bar_shows(world: World) -> None:
    given = world.client.get("/api/status").json()
    assert given["free_bytes"] == 41_200_000_000
    assert given["models"][0]["bundle"] == "chest-xray"
    text = page(world, "/")
    assert "41 GB free" in text
    assert "Offline" in text
    assert "for 2 h" in text


def test_the_api_document_names_every_route_and_every_route_answers_as_it_says(world: World) -> None:
    document = world.client.get("/api/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    site = world.server._app
    served = {
        (route.path, method)
        for route in site.routes
        if getattr(route, "path", "").startswith("/api/")
        for method in route.methods - {"HEAD"}
    }
    assert described == served
    assert served >= {(one.path, one.method) for one in (*api.ROUTES, *api_visits.ROUTES)}
    for path, methods in document["paths"].items():
        if "get" in methods and "{id}" not in path:
            assert world.client.get(path).status_code == 200
    detail = world.client.get(f"/api/captures/{world.keep(png(shade=26))}")
    required = document["components"]["schemas"]["CaptureDetail"]["required"]
    assert set(required) <= set(detail.json())


def test_an_unchanged_page_is_not_sent_again(world: World) -> None:
    capture = world.keep(png(shade=27))
    first = world.client.get(f"/captures/{capture}")
    again = world.client.get(f"/captures/{capture}", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    world.read(capture)
    changed = world.client.get(f"/captures/{capture}", headers={"if-none-match": first.headers["etag"]})
    assert changed.status_code == 200


def test_no_address_holds_anything_of_the_patient(world: World) -> None:
    capture = world.keep(png(shade=28), patient=Patient(id="UNIQUE77", name="Zawadi"), accession_number="UNIQUE88")
    text = page(world, "/") + page(world, f"/captures/{capture}")
    addresses = " ".join(re.findall(r"(?:href|src|action)=\"([^\"]+)\"", text))
    assert not re.search("UNIQUE|Zawadi", addresses)


def test_a_program_error_is_counted_and_answered_without_its_content(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(_: str) -> None:
        raise RuntimeError("patient Zawadi")

    capture = world.keep(png(shade=29))
    site = world.server._app.state.site
    before = site.counts["failed"]
    monkeypatch.setattr("appliance.console.serve.original", lambda *_: fails("x"))
    answer = world.client.get(f"/api/captures/{capture}/original")
    assert answer.status_code == 500
    assert "Zawadi" not in answer.text
    assert site.counts["failed"] == before + 1
    assert "Zawadi" not in "".join(capfd.readouterr())


def test_a_port_that_is_taken_is_told_with_its_remedy(world: World) -> None:
    second = ConsoleServer(ConsoleConfig(port=world.server.port), world.context)
    with pytest.raises(ConsoleError, match="to a free port"):
        second.start()


def test_a_stopped_console_lets_go_of_its_port(tmp_path: Path) -> None:
    world = World(tmp_path)
    port = world.server.port
    world.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")
    world.server.stop()


def row(text: str, capture: str) -> str:
    """The line of a capture in the list, wherever on the page."""
    return next(part for part in text.split('<li class="row ')[1:] if f"/captures/{capture}" in part).split("</li>")[0]


def attention(text: str) -> str:
    """The part of the list that calls for somebody."""
    return text.split('data-live="attention"')[1].split('class="title-row"', maxsplit=1)[0]
