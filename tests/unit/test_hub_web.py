"""Claims about the hub's pages and JSON interface: urgent first, once, escaped, guarded."""

from __future__ import annotations

import base64
import re

import argon2
import msgspec
import pytest
from sqlalchemy import select
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from appliance.protocol.messages import OverlayPart, Receipt, ReceiptItem, ReviewMessage, decode, sha256
from appliance.records import Modality, Patient, Triage
from hub import tables, users
from hub.blobs import BlobStore
from hub.config import EscalationConfig, OutboxConfig
from hub.database import Database
from hub.downlink import Downlink
from hub.people import People
from hub.receive import Receiver
from hub.sessions import Sessions
from hub.web import api
from hub.web.app import make_app
from hub.web.site import Site
from tests.wire import BOX, incoming, incoming_chunk, pieces, result

MINUTE = 60_000


class Hub:
    """A hub without a broker, with a clock that the test turns."""

    def __init__(self, folder, with_users=None, *, signs_in=False):
        self.now_ms = 1_800_000_000_000
        self.database = Database(f"sqlite:///{folder}/hub.sqlite")
        self.database.migrate()
        self.blobs = BlobStore(folder / "blobs")
        self.blobs.open()
        self.nudges = 0
        self.receiver = Receiver(self.database, self.blobs, clock_ms=lambda: self.now_ms)
        passwords = users.Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        self.people = People(self.database, with_users, passwords) if signs_in or with_users else None
        self.sessions = Sessions(self.database, self.people) if self.people else None
        self.site = Site(
            *(self.database, self.blobs, self.people, self._nudge),
            clock_ms=lambda: self.now_ms,
            sessions=self.sessions,
        )
        self.app = make_app(self.site)
        self.client = TestClient(self.app, base_url="http://127.0.0.1", follow_redirects=False)
        self.client.headers["Origin"] = "http://127.0.0.1"
        self.down = Downlink(
            self.database, OutboxConfig(), EscalationConfig(critical_after=(15, 30)), lambda: self.now_ms
        )

    def _nudge(self):
        self.nudges += 1

    def take(self, *messages):
        self.receiver.handle([incoming(message) for message in messages])

    def json(self, path):
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def review(self, message, **changes):
        body = {"decision": "accept", "result_id": message.id, "reviewer": "Dr Roe", **changes}
        return self.client.post(f"/api/cases/{message.capture.id}/review", json=body)

    def outbox(self):
        with self.database.read() as connection:
            return connection.execute(select(tables.outbox).order_by(tables.outbox.c.created_ms)).all()


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path)
    yield hub
    hub.database.close()


def unknown_time(message):
    """The same result from a box whose clock is not to be trusted: the hub's clock says how long it waits."""
    received = msgspec.structs.replace(message.capture.received, uncertainty_s=None)
    return msgspec.structs.replace(message, capture=msgspec.structs.replace(message.capture, received=received))


def test_the_worklist_goes_by_urgency_and_then_by_waiting_time(hub):
    for number, triage in enumerate((Triage.ROUTINE, Triage.URGENT, Triage.CRITICAL, Triage.URGENT, Triage.CRITICAL)):
        hub.take(unknown_time(result(number, triage=triage)))
        hub.now_ms += MINUTE
    found = [(case["triage"], round(case["waiting_seconds"] / 60)) for case in hub.json("/api/cases")["cases"]]
    assert found == [("critical", 3), ("critical", 1), ("urgent", 4), ("urgent", 2), ("routine", 5)]


def test_a_trusted_bedside_clock_says_how_long_the_patient_has_waited_and_never_from_the_future(hub):
    message = result()
    late = msgspec.structs.replace(message.capture.received, wall="2099-01-01T00:00:00Z")
    future = msgspec.structs.replace(result(2), capture=msgspec.structs.replace(result(2).capture, received=late))
    hub.take(message, future)
    waits = {case["id"]: case["waiting_since"] for case in hub.json("/api/cases")["cases"]}
    assert waits[message.capture.id] == "2026-01-01T08:00:00Z"
    assert waits[future.capture.id] == "2027-01-15T08:00:00Z"


