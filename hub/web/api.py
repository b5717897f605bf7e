"""The JSON interface under ``/api/``: one table of endpoints makes the routes and the OpenAPI document.

What this module keeps true: an endpoint that is not in the table does not exist; every answer is a msgspec structure or
one of the named media types; a fault is ``{"error": …}`` with a sentence and the right status.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta
from sqlalchemy import exc, select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from appliance.protocol.messages import ReviewMessage
from hub import cases, encounters, fleet, outbox, quality, reports, reviews, tables
from hub.cases import Case, CaseNotFound, CaseSummary, Wanted
from hub.encounters import Encounter
from hub.fleet import DeviceSummary
from hub.people import Role
from hub.render import Picture, RenderError
from hub.reports import ReportRequest, Reports
from hub.reviews import ReviewRefused, ReviewRequest
from hub.web import openapi, pictures
from hub.web.access import READ, VIEW, route
from hub.web.site import Site, person, site

MAXIMUM_BODY = 64 * 1024


class ApiError(Exception):
    """An answer other than the one asked for: status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Fault(msgspec.Struct, frozen=True):
    """What went wrong, in a sentence."""

    error: str


class Cases(msgspec.Struct, frozen=True):
    """A worklist, and how many cases wait in all."""

    cases: list[CaseSummary]
    totals: dict[str, int]


