"""What stands before every request: host, origin, sign-in; and the headers on every answer.

What this module keeps true: a request that changes something is taken only from this site's own pages (``Origin`` or
``Sec-Fetch-Site``), or as JSON, which no other site's page can send without being asked first; nothing is served to a
name that is not signed in, where signing in is asked for; a page runs only scripts and styles of its own origin.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from urllib.parse import quote, unquote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
_NAME_COOKIE = "reviewer"


def remember_name(response: Response, name: str) -> None:
    """Tell this browser its reader's name, for 12 hours; for where nobody signs in."""
    response.set_cookie(_NAME_COOKIE, quote(name), max_age=12 * 3600, httponly=True, samesite="strict")


class Guard:
    """The ASGI middleware that keeps the above."""

    def __init__(self, app: ASGIApp, *, site: Site, hosts: Sequence[str], doors: Sequence[str] = ()) -> None:
        """``hosts``: the names under which the pages may be reached, without port; ``doors``: paths that need no sign-in."""
        self._app = app
        self._doors = frozenset(doors)
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
                if not request.url.path.startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(request)
        if refusal is None and request.url.path not in self._doors:
            refusal = await self._sign_in(request)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        host = _host_name(request.headers.get("host", ""))
        if host not in self._hosts:
            return PlainTextResponse(
                f"This hub is not reached as {host!r}; add the name to web.allowed_hosts.\n", status_code=421
            )
        if request.method not in ("GET", "HEAD", "OPTIONS") and not _same_origin(request.headers):
            return PlainTextResponse("Refused: the request does not come from this site's own pages.\n", 403)
        return None

    async def _sign_in(self, request: Request) -> Response | None:
        users = self._site.users
        if users is None:
            request.state.person = unquote(request.cookies.get(_NAME_COOKIE, ""))[:128]
            return None
        name, password = _basic(request.headers.get("authorization", ""))
        if name:
            right: bool = await run_in_threadpool(users.check, name, password)
            if right:
                request.state.person = name
                return None
        challenge = {"WWW-Authenticate": 'Basic realm="Bedside hub", charset="UTF-8"'}
        return PlainTextResponse("Sign in to see this page.\n", status_code=401, headers=challenge)


def _host_name(host: str) -> str:
    return (urlsplit(f"//{host}").hostname or "").lower()


def _same_origin(headers: Headers) -> bool:
    if "sec-fetch-site" in headers:  # browsers set it, pages can't
        return headers["sec-fetch-site"] == "same-origin"
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    return headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


def _basic(header: str) -> tuple[str, str]:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return "", ""
    return name, password
