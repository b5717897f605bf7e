"""The pages: worklist, case, boxes. Rendered on the server; they work without JavaScript, which only makes them quicker.

What this module keeps true: every value from the wire passes Jinja2's escaping; a GET changes nothing; a POST answers
with a redirect, so that reloading repeats nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jinja2
import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from appliance.protocol.messages import FindingPart
from hub import cases, reviews
from hub.cases import CaseNotFound
from hub.reviews import ReviewRefused, ReviewRequest
from hub.web.api import ApiError, read_body
from hub.web.pictures import Shown
from hub.web.security import remember_name
from hub.web.site import person, site

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_MODALITIES = {
    "chest-xray": "Chest X-ray",
    "lung-ultrasound": "Lung ultrasound",
    "heart-sound": "Heart sound",
    "lung-sound": "Lung sound",
    "other": "Other",
}


def waiting(seconds: float) -> str:
    """A time span for people: ``8 min``, ``2 h 05 min``, ``3 days``."""
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // (24 * 60)} days"


def size(count: int) -> str:
    """A number of bytes for people."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def seen(finding: FindingPart) -> str:
    """A finding's answer in words."""
    return "likely present" if finding.positive else "not seen"


_ENVIRONMENT.filters.update(waiting=waiting, size=size, seen=seen, modality=lambda m: _MODALITIES.get(str(m), str(m)))


def _page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    values.update(person=person(request), signs_in=site(request).users is not None, path=request.url.path)
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(values), status_code=status)


def worklist(request: Request) -> Response:
    """``/``: what waits, most urgent first; ``?shown=reviewed``: what has been read."""
    of = site(request)
    shown: cases.Shown = "reviewed" if request.query_params.get("shown") == "reviewed" else "open"
    device = request.query_params.get("device", "")
    with of.database.read() as connection:
        lines = cases.worklist(connection, of.clock_ms(), shown=shown, device=device)
        totals = cases.totals(connection, of.clock_ms())
    template = "_lines.html" if "fragment" in request.query_params else "worklist.html"
    return _page(request, template, lines=lines, totals=totals, shown=shown, device=device)


def case(request: Request) -> Response:
    """``/case/{id}``."""
    return _case(request, request.path_params["id"])


def _case(request: Request, capture_id: str, status: int = 200, problem: str = "") -> Response:
    of = site(request)
    with of.database.read() as connection:
        found = cases.case(connection, capture_id, of.clock_ms())
    return _page(
        request,
        "case.html",
        status,
        case=found,
        result=found.result,
        summary=found.summary,
        shown=Shown(of.blobs, found.blobs),
        problem=problem,
        previous=found.reviews[0].review.id if found.reviews else "",
    )


def devices(request: Request) -> Response:
    """``/devices``."""
    of = site(request)
    with of.database.read() as connection:
        found = cases.devices(connection)
    return _page(request, "devices.html", devices=found)


async def who(request: Request) -> Response:
    """``POST /who``: where nobody signs in, the browser is told its reader's name."""
    async with request.form(max_fields=4, max_files=0) as form:
        name, back = str(form.get("name", "")).strip()[:128], str(form.get("back", "/"))
    response = RedirectResponse(back if back.startswith("/") and not back.startswith("//") else "/", 303)
    remember_name(response, name)
    return response


async def review(request: Request) -> Response:
    """``POST /case/{id}/review``: the form."""
    form = msgspec.convert(_fields(await read_body(request)), dict[str, str])
    return await run_in_threadpool(_review, request, form)


def _review(request: Request, form: dict[str, str]) -> Response:
    capture_id, of = request.path_params["id"], site(request)
    reviewer = person(request) or form.get("reviewer", "").strip()[:128]
    if not reviewer:
        return _case(request, capture_id, 422, "Say who you are, then send the review again.")
    try:
        with of.database.write() as connection:
            found = cases.case(connection, capture_id, of.clock_ms())
            request_of = msgspec.convert(_requested(form, found.result.findings), ReviewRequest)
            reviews.review(connection, of.database, capture_id, request_of, reviewer, of.clock_ms())
    except (ReviewRefused, msgspec.ValidationError) as error:
        return _case(request, capture_id, 409, f"Not taken: {error}.")
    of.nudge()
    response = RedirectResponse(f"/case/{capture_id}?sent", 303)
    if of.users is None:
        remember_name(response, reviewer)
    return response


def _requested(form: Mapping[str, str], findings: list[FindingPart]) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        name: form[name] for name in ("decision", "result_id", "previous", "note") if name in form
    }
    if form.get("decision") == "modify":
        answers = {f.id: form[f"finding:{f.id}"] == "yes" for f in findings if f"finding:{f.id}" in form}
        wanted["findings"] = {f.id: answers[f.id] for f in findings if answers.get(f.id, f.positive) != f.positive}
        if form.get("triage"):
            wanted["triage"] = form["triage"]
    return wanted


def _fields(body: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=200))
    except ValueError as error:
        raise ApiError(422, "the form can't be read") from error


def _act(function: Callable[..., Any], *, takes_database: bool) -> Callable[[Request], Response]:
    def act(request: Request) -> Response:
        of, capture_id, name = site(request), request.path_params["id"], person(request)
        if not name:
            return _case(request, capture_id, 422, "Say who you are first.")
        with of.database.write() as connection:
            arguments = (of.database,) if takes_database else ()
            function(connection, *arguments, capture_id, name, of.clock_ms())
        of.nudge()
        return RedirectResponse(f"/case/{capture_id}", 303)

    return act


async def _not_found(request: Request, _: Exception) -> Response:
    return _page(request, "error.html", 404, message="There is no such page or case here.")


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else getattr(error, "status", 500)
    if status == 404:
        return await _not_found(request, error)
    return _page(request, "error.html", status, message=str(getattr(error, "detail", error)))


EXCEPTION_HANDLERS: dict[Any, Any] = {CaseNotFound: _not_found, HTTPException: _http_error, ApiError: _http_error}
ROUTES = [
    Route("/", worklist, name="worklist"),
    Route("/case/{id}", case, name="case"),
    Route("/case/{id}/review", review, methods=["POST"], name="review"),
    Route("/case/{id}/claim", _act(reviews.claim, takes_database=True), methods=["POST"], name="claim"),
    Route("/case/{id}/acknowledge", _act(reviews.acknowledge, takes_database=True), methods=["POST"], name="note"),
    Route("/case/{id}/release", _act(reviews.release, takes_database=False), methods=["POST"], name="release"),
    Route("/devices", devices, name="devices"),
    Route("/who", who, methods=["POST"], name="who"),
]