def test_a_review_goes_down_with_its_case_and_closes_it(hub):
    hub.take(result())
    answer = hub.review(result(), note="Agreed.")
    assert answer.status_code == 200
    [down] = [row for row in hub.outbox() if row.leaf == "review"]
    review = decode(down.payload, ReviewMessage)
    assert (review.decision, review.reviewer, review.note) == ("accept", "Dr Roe", "Agreed.")
    assert (down.device, review.capture_id) == (BOX.key, result().capture.id)
    assert hub.json("/api/cases")["cases"] == []
    assert hub.nudges == 1


def test_the_same_form_sent_twice_is_one_review(hub):
    hub.take(result())
    first = hub.review(result())
    hub.now_ms += MINUTE
    assert hub.review(result()).json() == first.json()
    assert sum(row.leaf == "review" for row in hub.outbox()) == 1


def test_a_review_of_what_has_changed_meanwhile_is_refused(hub):
    hub.take(result())
    assert hub.review(result()).status_code == 200
    answer = hub.review(result(), decision="reject", reviewer="Dr Low")
    assert answer.status_code == 409
    assert "meanwhile" in answer.json()["error"]
    later = result(revision=1)
    hub.take(later)
    answer = hub.review(result(), decision="reject", previous=hub.json(_case())["reviews"][0]["review"]["id"])
    assert answer.status_code == 409
    assert "newer result" in answer.json()["error"]


def _case(number=1):
    return f"/api/cases/{result(number).capture.id}"


def test_a_second_review_follows_the_first_and_the_last_word_counts(hub):
    hub.take(result())
    first = hub.review(result()).json()
    answer = hub.review(result(), decision="reject", previous=first["id"], note="Look again.")
    assert answer.status_code == 200
    case = hub.json(_case())
    assert case["summary"]["decision"] == "reject"
    assert [part["review"]["decision"] for part in case["reviews"]] == ["reject", "accept"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"decision": "maybe"}, 422),
        ({"findings": {"pneumothorax": False}}, 409),
        ({"decision": "modify"}, 409),
        ({"decision": "modify", "findings": {"dragons": True}}, 409),
        ({"reviewer": " "}, 422),
        ({"note": "x" * 5000}, 422),
        ({"unknown": 1}, 422),
    ],
)
def test_a_review_that_makes_no_sense_is_refused_with_a_sentence(body, status, hub):
    hub.take(result())
    answer = hub.review(result(), **body)
    assert (answer.status_code, len(hub.outbox())) == (status, 0)
    assert len(answer.json()["error"]) > 10


def test_the_form_on_the_page_modifies_a_finding_and_the_urgency(hub):
    hub.take(result())
    form = {
        "decision": "modify",
        "result_id": result().id,
        "previous": "",
        "reviewer": "Dr Roe",
        "note": "No air.",
        "finding:pneumothorax": "no",
        "finding:effusion": "no",
        "triage": "routine",
    }
    answer = hub.client.post(f"/case/{result().capture.id}/review", data=form)
    assert answer.status_code == 303
    [row] = [row for row in hub.outbox() if row.leaf == "review"]
    review = decode(row.payload, ReviewMessage)
    assert review.findings == {"pneumothorax": False}
    assert review.triage is Triage.ROUTINE
    assert "No air." in hub.client.get(f"/case/{result().capture.id}").text


def test_the_page_says_when_the_review_has_reached_the_bedside(hub):
    hub.take(result())
    hub.review(result())
    assert "On its way to the bedside" in hub.client.get(f"/case/{result().capture.id}").text
    [row] = [row for row in hub.outbox() if row.leaf == "review"]
    receipt = Receipt(items=[ReceiptItem(id=row.id, sha256=sha256(row.payload), status="stored")])
    hub.receiver.handle([incoming(receipt, leaf="receipt")])
    assert "Shown at the bedside" in hub.client.get(f"/case/{result().capture.id}").text


def test_a_critical_result_is_raised_again_until_a_human_has_seen_it(hub):
    hub.take(unknown_time(result()))
    assert hub.down.escalate() == 0
    for _ in range(2):
        hub.now_ms += 16 * MINUTE
        assert hub.down.escalate() == 1
        assert hub.down.escalate() == 0
    assert "Raised again 2×" in hub.client.get("/").text
    assert hub.client.post(_case() + "/acknowledge", json={"reviewer": "Dr Roe"}).json() == {"by": "Dr Roe"}
    hub.now_ms += 60 * MINUTE
    assert hub.down.escalate() == 0
    kinds = [msgspec.json.decode(row.payload)["kind"] for row in hub.outbox()]
    assert sorted(kinds) == ["acknowledged", "escalate", "escalate"]


