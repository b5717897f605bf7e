"""The console as a web application: pages rendered on the box, a JSON API beside them, nothing from anywhere else.

What this module keeps true: every page works without scripts (scripts refresh it and move the overlay); every page shows
the status bar and that this is advice, not a diagnosis; no address holds anything of a patient.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.staticfiles import StaticFiles

from appliance.console import api, api_visits, listen, pages, scan, sign, trust, visits
from appliance.console.binding import Unsure
from appliance.console.context import Context
from appliance.console.forms import NotAForm, read_form
from appliance.console.gate import ANYBODY, Gate, Guarded, GuardedMount, who_asks
from appliance.console.guard import Guard, own_names
from appliance.console.reception import Unclear
from appliance.console.sessions import Sessions
from appliance.console.site import HERE, LANGUAGE_COOKIE, NotHere, Site
from appliance.console.words import N_, languages
from appliance.store.errors import StoreError
from appliance.store.patients import Changed
from appliance.store.people import Role

UPLOAD_LIMIT = 200_000_000
"""Most bytes that a request may carry: a handed-in file is held in memory until the vault has it."""
_YEAR_S = 31_536_000


def make_app(
    context: Context,
    *,
    upload_limit: int = UPLOAD_LIMIT,
    sessions: Sessions | None = None,
    authority: Callable[[], bytes | None] | None = None,
) -> Starlette:
    """The application over a context.

    ``upload_limit``: most bytes of a request. ``sessions``: who is signed in; ``None`` for a console without sign-in, which
    is for demonstrations on a loopback address only. ``authority``: the certificate (PEM) that tablets are to trust, where
    the box makes its own.
    """
    site = Site(context, has_sign_in=sessions is not None, has_authority=authority is not None)

    routes: list[BaseRoute] = [
        *pages.routes(site),
        *visits.routes(site),
        *scan.routes(site),
        *listen.routes(site),
        *(sign.routes(site, sessions) if sessions is not None else ()),
        *(trust.routes(site, authority) if authority is not None else ()),
        *_posted(site),
        *api.routes(site, (*api.ROUTES, *api_visits.ROUTES)),
        GuardedMount("/static", _Static(directory=HERE / "static"), role=ANYBODY),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            404: site.not_here,
            405: site.not_here,
            NotHere: site.not_here,
            Changed: site.changed,
            Unsure: site.unclear,
            Unclear: site.unclear,
            NotAForm: site.unclear,
            StoreError: site.store_failed,
        },
        middleware=[
            Middleware(Guard, limit=upload_limit, names=own_names(), refuse=site.problem, counts=site.counts),
            Middleware(Gate, sessions=sessions, routes=lambda: routes, refuse=site.problem, counts=site.counts),
        ],
    )
    app.state.site, app.state.sessions, app.state.routes = site, sessions, routes
    return app


def _posted(site: Site) -> list[Guarded]:
    """The forms that belong to no page of their own."""

    async def hand_in(request: Request) -> Response:
        kept = await api.keep(site, request)
        return kept if isinstance(kept, Response) else visits.see(f"/captures/{kept.capture_id}")

    async def agree(request: Request) -> Response:
        said = (await read_form(request)).text("agree")
        if said not in {"yes", "no"}:
            what = N_("This is not an answer that can be noted.")
            return site.problem(request, 422, what, N_("Choose one of the two answers."))
        capture_id = request.path_params["id"]
        await run_in_threadpool(api.note, site, capture_id, who_asks(request), agree=said == "yes")
        return visits.see(f"/captures/{capture_id}#agreement")

    async def language(request: Request) -> Response:
        form = await read_form(request)
        response = visits.see(sign.local(form.text("back")))
        if form.text("language") in languages():
            tag = form.text("language")
            secure = request.url.scheme == "https"
            response.set_cookie(LANGUAGE_COOKIE, tag, max_age=_YEAR_S, httponly=True, samesite="strict", secure=secure)
        return response

    return [
        Guarded("/captures", hand_in, role=Role.NURSE, method="POST"),
        Guarded("/captures/{id}/agreement", agree, role=Role.NURSE, method="POST"),
        Guarded("/language", language, role=ANYBODY, method="POST"),
    ]


class _Static(StaticFiles):
    """Styles, scripts and icons: the browser asks whether they changed (there is an ETag), so an update shows at once."""

    def file_response(self, *args: object, **values: object) -> Response:
        response = super().file_response(*args, **values)  # type: ignore[arg-type]  # passed through as they came
        response.headers["cache-control"] = "no-cache"
        return response
