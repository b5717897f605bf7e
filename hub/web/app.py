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
from hub.web import api, live, pages
from hub.web.security import Guard
from hub.web.site import Site

_HERE = Path(__file__).parent


def make_app(
    site: Site, hosts: Sequence[str] = ("127.0.0.1", "localhost", "::1"), doors: Sequence[Route] = ()
) -> Starlette:
    """The ASGI application; ``hosts``: the names under which it may be reached, ``doors``: routes without signing in."""
    app = Starlette(
        routes=[
            *pages.ROUTES,
            *api.routes(),
            *doors,
            Route("/events", live.events, name="events"),
            Mount("/static", StaticFiles(directory=_HERE / "static"), name="static"),
        ],
        middleware=[
            Middleware(Guard, site=site, hosts=hosts, doors=[one.path for one in doors]),
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