class Who(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who does it; counts only where nobody signs in."""

    reviewer: reviews.Name | None = None


class Held(msgspec.Struct, frozen=True):
    """Who has taken note of the case, or has claimed it (empty: nobody)."""

    by: str


class Health(msgspec.Struct, frozen=True):
    """The hub in numbers."""

    database: Literal["sqlite", "postgresql"]
    schema_version: int
    free_bytes: int
    open: dict[str, int]
    unsent: int


class Call(NamedTuple):
    """What an endpoint's function gets: path and query parameters as text, the decoded body, who asks."""

    site: Site
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    person: str


class Endpoint(NamedTuple):
    """One line of the table. ``returns``: a msgspec type, or a media type for what is not JSON."""

    method: Literal["GET", "POST"]
    path: str
    function: Callable[[Call], Any]
    summary: str
    returns: Any
    body: Any = None
    query: tuple[tuple[str, Any, str], ...] = ()
    allowed: frozenset[Role] = VIEW


def list_cases(call: Call) -> Cases:
    """The worklist."""
    given = {name: call.query[name] for name in Wanted.__struct_fields__ if name in call.query}
    wanted = _checked(given, Wanted, "query")
    limit = _checked(call.query.get("limit", "200"), Limit, "limit")
    with call.site.database.read() as connection:
        found = cases.worklist(connection, call.site.clock_ms(), wanted, limit=limit)
        return Cases(cases=found, totals=cases.totals(connection, call.site.clock_ms()))


def get_case(call: Call) -> Case:
    """One case."""
    with call.site.database.read() as connection:
        return cases.case(connection, call.path["id"], call.site.clock_ms())


def get_image(call: Call) -> Response:
    """The picture: the original's once that has arrived, otherwise the preview."""
    path, kind, _, _ = _rendered(call)
    return FileResponse(path, media_type=kind)


def get_pixels(call: Call) -> Response:
    """A grey original's pixels: 16 bit, little-endian, row by row; size and default window in headers ``x-…``."""
    _, _, pixels, picture = _rendered(call)
    if pixels is None or picture is None:
        raise ApiError(404, "no grey original of this case has arrived")
    headers = {
        "x-columns": str(picture.columns),
        "x-rows": str(picture.rows),
        "x-window-centre": f"{picture.centre:.6f}",
        "x-window-width": f"{picture.width:.6f}",
    }
    return FileResponse(pixels, media_type="application/octet-stream", headers=headers)


def get_picture(call: Call) -> Picture:
    """Size, window, spacing of the original's pixels, and the frame times of a clip."""
    picture = _rendered(call)[3]
    if picture is None:
        raise ApiError(404, "no DICOM original of this case has arrived")
    return picture


def get_frame(call: Call) -> Response:
    """One frame of a clip, 0 first; a few at a time are decoded when the first of them is asked for."""
    number = _checked(call.path["number"], Frame, "number")
    with call.site.database.read() as connection:
        found = cases.case(connection, call.path["id"], call.site.clock_ms())
    try:
        path = pictures.Shown(call.site.blobs, found.blobs).frame(number)
    except RenderError as error:
        raise ApiError(404, str(error)) from error
    return FileResponse(path, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def get_overlay(call: Call) -> Response:
    """The model's activation map, to be stretched over the picture."""
    with call.site.database.read() as connection:
        overlay = cases.case(connection, call.path["id"], call.site.clock_ms()).result.overlay
    if overlay is None:
        raise ApiError(404, "this result has no activation map")
    return Response(pictures.overlay_png(overlay), media_type="image/png")


def get_blob(call: Call) -> Response:
    """An image or recording as it was transferred; the type is what its bytes show, not what they claim to be."""
    sha256 = call.path["sha256"]
    with call.site.database.read() as connection:
        known = len(sha256) == 64 and cases.has_blob(connection, sha256)
    path = call.site.blobs.path(sha256) if known else None
    if path is None or not path.exists():
        raise ApiError(404, "no such image or recording here")
    kind = pictures.kind_of(path)
    plays = kind.startswith(("image/", "audio/"))
    headers = {} if plays else {"Content-Disposition": f'attachment; filename="{sha256[:16]}"'}
    return FileResponse(path, media_type=kind, headers=headers)


def post_review(call: Call) -> ReviewMessage:
    """Accept, modify or reject; goes down to the bedside."""
    request: ReviewRequest = call.body
    name = _person(call, request.reviewer)
    with call.site.database.write() as connection:
        now_ms = call.site.clock_ms()
        message = reviews.review(connection, call.site.database, call.path["id"], request, name, now_ms)
    call.site.nudge()
    return message


def post_acknowledge(call: Call) -> Held:
    """A human has taken note; escalation stops, at the bedside too."""
    name = _name(call)
    with call.site.database.write() as connection:
        reviews.acknowledge(connection, call.site.database, call.path["id"], name, call.site.clock_ms())
        query = select(tables.capture.c.acknowledged_by).where(tables.capture.c.id == call.path["id"])
        held = connection.execute(query).scalar_one()
    call.site.nudge()
    return Held(by=held or "")


def post_claim(call: Call) -> Held:
    """Claim a case, so that two do not read it; an earlier claim stands."""
    with call.site.database.write() as connection:
        held = reviews.claim(connection, call.site.database, call.path["id"], _name(call), call.site.clock_ms())
    call.site.nudge()
    return Held(by=held)


def post_release(call: Call) -> Held:
    """Give a claimed case back to all."""
    with call.site.database.write() as connection:
        reviews.release(connection, call.path["id"], _name(call), call.site.clock_ms())
    return Held(by="")


def get_report(call: Call) -> Reports:
    """The report: signed texts, and the draft that a reader kept or that the findings make."""
    with call.site.database.read() as connection:
        found = cases.case(connection, call.path["id"], call.site.clock_ms())
        last = found.reviews[0].review if found.reviews else None
        return reports.reports(connection, found.result, last)


def get_encounter(call: Call) -> Encounter:
    """Other captures of the same patient, and those of this encounter brought together."""
    with call.site.database.read() as connection:
        cases.case(connection, call.path["id"], call.site.clock_ms())
        return encounters.encounter(connection, call.path["id"])


def post_report(call: Call) -> ReviewMessage:
    """Sign the report, or an addendum to the signed one; the whole text goes down to the bedside as a review's note."""
    name = _person(call)
    with call.site.database.write() as connection:
        now_ms = call.site.clock_ms()
        message = reports.sign(connection, call.site.database, call.path["id"], call.body, name, now_ms)
    call.site.nudge()
    return message


def get_quality(call: Call) -> quality.Quality:
    """How long patients wait for a human's word, and how often that agrees with the model's."""
    days = _checked(call.query.get("days", "90"), Days, "days")
    with call.site.database.read() as connection:
        return quality.quality(connection, call.site.clock_ms(), days=days)


def list_devices(call: Call) -> list[DeviceSummary]:
    """The boxes."""
    with call.site.database.read() as connection:
        return fleet.devices(connection)


def get_health(call: Call) -> Health:
    """The hub in numbers."""
    database = call.site.database
    with database.read() as connection:
        return Health(
            database="sqlite" if database.is_sqlite else "postgresql",
            schema_version=database.version(connection),
            free_bytes=call.site.blobs.free(),
            open=cases.totals(connection, call.site.clock_ms()),
            unsent=outbox.open_rows(connection),
        )


def get_openapi(_: Call) -> dict[str, Any]:
    """This document."""
    return openapi.document(ENDPOINTS, Fault)


Limit = openapi.Limit
Days = quality.Days
Frame = Annotated[int, Meta(ge=0, lt=100_000)]
_WANTED = (
    ("shown", cases.Shown, "which cases: open (default), reviewed or all"),
    ("device", str, "only this device (site/name)"),
    ("site", str, "only this site"),
    ("modality", str, "only this modality"),
    ("triage", str, "only this urgency: critical, urgent or routine"),
    ("claimed", str, "only cases that somebody reads (yes) or nobody reads (no)"),
    ("text", str, "only cases with these words in name, number, findings or id"),
    ("limit", Limit, "at most so many, 200 unless told"),
)
_DAYS = (("days", Days, "over so many days, 90 unless told"),)
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/api/cases", list_cases, "The worklist: by urgency, then waiting time", Cases, query=_WANTED),
    Endpoint("GET", "/api/cases/{id}", get_case, "One case with its result, reviews and history", Case),
    Endpoint("GET", "/api/cases/{id}/image", get_image, "The picture, 8 bit", "image/*"),
    Endpoint("GET", "/api/cases/{id}/picture", get_picture, "What the original's picture is like", Picture),
    Endpoint("GET", "/api/cases/{id}/pixels", get_pixels, "The picture, 16 bit grey", "application/octet-stream"),
    Endpoint("GET", "/api/cases/{id}/overlay", get_overlay, "The model's activation map", "image/png"),
    Endpoint(
        "POST", "/api/cases/{id}/review", post_review, "Review the case", ReviewMessage, ReviewRequest, allowed=READ
    ),
    Endpoint("GET", "/api/cases/{id}/report", get_report, "The report, preliminary or signed", Reports),
    Endpoint("GET", "/api/cases/{id}/encounter", get_encounter, "What else there is of the patient", Encounter),
    Endpoint(
        *("POST", "/api/cases/{id}/report", post_report, "Sign the report", ReviewMessage, ReportRequest), allowed=READ
    ),
    Endpoint("POST", "/api/cases/{id}/acknowledge", post_acknowledge, "Take note of the case", Held, Who, allowed=READ),
    Endpoint("POST", "/api/cases/{id}/claim", post_claim, "Claim the case", Held, Who, allowed=READ),
    Endpoint("POST", "/api/cases/{id}/release", post_release, "Give the case back to all", Held, Who, allowed=READ),
    Endpoint("GET", "/api/blobs/{sha256}", get_blob, "An image or recording as transferred", "*/*"),
    Endpoint("GET", "/api/cases/{id}/frames/{number}", get_frame, "One frame of a clip", "image/jpeg"),
    Endpoint("GET", "/api/quality", get_quality, "Quality of service", quality.Quality, query=_DAYS),
    Endpoint("GET", "/api/devices", list_devices, "The bedside boxes", list[DeviceSummary]),
    Endpoint("GET", "/api/health", get_health, "The hub in numbers", Health),
    Endpoint("GET", "/api/openapi.json", get_openapi, "This interface as an OpenAPI document", dict[str, Any]),
)


def routes() -> list[Route]:
    """The table as Starlette routes."""
    return [route(e.path, _serve(e), e.allowed, methods=[e.method], name=e.function.__name__) for e in ENDPOINTS]


def _serve(endpoint: Endpoint) -> Callable[[Request], Any]:
    async def serve(request: Request) -> Response:
        try:
            body = await _body(request, endpoint.body)
            call = Call(site(request), request.path_params, request.query_params, body, person(request))
            answer = await run_in_threadpool(endpoint.function, call)
        except (ApiError, CaseNotFound, ReviewRefused, exc.OperationalError) as error:
            return _fault(error)
        return answer if isinstance(answer, Response) else _json(answer)

    return serve


def _fault(error: Exception) -> Response:
    if isinstance(error, ApiError):
        return _json(Fault(str(error)), error.status)
    if isinstance(error, CaseNotFound):
        return _json(Fault("there is no such case here"), 404)
    if isinstance(error, ReviewRefused):
        return _json(Fault(str(error)), 409)
    return _json(Fault("the database is away; try again soon"), 503)


async def read_body(request: Request) -> bytes:
    """The body, up to ``MAXIMUM_BODY`` bytes; raises ``ApiError``."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAXIMUM_BODY:
            raise ApiError(413, f"the request is larger than {MAXIMUM_BODY} bytes")
    return body


async def _body(request: Request, kind: Any) -> Any:
    if kind is None:
        return None
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "send application/json")
    try:
        return msgspec.json.decode(await read_body(request) or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise ApiError(422, str(error)) from error


def _json(answer: Any, status: int = 200) -> Response:
    content = json.dumps(answer).encode() if isinstance(answer, dict) else msgspec.json.encode(answer)
    return Response(content, status_code=status, media_type="application/json")


def _checked(text: Any, kind: Any, name: str) -> Any:
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError(422, f"{name}: {error}") from error


def _name(call: Call) -> str:
    return _person(call, call.body.reviewer or "")


def _person(call: Call, said: str = "") -> str:
    name = call.person or said.strip()
    if not name:
        raise ApiError(422, "reviewer: say who you are")
    return name


def _rendered(call: Call) -> tuple[Path, str, Path | None, Picture | None]:
    with call.site.database.read() as connection:
        found = cases.case(connection, call.path["id"], call.site.clock_ms())
    try:
        return pictures.Shown(call.site.blobs, found.blobs).rendered()
    except RenderError as error:
        raise ApiError(404, str(error)) from error
