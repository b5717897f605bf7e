"""The JSON API of the console, one table: path, method, what it does, what it gives; the OpenAPI document is made from it.

What this module keeps true: a route exists only with its description, and nothing is answered that the pages don't show.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from appliance.capture.intake import IntakeError, StoreFull
from appliance.console import binding, serve
from appliance.console.binding import Who
from appliance.console.context import StatusView, Upload
from appliance.console.gate import Guarded, who_asks
from appliance.console.handed import Unclear, upload_of
from appliance.console.lines import Line
from appliance.console.overlay import overlay_png
from appliance.console.site import Problem, Site, as_json
from appliance.console.sound import FILTERS
from appliance.console.words import N_
from appliance.protocol.messages import ReviewMessage
from appliance.records import Capture, Reading, Record
from appliance.store.captures import Kept
from appliance.store.people import Role

NURSE = Role.NURSE
LIMIT, MOST = 50, 500


class CaptureList(Record, frozen=True, kw_only=True, omit_defaults=False):
    """The newest captures, newest first."""

    captures: tuple[Line, ...]


class CaptureDetail(Record, frozen=True, kw_only=True, omit_defaults=False):
    """One capture with its reading, the reviews of it, and what the health worker said of the reading."""

    line: Line
    capture: Capture
    reading: Reading | None
    reviews: tuple[ReviewMessage, ...]
    agreement: bool | None


class Agreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the health worker agrees with the reading."""

    agree: bool


class HandedIn(Record, frozen=True, kw_only=True, omit_defaults=False):
    """A file that is now saved. ``duplicate``: the box had these bytes already."""

    capture_id: str
    duplicate: bool
    conflict: bool


class ApiRoute(NamedTuple):
    """A route and its description. ``gives``: a record, or a media type for bytes; ``role``: who may, nobody if not said."""

    path: str
    method: str
    summary: str
    gives: Any
    call: Callable[[Site, Request], Response] | Callable[[Site, Request], Awaitable[Response]]
    status: int = 200
    takes: Any = None
    query: tuple[tuple[str, dict[str, Any], str], ...] = ()
    role: Role | str = ""


def status(site: Site, _request: Request) -> Response:
    """How the box is."""
    return as_json(site.context.status())


def captures(site: Site, request: Request) -> Response:
    """The list."""
    limit = count(request.query_params.get("limit", ""))
    return as_json(CaptureList(captures=tuple(site.lines(limit))))


def capture(site: Site, request: Request) -> Response:
    """One capture."""
    whole = site.whole(request.path_params["id"])
    detail = CaptureDetail(
        line=whole.line,
        capture=whole.entry.capture,
        reading=whole.reading,
        reviews=tuple(whole.reviews),
        agreement=site.context.agreement(whole.line.id),
    )
    return as_json(detail)


def preview(site: Site, request: Request) -> Response:
    """The picture to show."""
    whole = site.whole(request.path_params["id"])
    made = site.context.preview(whole.line.id)
    if made is None:
        return _no_picture(site, request)
    media_type, data = made
    response = serve.shown(data, media_type)
    return response if response.status_code < 300 else _no_picture(site, request)


def overlay(site: Site, request: Request) -> Response:
    """The activation map."""
    whole = site.whole(request.path_params["id"])
    png = None if whole.reading is None else overlay_png(whole.reading)
    return _no_picture(site, request) if png is None else Response(png, media_type="image/png")


def pixels(site: Site, request: Request) -> Response:
    """The stored grey values: 16 bits each, little-endian, with what belongs to them in the headers."""
    whole = site.whole(request.path_params["id"])
    if whole.entry.removed:
        return _removed(site, request)
    raw = site.context.pixels(whole.line.id)
    if raw is None or not raw.rows:
        return _no_picture(site, request)
    headers = {
        "x-rows": str(raw.rows),
        "x-columns": str(raw.columns),
        "x-offset": str(raw.offset),
        "x-window": f"{raw.low:g} {raw.high:g}",
        "x-invert": "1" if raw.invert else "0",
    }
    return Response(raw.data, media_type="application/octet-stream", headers=headers)


