"""What stands in front of every request: whose name was called, where a write comes from, how much may come in.

What this module keeps true: a page of another site can neither write here (Origin and Fetch Metadata are checked on every
method that writes) nor read here (a name that isn't this box's is refused, which stops DNS rebinding); every response carries
the same headers; what goes wrong inside is counted, logged by its kind only, and answered clearly.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = structlog.get_logger(__name__)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_SAFE = {"GET", "HEAD", "OPTIONS"}

Refuse = Callable[[Request, int, str, str], Response]
"""Makes the answer to a refused request: status, what is wrong, what to do."""


class TooLarge(Exception):  # noqa: N818 - the condition's name
    """More bytes came than may."""


class Guard:
    """The outermost layer. ``limit``: most bytes a request may carry; ``names``: what this box is called."""

    def __init__(self, app: ASGIApp, *, limit: int, names: Iterable[str], refuse: Refuse, counts: Counter[str]) -> None:
        self._app = app
        self._limit = limit
        self._names = {name.lower() for name in names}
        self._refuse = refuse
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, pass on, and answer for what went wrong."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        request = Request(scope)
        refusal = self._check(request)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        try:
            await self._app(scope, self._limited(receive), guarded)
        except TooLarge:
            response = self._too_large(request)
        except Exception as error:  # noqa: BLE001 - the edge of a request: whatever it is, the others go on
            self._counts["failed"] += 1
            _log.exception("request failed", method=scope["method"], kind=type(error).__name__, exc_info=False)
            what, remedy = "Something went wrong inside the box.", "Try again; if it stays, tell who maintains it."
            response = self._refuse(request, 500, what, remedy)
        else:
            return
        if not started:
            await response(scope, receive, guarded)

    def _check(self, request: Request) -> Response | None:
        headers = request.headers
        host = headers.get("host", "")
        if not named(host, self._names):
            self._counts["host"] += 1
            remedy = "Open the console by this box's address or its own name."
            return self._refuse(request, 421, "This box is not called by that name.", remedy)
        if request.method in _SAFE:
            return None
        if not own(headers, request.url.scheme, host):
            self._counts["origin"] += 1
            remedy = "Open the console itself and do it there."
            return self._refuse(request, 403, "This came from another site.", remedy)
        length = headers.get("content-length", "")
        if length and (not length.isdecimal() or int(length) > self._limit):
            return self._too_large(request)
        return None

    def _too_large(self, request: Request) -> Response:
        self._counts["too-large"] += 1
        remedy = f"At most {self._limit // 1_000_000} MB go this way; send it by DICOM or through the folder."
        return self._refuse(request, 413, "The file is too large.", remedy)

    def _limited(self, receive: Receive) -> Receive:
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise TooLarge
            return message

        return limited


def own_names() -> set[str]:
    """What this box is called besides its addresses."""
    name = socket.gethostname().lower()
    return {"localhost", name, f"{name}.local"}


def named(host: str, names: Iterable[str]) -> bool:
    """Whether a Host header calls this box: an address (rebinding needs a name), or one of ``names``."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if "@" in host or "/" in host:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.rstrip(".") in names
    return True


def own(headers: Headers, scheme: str, host: str) -> bool:
    """Whether a write comes from this console's own pages, or from a program that is no browser."""
    origin = headers.get("origin")
    if origin is not None:
        return origin == f"{scheme}://{host}"
    return headers.get("sec-fetch-site", "none") in {"same-origin", "none"}
