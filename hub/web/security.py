"""What stands before every request: host, origin, who asks; and the headers on every answer.

What this module keeps true: a request that changes something is taken only from this site's own pages (``Origin`` or
``Sec-Fetch-Site``), or, from a program that has no cookie, as JSON, which no other site's page can send without being asked
first; who asks is known by session, token or password, and what they may do is for ``hub.web.access`` to check; a page runs
only scripts and styles of its own origin.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub.people import Person, Throttled
from hub.web.site import Site

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "media-src 'self'; font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
_NAME_COOKIE = "reviewer"
_UNATTENDED = frozenset({"/events"})
"""What a page asks for by itself: it keeps no session open."""


def remember_name(response: Response, name: str) -> None:
    """Tell this browser its reader's name, for 12 hours; for where nobody signs in."""
    response.set_cookie(_NAME_COOKIE, quote(name), max_age=12 * 3600, httponly=True, samesite="strict")


class Guard:
    """The ASGI middleware that keeps the above."""

    def __init__(self, app: ASGIApp, *, site: Site, hosts: Sequence[str]) -> None:
        """``hosts``: the names under which the pages may be reached, without port."""
        self._app = app
        self._site = site
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on; every answer gets the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self._site.secure:
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
                if not request.url.path.startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(request)
        if refusal is None:
            await self._recognise(request)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        host = _host_name(request.headers.get("host", ""))
        if host not in self._hosts:
            return PlainTextResponse(
                f"This hub is not reached as {host!r}; add the name to web.allowed_hosts.\n", status_code=421
            )
        cookie = session_cookie(self._site.secure) in request.cookies
        if request.method not in ("GET", "HEAD", "OPTIONS") and not _same_origin(request.headers, cookie=cookie):
            return PlainTextResponse("Refused: the request does not come from this site's own pages.\n", 403)
        return None

    async def _recognise(self, request: Request) -> None:
        """Say in ``request.state`` who asks and what they may do; nothing where that is not known."""
        if not await run_in_threadpool(lambda: self._site.signs_in):
            request.state.person = unquote(request.cookies.get(_NAME_COOKIE, ""))[:128]
            return
        people, sessions, now_ms = self._site.people, self._site.sessions, self._site.clock_ms()
        scheme, _, proof = request.headers.get("authorization", "").partition(" ")
        cookie = request.cookies.get(session_cookie(self._site.secure), "")
        if people is None:
            return
        if scheme.lower() == "basic":
            name, password = _basic(proof)
            address = request.client.host if request.client else ""
            try:
                person = await run_in_threadpool(people.check, name, password, address, now_ms) if name else None
            except Throttled as error:
                request.state.wait_s = error.seconds
                return
            _known(request, person)
        elif sessions is not None and scheme.lower() == "bearer":
            _known(request, await run_in_threadpool(sessions.by_token, proof.strip(), now_ms))
        elif sessions is not None and cookie:
            used = request.url.path not in _UNATTENDED and "fragment" not in request.query_params
            visit = await run_in_threadpool(lambda: sessions.find(cookie, now_ms, used=used))
            if visit is not None and visit.locked:
                request.state.locked = visit.person.name
            elif visit is not None:
                _known(request, visit.person)
                request.state.idle_s = sessions.idle_ms / 1000


def session_cookie(secure: bool) -> str:
    """The cookie's name; with TLS one that no other host and no plain page can set (RFC 6265bis, 4.1.3.2)."""
    return "__Host-hub-session" if secure else "hub-session"


def set_session(response: Response, site: Site, text: str) -> None:
    """Give the browser its session, or (empty) take it away."""
    options: dict[str, Any] = {"httponly": True, "samesite": "lax", "secure": site.secure, "path": "/"}
    if text:
        response.set_cookie(session_cookie(site.secure), text, **options)
    else:
        response.delete_cookie(session_cookie(site.secure), **options)


def _known(request: Request, person: Person | None) -> None:
    if person is not None:
        request.state.person = person.name
        request.state.roles = person.roles
        request.state.machine = person.machine


def _host_name(host: str) -> str:
    return (urlsplit(f"//{host}").hostname or "").lower()


def _same_origin(headers: Headers, *, cookie: bool) -> bool:
    if "sec-fetch-site" in headers:  # browsers set it, pages can't
        return headers["sec-fetch-site"] == "same-origin"
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    return not cookie and headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


def _basic(encoded: str) -> tuple[str, str]:
    try:
        name, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return "", ""
    return name, password