def original(site: Site, request: Request) -> Response:
    """The file as it came."""
    whole = site.whole(request.path_params["id"])
    if whole.entry.removed:
        return _removed(site, request)
    return serve.original(request, site.context.store.vault, whole.entry.capture)


def sound(site: Site, request: Request) -> Response:
    """The recording as a browser plays it."""
    whole = site.whole(request.path_params["id"])
    if whole.entry.removed:
        return _removed(site, request)
    wav = site.player.wav(whole.line.id, request.query_params.get("filter", ""))
    if wav is None:
        what = N_("There is no sound of this capture.")
        return site.problem(request, 404, what, N_("The original can be downloaded instead."))
    return serve.ranged(request, wav, "audio/wav")


async def hand_in(site: Site, request: Request) -> Response:
    """Keep a file."""
    kept = await keep(site, request)
    if isinstance(kept, Response):
        return kept
    given = HandedIn(capture_id=kept.capture_id, duplicate=kept.duplicate, conflict=kept.conflict)
    return as_json(given, 200 if kept.duplicate else 201, {"location": f"/captures/{kept.capture_id}"})


async def agree(site: Site, request: Request) -> Response:
    """Note what the health worker thinks of the reading."""
    try:
        said = msgspec.json.decode(await request.body(), type=Agreement)
    except msgspec.DecodeError:
        what = N_("This is not an answer that can be noted.")
        return site.problem(request, 422, what, 'Send {"agree": true} or {"agree": false}.')
    await run_in_threadpool(note, site, request.path_params["id"], who_asks(request), agree=said.agree)
    return as_json(said)


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute(
        "/api/status", "GET", "How the box is: link, storage, clock, models, doors", StatusView, status, role=NURSE
    ),
    ApiRoute(
        "/api/captures",
        "GET",
        "The newest captures, newest first",
        CaptureList,
        captures,
        role=NURSE,
        query=(("limit", {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT}, "How many"),),
    ),
    ApiRoute(
        "/api/captures", "POST", "Keep a file; durable when answered", HandedIn, hand_in, 201, "multipart", role=NURSE
    ),
    ApiRoute(
        "/api/captures/{id}", "GET", "One capture with its reading and reviews", CaptureDetail, capture, role=NURSE
    ),
    ApiRoute("/api/captures/{id}/preview", "GET", "A picture (or small sound) of it", "image/*", preview, role=NURSE),
    ApiRoute(
        "/api/captures/{id}/overlay",
        "GET",
        "The activation map, to lay over the preview",
        "image/png",
        overlay,
        role=NURSE,
    ),
    ApiRoute(
        "/api/captures/{id}/pixels",
        "GET",
        "Its grey values, 16 bits; X-Rows, X-Columns, X-Offset, X-Window (low, high) and X-Invert say what they are",
        "application/octet-stream",
        pixels,
        role=NURSE,
    ),
    ApiRoute(
        "/api/captures/{id}/sound",
        "GET",
        "The recording as WAV, as browsers play it",
        "audio/wav",
        sound,
        role=NURSE,
        query=(("filter", {"type": "string", "enum": sorted(FILTERS)}, "Only a band of it"),),
    ),
    ApiRoute(
        "/api/captures/{id}/original", "GET", "The file as it came; ranges are answered", "*/*", original, role=NURSE
    ),
    ApiRoute(
        "/api/captures/{id}/agreement",
        "POST",
        "Agree or not with the reading",
        Agreement,
        agree,
        200,
        Agreement,
        role=NURSE,
    ),
)


def routes(site: Site, table: tuple[ApiRoute, ...]) -> list[Guarded]:
    """The table as Starlette's routes, with the description of it all."""

    def openapi(_site: Site, _request: Request) -> Response:
        return as_json(document(table))

    described = ApiRoute("/api/openapi.json", "GET", "This description", "application/json", openapi, role=NURSE)
    table = (*table, described)
    return [Guarded(one.path, _endpoint(site, one), role=one.role, method=one.method) for one in table]


