"""Every route says whom it is for, and is for nobody else.

What this module keeps true: a route that states no roles is not served at all (``checked`` refuses to build the application);
who is not signed in is sent to sign in (a page) or answered 401 (anything else); who is signed in but may not is answered 403.
A program's token never does what only a person may.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from hub.people import EVERY_ROLE, Role
from hub.web.site import roles

ANYBODY: frozenset[Role] = frozenset()
"""Also who is not signed in: the way in, and what shows it."""
VIEW = EVERY_ROLE
READ = frozenset({Role.READER})
ADMINISTER = frozenset({Role.ADMINISTRATOR})


def route(
    path: str,
    endpoint: Callable[[Request], Any],
    allowed: frozenset[Role],
    *,
    methods: Iterable[str] = ("GET",),
    name: str = "",
) -> Route:
    """A route for ``allowed``; ``ANYBODY`` is empty. What changes something is for people only."""
    methods = list(methods)

    async def serve(request: Request) -> Response:
        refusal = _refusal(request, allowed)
        if refusal is not None:
            return refusal
        if inspect.iscoroutinefunction(endpoint):
            answer: Response = await endpoint(request)
            return answer
        return await run_in_threadpool(endpoint, request)

    made = Route(path, serve, methods=methods, name=name or getattr(endpoint, "__name__", path))
    allow(made, allowed)
    return made


def allow(of: BaseRoute, allowed: frozenset[Role]) -> None:
    """State whom a route is for that checks it by itself (a door) or needs no check (static files)."""
    of.allowed = allowed  # type: ignore[attr-defined]


def allowed_of(of: BaseRoute) -> frozenset[Role] | None:
    """Whom a route is for; None when it does not say."""
    found: frozenset[Role] | None = getattr(of, "allowed", None)
    return found


def checked(routes: list[BaseRoute]) -> list[BaseRoute]:
    """The routes, when every one says whom it is for; raises ``ValueError``."""
    silent = [str(getattr(one, "path", one)) for one in routes if allowed_of(one) is None]
    if silent:
        raise ValueError(f"these routes do not say whom they are for: {', '.join(silent)}")
    return routes


def _refusal(request: Request, allowed: frozenset[Role]) -> Response | None:
    if allowed == ANYBODY:
        return None
    held = roles(request)
    machine = bool(getattr(request.state, "machine", False))
    if not held:
        return _not_signed_in(request)
    if not held & allowed or (machine and request.method not in ("GET", "HEAD")):
        names = " or ".join(sorted(role.value for role in allowed))
        who = "a program's token only looks" if machine and held & allowed else f"this is for a {names}"
        return PlainTextResponse(f"Not for you: {who}. An administrator gives roles.\n", 403)
    return None


def _not_signed_in(request: Request) -> Response:
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/sign-in?next={quote(here, safe='')}", 303)
    wait = float(getattr(request.state, "wait_s", 0.0))
    if wait > 0:
        headers = {"Retry-After": str(int(wait) + 1)}
        return PlainTextResponse(f"Too many wrong tries; wait {wait:.0f} s.\n", 429, headers)
    challenge = {"WWW-Authenticate": 'Bearer realm="Bedside hub"'}
    if "sec-fetch-mode" not in request.headers:  # a browser's own window for passwords would only be in the way
        challenge = {"WWW-Authenticate": 'Basic realm="Bedside hub", charset="UTF-8"'}
    text = "Locked: sign in again.\n" if getattr(request.state, "locked", "") else "Sign in to see this page.\n"
    return PlainTextResponse(text, 401, challenge)
