"""Signing in and out, locking, and the word that somebody is still there.

What this module keeps true: a session is made only by name and password; a wrong pair is answered the same whether the name
exists or not; ``next`` leads nowhere but to this site.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hub.people import Throttled
from hub.web.access import ANYBODY, VIEW, route
from hub.web.rendering import page
from hub.web.security import remember_name, session_cookie, set_session
from hub.web.site import site


def sign_in_page(request: Request) -> Response:
    """``GET /sign-in?next=…``."""
    return _form(request, request.query_params.get("next", "/"))


def _form(request: Request, back: str, status: int = 200, problem: str = "", name: str = "") -> Response:
    locked = str(getattr(request.state, "locked", ""))
    return page(
        request, "sign_in.html", status, back=inside(back), problem=problem, name=name or locked, locked=bool(locked)
    )


async def sign_in(request: Request) -> Response:
    """``POST /sign-in``: name, password, next."""
    async with request.form(max_fields=6, max_files=0, max_part_size=4096) as form:
        name, password, back = (str(form.get(key, "")) for key in ("name", "password", "next"))
    return await run_in_threadpool(_sign_in, request, name.strip()[:64], password[:1024], back)


def _sign_in(request: Request, name: str, password: str, back: str) -> Response:
    of = site(request)
    if of.people is None or of.sessions is None:
        return RedirectResponse(inside(back), 303)
    address = request.client.host if request.client else ""
    try:
        person = of.people.check(name, password, address, of.clock_ms())
    except Throttled as error:
        answer = _form(request, back, 429, f"Too many wrong tries. Wait {error.seconds:.0f} seconds.", name)
        answer.headers["Retry-After"] = str(int(error.seconds) + 1)
        return answer
    if person is None:
        return _form(request, back, 401, "Name or password is wrong.", name)
    before = request.cookies.get(session_cookie(of.secure), "")
    if before:
        of.sessions.close(before)
    response = RedirectResponse(inside(back), 303)
    set_session(response, of, of.sessions.open(person.name, of.clock_ms()))
    return response


def sign_out(request: Request) -> Response:
    """``POST /sign-out``."""
    of = site(request)
    text = request.cookies.get(session_cookie(of.secure), "")
    if of.sessions is not None and text:
        of.sessions.close(text)
    response = RedirectResponse("/sign-in", 303)
    set_session(response, of, "")
    return response


def lock(request: Request) -> Response:
    """``POST /lock``: the password is asked for before anything else is shown."""
    of = site(request)
    text = request.cookies.get(session_cookie(of.secure), "")
    if of.sessions is not None and text:
        of.sessions.lock(text)
    return Response(status_code=204)


def here(_: Request) -> Response:
    """``POST /here``: somebody is still there."""
    return Response(status_code=204)


async def who(request: Request) -> Response:
    """``POST /who``: where nobody signs in, the browser is told its reader's name."""
    async with request.form(max_fields=4, max_files=0) as form:
        name, back = str(form.get("name", "")).strip()[:128], str(form.get("back", "/"))
    response = RedirectResponse(inside(back), 303)
    if not site(request).signs_in:
        remember_name(response, name)
    return response


def inside(back: str) -> str:
    """``back`` if it leads to a page of this site, else the first page."""
    parts = urlsplit(back)
    plain = back.startswith("/") and not back.startswith("//") and "\\" not in back and back.isprintable()
    return back if plain and not parts.scheme and not parts.netloc and parts.path != "/sign-in" else "/"


ROUTES: list[Any] = [
    route("/sign-in", sign_in_page, ANYBODY, name="sign-in-page"),
    route("/sign-in", sign_in, ANYBODY, methods=["POST"], name="sign-in"),
    route("/sign-out", sign_out, ANYBODY, methods=["POST"], name="sign-out"),
    route("/lock", lock, ANYBODY, methods=["POST"]),
    route("/here", here, VIEW, methods=["POST"]),
    route("/who", who, VIEW, methods=["POST"]),
]