def _endpoint(site: Site, route: ApiRoute) -> Callable[[Request], Awaitable[Response]]:
    if inspect.iscoroutinefunction(route.call):
        called = cast("Callable[[Site, Request], Awaitable[Response]]", route.call)

        async def write(request: Request) -> Response:
            return await called(site, request)

        return write
    plain = cast("Callable[[Site, Request], Response]", route.call)

    async def read(request: Request) -> Response:
        return await run_in_threadpool(plain, site, request)

    return read


async def keep(site: Site, request: Request) -> Kept | Response:
    """Take the file of a form through the one door: where it is kept, or the refusal to answer with."""
    if not site.handing_in.acquire(blocking=False):
        what = N_("Other files are being handed in just now.")
        return site.problem(request, 503, what, N_("Nothing was saved. Try again in a moment."))
    try:
        return await run_in_threadpool(_add, site, who_asks(request), await upload_of(request))
    except Unclear as error:
        return site.problem(request, 422, str(error), N_("Nothing was saved."))
    except StoreFull as error:
        return site.problem(request, 507, str(error), N_("Nothing was saved. Keep the file."))
    except IntakeError as error:
        return site.problem(request, 422, str(error), N_("Nothing was saved."))
    finally:
        site.handing_in.release()


def _add(site: Site, who: Who, upload: Upload) -> Kept:
    """Keep a file; within the visit of its ticket, when it has a good one."""
    store = site.context.store
    held = binding.held(store, who, upload.ticket, store.now) if upload.ticket else None
    kept = site.context.add(msgspec.structs.replace(upload, held=held))
    site.context.wake()
    return kept


def note(site: Site, capture_id: str, who: Who, *, agree: bool) -> None:
    """Note the agreement with a capture that is here."""
    site.context.note_agreement(site.whole(capture_id).line.id, agree, who.id)


def count(text: str) -> int:
    """How many captures were asked for, from 1 to ``MOST``."""
    return min(max(int(text), 1), MOST) if text.isdecimal() and len(text) < 6 else LIMIT


def document(table: tuple[ApiRoute, ...]) -> dict[str, Any]:
    """The OpenAPI 3.1 description of a table of routes."""
    kinds = [Problem, *(kind for one in table for kind in (one.gives, one.takes) if isinstance(kind, type))]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    known = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in table:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Bedside console",
            "version": "1",
            "description": "Advice for a health worker, not a diagnosis.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(route: ApiRoute, known: dict[Any, Any]) -> dict[str, Any]:
    problem = {"description": "Why not, and what to do", "content": {"application/json": {"schema": known[Problem]}}}
    given = (
        {route.gives: {"schema": {}}}
        if isinstance(route.gives, str)
        else {"application/json": {"schema": known[route.gives]}}
    )
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.call.__name__,
        "parameters": [
            {"name": name, "in": "query", "schema": schema, "description": text} for name, schema, text in route.query
        ],
        "responses": {str(route.status): {"description": route.summary, "content": given}, "default": problem},
    }
    for name in re.findall(r"{(\w+)}", route.path):
        schema = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
        operation["parameters"].append({"name": name, "in": "path", "required": True, "schema": schema})
    if route.takes == "multipart":
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _form()}}}
    elif route.takes is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": known[route.takes]}}}
    return operation


def _form() -> dict[str, Any]:
    text = {"type": "string", "maxLength": 120}
    names = ("modality", "age", "sex", "patient_id", "patient_name", "position", "ticket")
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    return {"type": "object", "required": ["file"], "properties": {"file": file, **dict.fromkeys(names, text)}}


def _removed(site: Site, request: Request) -> Response:
    what = N_("The files of this capture have left this box. The reading and the reviews are still here.")
    return site.problem(request, 410, what, N_("The hub has the original: ask the radiologist's service for it."))


def _no_picture(site: Site, request: Request) -> Response:
    return site.problem(
        request, 404, N_("There is no picture of this capture."), N_("The original can be downloaded instead.")
    )