@pytest.mark.parametrize("action", ["claim", "review"])
def test_claiming_or_reviewing_counts_as_having_seen_it(action, hub):
    hub.take(unknown_time(result()))
    if action == "claim":
        hub.client.post(_case() + "/claim", json={"reviewer": "Dr Roe"})
    else:
        hub.review(result())
    hub.now_ms += 60 * MINUTE
    assert hub.down.escalate() == 0


@pytest.mark.parametrize("triage", [Triage.URGENT, Triage.ROUTINE])
def test_what_is_not_critical_is_not_raised(triage, hub):
    hub.take(unknown_time(result(triage=triage)))
    hub.now_ms += 600 * MINUTE
    assert hub.down.escalate() == 0


def test_two_readers_do_not_get_the_same_case(hub):
    hub.take(result())
    assert hub.client.post(_case() + "/claim", json={"reviewer": "Dr Roe"}).json() == {"by": "Dr Roe"}
    assert hub.client.post(_case() + "/claim", json={"reviewer": "Dr Low"}).json() == {"by": "Dr Roe"}
    hub.client.post(_case() + "/release", json={"reviewer": "Dr Roe"})
    assert hub.client.post(_case() + "/claim", json={"reviewer": "Dr Low"}).json() == {"by": "Dr Low"}


def test_what_a_box_sends_is_escaped_on_every_page(hub):
    attack = '"><script>alert(1)</script>'
    message = result(advice=attack, status="not_read", reason=attack, warnings=[attack])
    capture = msgspec.structs.replace(message.capture, patient=Patient(id=attack, name=attack), view=attack)
    hub.take(msgspec.structs.replace(message, capture=capture))
    hub.review(result(), note=attack, reviewer=attack)
    for path in ("/", "/?shown=reviewed", f"/case/{result().capture.id}", "/devices"):
        page = hub.client.get(path)
        assert page.status_code == 200
        assert "<script>alert" not in page.text


def test_every_answer_forbids_foreign_scripts_and_framing(hub):
    hub.take(result())
    for path in ("/", f"/case/{result().capture.id}", "/api/cases", "/static/hub.js", "/nowhere"):
        headers = hub.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_the_pages_need_nothing_from_elsewhere(hub):
    hub.take(result())
    for path in ("/", f"/case/{result().capture.id}", "/devices"):
        text = hub.client.get(path).text
        assert re.findall(r'(?:src|href|action)="(?!/|#)[^"]*"', text) == []
        assert " style=" not in text
        assert "<style" not in text


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://elsewhere.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {}],
)
def test_another_sites_form_cannot_review(headers, hub):
    hub.take(result())
    del hub.client.headers["Origin"]
    form = {"decision": "accept", "result_id": result().id, "reviewer": "Mallory"}
    answer = hub.client.post(f"/case/{result().capture.id}/review", data=form, headers=headers)
    assert answer.status_code == 403
    assert hub.outbox() == []


def test_a_name_that_is_not_ours_is_not_served(hub):
    assert hub.client.get("/", headers={"Host": "rebound.example"}).status_code == 421


def test_where_people_sign_in_nobody_else_sees_or_reviews_anything(tmp_path):
    file = tmp_path / "users"
    file.write_text(users.line("anna", "correct horse") + "\n", encoding="utf-8")
    hub = Hub(tmp_path, users.Users(file))
    hub.take(result())

    def headers(text):
        return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    for path in ("/", "/api/cases", "/events", "/api/openapi.json"):
        assert hub.client.get(path).status_code == 401
        assert hub.client.get(path, headers=headers("anna:wrong")).status_code == 401
        assert hub.client.get(path, headers=headers("bob:correct horse")).status_code == 401
        hub.now_ms += 60 * MINUTE
    assert hub.client.get("/", headers=headers("anna:correct horse")).status_code == 200
    hub.client.headers.update(headers("anna:correct horse"))
    assert hub.review(result(), reviewer="Somebody else").json()["reviewer"] == "anna"
    hub.database.close()


