"""One uvicorn in a thread, on sockets that are bound already; and what answers in clear where TLS is asked for.

What this module keeps true: ``start`` returns when it answers, or raises; no signal handler is installed; what people open is
not written to a log. Beside TLS, only this very box is served in clear (its kiosk); a tablet gets the authority's certificate,
which is public, and is sent to the secure address with everything else: it is told nothing and asked for nothing in clear.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import uvicorn
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.console.guard import named

AUTHORITY_PATH = "/bedside-ca.crt"
_START_S = 20.0
_STOP_S = 5.0


class ConsoleError(Exception):
    """The console can't be served; the message names cause and remedy."""


class Listener:
    """Serves an application on sockets; ``tls``: the context to answer with, which may be given new certificates later."""

    def __init__(self, app: ASGIApp, sockets: list[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        self._sockets = sockets
        settings = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=int(_STOP_S) - 2,
            limit_concurrency=200,
        )
        settings.load()
        settings.ssl = tls  # its own parameters take files only, and would make a context that can't be given new ones
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": sockets}, name="console-tls" if tls else "console", daemon=True
        )

    @property
    def port(self) -> int:
        """The port of the first socket."""
        return int(self._sockets[0].getsockname()[1])

    def start(self) -> None:
        """Serve; raises ``ConsoleError``."""
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise ConsoleError("the console did not start; the log says why")
            time.sleep(0.01)

    def stop(self) -> None:
        """Let open requests end, then stop; safe to call twice."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(_STOP_S)
        for one in self._sockets:
            one.close()


class PlainDoor:
    """The application in clear for this very box; for all others the way to TLS. ``authority``: what tablets are to trust."""

    def __init__(
        self, app: ASGIApp, names: set[str], tls_port: Callable[[], int], authority: Callable[[], bytes | None]
    ) -> None:
        self._app = app
        self._names = names
        self._tls_port = tls_port
        self._authority = authority

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or send away."""
        if scope["type"] != "http" or is_from_here(scope):
            await self._app(scope, receive, send)
        else:
            await self._away(Request(scope))(scope, receive, send)

    def _away(self, request: Request) -> Response:
        host = request.headers.get("host", "")
        if not named(host, self._names):
            return Response(status_code=421)
        reads = request.method in {"GET", "HEAD"}
        if reads and request.url.path == AUTHORITY_PATH:
            return authority_response(self._authority())
        name = urlsplit(f"//{host}").hostname or ""
        secure = f"https://{f'[{name}]' if ':' in name else name}:{self._tls_port()}"
        # What was written came in clear: it is not passed on, and the person begins again where it can't be read.
        return RedirectResponse(f"{secure}{request.url.path}" if reads else f"{secure}/", 307 if reads else 303)


def authority_response(pem: bytes | None) -> Response:
    """The authority's certificate as a file that tablets offer to install."""
    if pem is None:
        return Response(status_code=404)
    headers = {"content-disposition": 'attachment; filename="bedside-ca.crt"', "cache-control": "no-store"}
    return Response(pem, media_type="application/x-x509-ca-cert", headers=headers)


def is_from_here(scope: Scope) -> bool:
    """Whether a request came over the loopback interface: both its ends say so, and the kernel drops others that claim it."""
    return all(_loopback(scope.get(end)) for end in ("client", "server"))


def _loopback(end: object) -> bool:
    try:
        return ipaddress.ip_address(end[0]).is_loopback  # type: ignore[index]  # not an address is answered below
    except (TypeError, ValueError, IndexError, KeyError):
        return False
