"""The console as a web application: pages rendered on the box, a JSON API beside them, nothing from anywhere else.

What this module keeps true: every page works without scripts (scripts refresh it and move the overlay); every page shows
the status bar and that this is advice, not a diagnosis; no address holds anything of a patient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from appliance.console import api
from appliance.console.context import Context
from appliance.console.guard import Guard, own_names
from appliance.console.lines import Whole
from appliance.console.serve import kind
from appliance.console.site import HERE, LANGUAGE_COOKIE, NotHere, Site, needing_attention
from appliance.console.together import Taken, Together, encounter, together
from appliance.console.words import N_, languages
from appliance.records import Modality
from appliance.store.errors import Damaged, StoreError

UPLOAD_LIMIT = 200_000_000
"""Most bytes that a request may carry: a handed-in file is held in memory until the vault has it."""
_YEAR_S = 31_536_000
_SOUNDS = {Modality.HEART_SOUND, Modality.LUNG_SOUND}

Page = Callable[[Site, Request], Response]
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(context: Context, *, upload_limit: int = UPLOAD_LIMIT) -> Starlette:
    """The application over a context. ``upload_limit``: most bytes of a request."""
    site = Site(context)

    async def hand_in(request: Request) -> Response:
        kept = await api.keep(site, request)
        return kept if isinstance(kept, Response) else _see(f"/captures/{kept.capture_id}")

    async def agree(request: Request) -> Response:
        async with request.form(max_files=0, max_fields=4) as form:
            said = form.get("agree")
        if said not in {"yes", "no"}:
            what = N_("This is not an answer that can be noted.")
            return site.problem(request, 422, what, N_("Choose one of the two answers."))
        capture_id = request.path_params["id"]
        await run_in_threadpool(api.note, site, capture_id, agree=said == "yes")
        return _see(f"/captures/{capture_id}#agreement")

    async def language(request: Request) -> Response:
        async with request.form(max_files=0, max_fields=4) as form:
            tag, back = form.get("language"), form.get("back")
        response = _see(
            back if isinstance(back, str) and back.startswith("/") and back[1:2] not in {"/", "\\"} else "/"
        )
        if isinstance(tag, str) and tag in languages():
            response.set_cookie(LANGUAGE_COOKIE, tag, max_age=_YEAR_S, httponly=True, samesite="strict")
        return response

    app = Starlette(
        routes=[
            Route("/", _reading(site, _home), methods=["GET"]),
            Route("/add", _reading(site, _add), methods=["GET"]),
            Route("/captures", hand_in, methods=["POST"]),
            Route("/captures/{id}", _reading(site, _answer), methods=["GET"]),
            Route("/captures/{id}/agreement", agree, methods=["POST"]),
            Route("/language", language, methods=["POST"]),
            *api.routes(site),
            Mount("/static", _Static(directory=HERE / "static")),
        ],
        exception_handlers={
            404: site.not_here,
            405: site.not_here,
            NotHere: site.not_here,
            StoreError: site.store_failed,
        },
        middleware=[Middleware(Guard, limit=upload_limit, names=own_names(), refuse=site.problem, counts=site.counts)],
    )
    app.state.site = site
    return app


def _home(site: Site, request: Request) -> Response:
    limit = api.count(request.query_params.get("limit", ""))
    lines = site.lines(limit + 1)
    more = min(limit * 2, api.MOST) if len(lines) > limit and limit < api.MOST else 0
    lines = lines[:limit]
    return site.page(request, "captures.html", lines=lines, attention=needing_attention(lines), more=more)


def _add(site: Site, request: Request) -> Response:
    return site.page(request, "add.html")


def _answer(site: Site, request: Request) -> Response:
    whole = site.whole(request.path_params["id"])
    capture = whole.entry.capture
    return site.page(
        request,
        "answer.html",
        line=whole.line,
        capture=capture,
        reading=whole.reading,
        reviews=whole.reviews[::-1],
        sound=capture.modality in _SOUNDS or kind(capture.media_type).startswith("audio/"),
        agreement=site.context.agreement(capture.id),
        has_overlay=whole.reading is not None and bool(whole.reading.overlay),
        labels={finding.id: finding.label for finding in (whole.reading.findings if whole.reading else ())},
        together=_together(site, whole),
    )


def _together(site: Site, whole: Whole) -> Together | None:
    """The encounter of a capture brought together; ``None`` when there is nothing to add, or a record of it is damaged.

    The list shows a damaged capture as such; it must not take this page with it.
    """
    shown, store = whole.entry.capture, site.context.store
    if not shown.patient.id:
        return None
    try:
        of_patient = [entry.capture for entry in store.captures.of_patient(shown.patient.id, shown.patient.issuer)]
        belong, undated = encounter(shown, of_patient)
        if len(belong) < 2:
            return None
        taken = []
        for capture in belong:
            reviews = store.inbox.reviews(capture.id)
            reading = store.captures.reading(capture.id)
            taken.append(Taken(capture=capture, reading=reading, review=reviews[-1] if reviews else None))
    except StoreError as error:
        site.counts["damaged" if isinstance(error, Damaged) else "store"] += 1
        return None
    return together(taken, undated)


def _reading(site: Site, page: Page) -> Endpoint:
    """A page as an endpoint: made in a thread, and not sent again while it is what the browser has."""

    async def endpoint(request: Request) -> Response:
        response = await run_in_threadpool(page, site, request)
        if response.status_code == 200:
            tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers={"etag": tag})
            response.headers["etag"] = tag
        return response

    return endpoint


def _see(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)


class _Static(StaticFiles):
    """Styles, scripts and icons: the browser asks whether they changed (there is an ETag), so an update shows at once."""

    def file_response(self, *args: object, **values: object) -> Response:
        response = super().file_response(*args, **values)  # type: ignore[arg-type]  # passed through as they came
        response.headers["cache-control"] = "no-cache"
        return response
