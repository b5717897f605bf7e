"""Which role each address asks for, and who gets through: the one place where that is decided.

What this module keeps true: a route without a stated role is refused to everybody (and a test names it); a page asks who is not
signed in to sign in, the JSON interface answers 401; a write with a session's cookie must say that it comes from this console
(Origin or Fetch Metadata), so that no other site can use the cookie; tokens work below ``/api/`` only and never by cookie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.console.binding import Who
from appliance.console.guard import Refuse
from appliance.console.sessions import EVERYBODY, Sessions
from appliance.console.words import N_
from appliance.store.people import Role

COOKIE = "bedside-session"
REFRESH = "x-refresh"
"""The header of a request that a page makes by itself: no touch of the screen, unless it says that there was one."""
TOUCHED = "touched"
_SAFE = {"GET", "HEAD", "OPTIONS"}

ANYBODY = "anybody"
"""In place of a role: for who has not signed in too."""


class Guarded(Route):
    """A route with the role that it asks for: a ``Role`` or ``ANYBODY``."""

    def __init__(
        self, path: str, endpoint: Callable[[Request], Awaitable[Response]], *, role: Role | str, method: str = "GET"
    ) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.role = role


class GuardedMount(Mount):
    """A mounted application with the role that it asks for."""

    def __init__(self, path: str, app: ASGIApp, *, role: Role | str) -> None:
        super().__init__(path, app)
        self.role = role


class Gate:
    """The layer behind ``Guard``. ``sessions`` is ``None`` where the console has no sign-in."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        sessions: Sessions | None,
        routes: Callable[[], list[BaseRoute]],
        refuse: Refuse,
        counts: Counter[str],
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._routes = routes
        self._refuse = refuse
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say who it is, and pass on who may."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        request = Request(scope)
        who = EVERYBODY if self._sessions is None else await run_in_threadpool(self._who, self._sessions, request)
        scope.setdefault("state", {})["who"] = who
        if self._sessions is not None and who is not None:
            scope["state"]["looked"] = partial(self._sessions.look, request.cookies.get(COOKIE, ""))
        refusal = self._check(request, who)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refusal(scope, receive, send)

    def _who(self, sessions: Sessions, request: Request) -> Who | None:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return sessions.by_token(text.strip()) if request.url.path.startswith("/api/") else None
        cookie = request.cookies.get(COOKIE, "")
        if not cookie:
            return None
        by_itself = request.headers.get(REFRESH, TOUCHED) != TOUCHED or "refresh" in request.query_params
        return sessions.who(cookie, touch=not by_itself)

    def _check(self, request: Request, who: Who | None) -> Response | None:
        need = self._need(request.scope)
        if need is None or need == ANYBODY:
            return None
        if need == "":
            self._counts["no-role"] += 1
            return self._refuse(request, 403, N_("Nobody may open this."), N_("Tell who maintains the box."))
        if who is None:
            return self._ask_in(request)
        if not Role(who.role).may(Role(need)):
            self._counts["role"] += 1
            remedy = N_("Ask somebody who may, or sign in as somebody else.")
            return self._refuse(request, 403, N_("You may not do this."), remedy)
        if who.session != EVERYBODY.session and not _said_where(request):
            self._counts["origin"] += 1
            remedy = N_("Open the console itself and do it there.")
            return self._refuse(request, 403, N_("It is not clear where this came from."), remedy)
        return None

    def _need(self, scope: Scope) -> Role | str | None:
        """The role of the route that will answer; empty for one without, ``None`` when there is no such route."""
        for route in self._routes():
            if route.matches(scope)[0] is Match.FULL:
                return getattr(route, "role", "")
        return None

    def _ask_in(self, request: Request) -> Response:
        path = request.url.path
        if path.startswith("/api/") or REFRESH in request.headers:
            return self._refuse(request, 401, N_("You are not signed in."), N_("Sign in and try again."))
        back = f"?back={quote(path)}" if request.method in _SAFE and path != "/" else ""
        return RedirectResponse(f"/sign-in{back}", status_code=303)


def _said_where(request: Request) -> bool:
    """Whether a write by cookie names its origin; that it is this console's own the guard has made sure of."""
    if request.method in _SAFE or "authorization" in request.headers:
        return True
    return "origin" in request.headers or "sec-fetch-site" in request.headers


def looked(request: Request) -> None:
    """What was just sent is live and somebody watches it: the screen does not lock meanwhile."""
    look: Callable[[], None] | None = getattr(request.state, "looked", None)
    if look is not None:
        look()


def who_asks(request: Request) -> Who:
    """The person of a request behind the gate."""
    who: Who | None = getattr(request.state, "who", None)  # what the guard refused has not come to the gate
    return who or Who(id="nobody", role=Role.NURSE.value, session="")
