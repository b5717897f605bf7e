"""The guest in the clinic's Wi-Fi: reaches every port of box and hub, and has no password, PIN, code or certificate."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator

from appliance.protocol.enrolment import Code
from appliance.protocol.signing import KeySigner
from tools.attack.report import Try, planted
from tools.attack.world import World

WHO = "Wi-Fi guest"
_CONSOLE = (
    *("/", "/patients", "/scan", "/status", "/overview", "/settings", "/listen"),
    *("/api/captures", "/api/status", "/api/patients", "/metrics", "/openapi.json", "/api/openapi.json"),
    *("/../../../../etc/passwd", "/static/../../box.key", "/static/%2e%2e/%2e%2e/journal.sqlite"),
)
_HUB = (
    "/",
    "/devices",
    "/api/cases",
    "/api/devices",
    "/api/openapi.json",
    "/events",
    "/metrics",
    "/static/../hub.sqlite",
)


def attack(world: World) -> Iterator[Try]:
    """Knock at every door."""
    case = world.deliver()
    closed = [where for where in ("console", "hub") if not _ask(world, where, "GET", "/", {})[0]]
    yield Try(WHO, "control: console and hub answer", ", ".join(closed))
    yield Try(WHO, "reads the bedside console without signing in", _read(world, "console", case))
    yield Try(WHO, "reads the hub's pages without signing in", _read(world, "hub", case))
    yield Try(WHO, "changes something at console or hub", _change(world, case))
    yield Try(WHO, "guesses passwords and enrolment codes at the hub", _guess(world))
    yield from _dicom(world)


def _read(world: World, where: str, case: str) -> str:
    more: tuple[str, ...] = (
        f"/captures/{case}",
        f"/capture/{case}",
        f"/api/captures/{case}",
        f"/api/captures/{case}/preview",
    )
    more += (f"/case/{case}", f"/api/cases/{case}", f"/api/cases/{case}/preview", f"/api/cases/{case}/original")
    for path in (*(_CONSOLE if where == "console" else _HUB), *more):
        for host in ("localhost", "bedside.local", "127.0.0.1"):
            status, body = _ask(world, where, "GET", path, {"Host": host})
            found = planted(body) or ("a case's id" if case.encode() in body and case not in path else "")
            if found or (status == 200 and case in path):
                return f"{path}: {found or f'{len(body)} bytes'}"
    return ""


def _change(world: World, case: str) -> str:
    review = {"result_id": case, "decision": "accept", "reviewer": "Guest", "note": ""}
    tries = [
        ("hub", f"/api/cases/{case}/review", review),
        ("hub", f"/api/cases/{case}/claim", {}),
        ("console", f"/api/captures/{case}/agreement", {"agrees": True}),
        ("console", "/api/captures", {}),
        ("console", "/setup", {"code": "000000", "name": "Guest", "pin": "123456"}),
    ]
    for where, path, body in tries:
        status, _ = _ask(world, where, "POST", path, {"Content-Type": "application/json"}, json.dumps(body))
        if 200 <= status < 300:
            return f"{path}: {status}"
    return ""


def _guess(world: World) -> str:
    import base64

    for password in ("admin", "password", "bedside", ""):
        header = {"Authorization": "Basic " + base64.b64encode(f"Dr Reader:{password}".encode()).decode()}
        if _ask(world, "hub", "GET", "/api/cases", header)[0] == 200:
            return f"password {password!r}"
    from appliance.protocol.enrolment import make_request

    for number in range(8):
        code = Code(bytes([0, 0, 0, number]), bytes(12), bytes(12))
        body = make_request(code, "clinic-a/box-1", "no request", KeySigner(bytes(32)))
        status, answer = _ask(world, "hub", "POST", "/enrol", {"Content-Type": "application/json"}, body)
        if status == 200:
            return f"an identity: {answer[:40]!r}"
    return ""


def _dicom(world: World) -> Iterator[Try]:
    from pynetdicom import AE
    from pynetdicom.sop_class import (
        ModalityWorklistInformationFind,
        PatientRootQueryRetrieveInformationModelFind,
        PatientRootQueryRetrieveInformationModelGet,
        Verification,
    )

    asked = (
        PatientRootQueryRetrieveInformationModelFind,
        PatientRootQueryRetrieveInformationModelGet,
        ModalityWorklistInformationFind,
    )
    for calling, called in (("GUEST", "BEDSIDE"), ("XRAY", "ANY-SCP")):
        entity = AE(ae_title=calling)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 3
        entity.add_requested_context(Verification)
        association = entity.associate("127.0.0.1", world.dicom, ae_title=called)
        opened = association.is_established
        association.abort()
        yield Try(WHO, f"comes to the DICOM port as {calling}, calling {called}", "an association" if opened else "")
    entity = AE(ae_title="XRAY")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 3
    for one in asked[:2]:
        entity.add_requested_context(one)
    association = entity.associate("127.0.0.1", world.dicom, ae_title="BEDSIDE")
    got = association.is_established
    association.abort()
    yield Try(
        WHO, "asks for images and patients in an X-ray machine's name", "an association for queries" if got else ""
    )


def _ask(
    world: World, where: str, method: str, path: str, headers: dict[str, str], body: str | bytes | None = None
) -> tuple[int, bytes]:
    if where == "hub":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE  # a guest looks at whatever there is
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", world.web, timeout=5, context=tls
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", world.console, timeout=5)
    with contextlib.closing(connection):
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(1 << 20)
        except (OSError, http.client.HTTPException):
            return 0, b""