def test_a_password_is_not_in_the_users_file():
    assert "correct horse" not in users.line("anna", "correct horse")
    with pytest.raises(users.UsersError, match="8 characters"):
        users.line("anna", "short")
    with pytest.raises(users.UsersError, match="colon"):
        users.line("a:b", "correct horse")


def test_every_route_of_the_interface_is_in_its_openapi_document(hub):
    document = hub.json("/api/openapi.json")
    routes = {
        (method, route.path)
        for route in hub.app.routes
        if isinstance(route, Route) and route.path.startswith("/api/")
        for method in route.methods - {"HEAD"}
    }
    assert not [route for route in hub.app.routes if isinstance(route, Mount) and route.path.startswith("/api")]
    documented = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert routes == documented
    assert len(documented) == len(api.ENDPOINTS)


def test_every_reference_in_the_openapi_document_leads_somewhere(hub):
    document = hub.json("/api/openapi.json")
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', msgspec.json.encode(document).decode()))
    assert names
    assert names <= set(document["components"]["schemas"])


def test_answers_keep_to_their_published_schema(hub):
    import jsonschema

    hub.take(result())
    hub.review(result(), note="Agreed.")
    document = hub.json("/api/openapi.json")
    for path, concrete in {
        "/api/cases": "/api/cases?shown=all",
        "/api/cases/{id}": _case(),
        "/api/devices": "/api/devices",
        "/api/health": "/api/health",
    }.items():
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(hub.json(concrete), {**schema, "components": document["components"]})


@pytest.mark.parametrize("path", ["/api/cases/" + "0" * 32, "/api/blobs/" + "0" * 64, "/api/blobs/..%2F..%2Fetc"])
def test_what_is_not_here_is_answered_with_404(path, hub):
    assert hub.client.get(path).status_code == 404


def test_a_blob_is_served_as_what_its_bytes_are_whatever_it_claims(hub):
    hub.take(result())
    page = b"<html><script>alert(1)</script>" + b" " * 200
    [chunk] = pieces(page, capture=result().capture.id, kind="preview", media_type="text/html")
    hub.receiver.handle([incoming_chunk(chunk)])
    answer = hub.client.get(f"/api/blobs/{chunk.sha256}")
    assert answer.content == page
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_a_recording_can_be_played_on_its_page(hub):
    message = result()
    capture = msgspec.structs.replace(message.capture, modality=Modality.HEART_SOUND, position="mitral")
    hub.take(msgspec.structs.replace(message, capture=capture))
    [chunk] = pieces(b"fLaC" + b"\0" * 200, capture=capture.id, media_type="audio/flac")
    hub.receiver.handle([incoming_chunk(chunk)])
    page = hub.client.get(f"/case/{capture.id}").text
    assert f'<audio controls preload="metadata" src="/api/blobs/{chunk.sha256}">' in page
    assert hub.client.get(f"/api/blobs/{chunk.sha256}").headers["content-type"] == "audio/flac"


def test_the_overlay_lies_where_its_box_says(hub):
    import cv2
    import numpy as np

    overlay = OverlayPart(finding="pneumothorax", rows=2, columns=2, data=b"\xff" * 4, box=(0.0, 0.5, 0.5, 1.0))
    hub.take(result(overlay=overlay))
    answer = hub.client.get(_case() + "/overlay")
    image = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    alpha = image[..., 3].astype(float) / 255
    half = alpha.shape[0] // 2
    assert alpha[:half, half:].min() == 1.0
    assert alpha[half:].max() == alpha[:, :half].max() == 0.0


def test_an_overlay_that_does_not_have_its_bytes_is_refused_at_the_door(hub):
    overlay = OverlayPart(finding="pneumothorax", rows=9, columns=9, data=b"\xff" * 4)
    hub.take(result(overlay=overlay))
    assert hub.json("/api/cases")["cases"] == []


def test_the_hub_says_which_boxes_there_are(hub):
    hub.take(result())
    [box] = hub.json("/api/devices")
    assert (box["key"], box["cases"], box["open_cases"]) == (BOX.key, 1, 1)
    assert BOX.key in hub.client.get("/devices").text
