"""The pages of the readers: worklist and case. Rendered on the server; they work without JavaScript, only less quickly.

What this module keeps true: a GET changes nothing; a POST answers
with a redirect, so that reloading repeats nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from appliance.protocol.messages import FindingPart
from hub import cases, encounters, reports, reviews
from hub.cases import CaseNotFound, Wanted
from hub.reviews import ReviewRefused, ReviewRequest
from hub.web.access import READ, VIEW, route
from hub.web.api import ApiError, read_body
from hub.web.pictures import Shown
from hub.web.rendering import MODALITIES, page
from hub.web.security import remember_name
from hub.web.site import person, site


def worklist(request: Request) -> Response:
    """``/``: what waits, most urgent first; ``?shown=reviewed``: what has been read; further words narrow it."""
    of = site(request)
    given = {
        name: request.query_params[name].strip() for name in Wanted.__struct_fields__ if name in request.query_params
    }
    try:
        wanted = msgspec.convert(given, Wanted)
    except msgspec.ValidationError as error:
        raise ApiError(422, f"There is no such choice: {error}.") from error
    with of.database.read() as connection:
        lines = cases.worklist(connection, of.clock_ms(), wanted)
        totals = cases.totals(connection, of.clock_ms())
        sites = cases.sites(connection)
    template = "_lines.html" if "fragment" in request.query_params else "worklist.html"
    narrowed = any(getattr(wanted, name) for name in Wanted.__struct_fields__ if name != "shown")
    return page(
        *(request, template),
        lines=lines,
        totals=totals,
        wanted=wanted,
        shown=wanted.shown,
        sites=sites,
        narrowed=narrowed,
        modalities=MODALITIES,
    )


def case(request: Request) -> Response:
    """``/case/{id}``."""
    return _case(request, request.path_params["id"])


def _case(request: Request, capture_id: str, status: int = 200, problem: str = "", written: str = "") -> Response:
    of = site(request)
    with of.database.read() as connection:
        found = cases.case(connection, capture_id, of.clock_ms())
        last = found.reviews[0].review if found.reviews else None
        report = reports.reports(connection, found.result, last)
        others = encounters.encounter(connection, capture_id)
    return page(
        request,
        "case.html",
        status,
        case=found,
        result=found.result,
        summary=found.summary,
        shown=Shown(of.blobs, found.blobs),
        problem=problem,
        previous=last.id if last else "",
        report=report,
        written=written,
        others=others.others,
        assessment=others.assessment,
    )


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
    if not of.signs_in:
        remember_name(response, reviewer)
    return response


async def report(request: Request) -> Response:
    """``POST /case/{id}/report``: keep the draft (``act=draft``), or sign (``act=sign``)."""
    form = msgspec.convert(_fields(await read_body(request)), dict[str, str])
    return await run_in_threadpool(_report, request, form)


def _report(request: Request, form: dict[str, str]) -> Response:
    capture_id, of, who = request.path_params["id"], site(request), person(request)
    text = form.get("text", "").replace("\r\n", "\n")
    if not who:
        return _case(request, capture_id, 422, "Say who you are first (at the top of the page).", text)
    try:
        with of.database.write() as connection:
            if form.get("act") == "sign":
                words = {"text": text, "result_id": form.get("result_id", ""), "previous": form.get("previous", "")}
                wanted = msgspec.convert(words, reports.ReportRequest)
                reports.sign(connection, of.database, capture_id, wanted, who, of.clock_ms())
            else:
                reports.keep_draft(connection, of.database, capture_id, text, who, of.clock_ms())
    except (ReviewRefused, msgspec.ValidationError) as error:
        return _case(request, capture_id, 409, f"Not taken: {error}.", text)
    of.nudge()
    return RedirectResponse(f"/case/{capture_id}#h-report", 303)


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
    return page(request, "error.html", 404, message="There is no such page or case here.")


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else getattr(error, "status", 500)
    if status == 404:
        return await _not_found(request, error)
    return page(request, "error.html", status, message=str(getattr(error, "detail", error)))


EXCEPTION_HANDLERS: dict[Any, Any] = {CaseNotFound: _not_found, HTTPException: _http_error, ApiError: _http_error}
ROUTES: list[Any] = [
    route("/", worklist, VIEW),
    route("/case/{id}", case, VIEW),
    route("/case/{id}/review", review, READ, methods=["POST"]),
    route("/case/{id}/report", report, READ, methods=["POST"]),
    route("/case/{id}/claim", _act(reviews.claim, takes_database=True), READ, methods=["POST"], name="claim"),
    route(
        "/case/{id}/acknowledge", _act(reviews.acknowledge, takes_database=True), READ, methods=["POST"], name="note"
    ),
    route("/case/{id}/release", _act(reviews.release, takes_database=False), READ, methods=["POST"], name="release"),
]
