"""The web application put together: guard, pages, interface, static files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from hub.config import Config
from hub.web import api, live, pages, service, ways_in
from hub.web.access import ANYBODY, VIEW, allow, checked, route
from hub.web.security import Guard
from hub.web.site import Site

_HERE = Path(__file__).parent


def make_app(
    site: Site, hosts: Sequence[str] = ("127.0.0.1", "localhost", "::1"), doors: Sequence[Route] = ()
) -> Starlette:
    """The ASGI application; ``hosts``: the names under which it may be reached, ``doors``: routes without signing in."""
    static = Mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    for one in (*doors, static):
        allow(one, ANYBODY)
    routes = [*pages.ROUTES, *ways_in.ROUTES, *service.ROUTES, *api.routes()]
    app = Starlette(
        routes=checked([*routes, *doors, route("/events", live.events, VIEW), static]),
        middleware=[
            Middleware(Guard, site=site, hosts=hosts),
            Middleware(GZipMiddleware, minimum_size=1024),
        ],
        exception_handlers=pages.EXCEPTION_HANDLERS,
    )
    app.state.site = site
    app.state.live = None
    return app


def host_names(config: Config) -> list[str]:
    """The names under which the pages may be reached: as configured, and this machine's own."""
    return [*config.web.allowed_hosts, config.web.address, "localhost", "127.0.0.1", "::1"]
