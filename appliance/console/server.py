"""The console's server: uvicorn in a thread of the daemon.

What this module keeps true: ``start`` returns when the console answers, or raises with cause and remedy; no signal handler
is installed; what people open is not written to a log.
"""

from __future__ import annotations

import socket
import threading
import time

import structlog
import uvicorn

from appliance.config import ConsoleConfig
from appliance.console.app import UPLOAD_LIMIT, make_app
from appliance.console.context import Context
from appliance.console.sessions import Sessions
from appliance.store import setup_code

_log = structlog.get_logger(__name__)

_START_S = 20.0
_STOP_S = 5.0


class ConsoleError(Exception):
    """The console can't be served; the message names cause and remedy."""


class ConsoleServer:
    """Serves the console at ``config.address`` and ``config.port`` (0: any free port, see ``port``)."""

    def __init__(self, config: ConsoleConfig, context: Context, *, upload_limit: int = UPLOAD_LIMIT) -> None:
        self._config = config
        self._store = context.store
        sessions = Sessions(context.store.people, config.idle_lock * 60) if config.sign_in == "on" else None
        self._app = make_app(context, upload_limit=upload_limit, sessions=sessions)
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on; the configured one before ``start``."""
        return int(self._socket.getsockname()[1]) if self._socket is not None else self._config.port

    def start(self) -> None:
        """Listen and serve; raises ``ConsoleError``."""
        self._let_the_first_in()
        address, port = self._config.address, self._config.port
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._socket = socket.create_server((address, port), family=family, backlog=128)
            # asyncio sets this only where the socket names its protocol, which create_server does not: 40 ms a request
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, OverflowError) as error:
            raise ConsoleError(
                f"the console can't listen on {address} port {port} ({error}); "
                "set console.address to an address of this box and console.port to a free port"
            ) from error
        settings = uvicorn.Config(
            self._app,
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
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="console", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise ConsoleError("the console did not start; the log says why")
            time.sleep(0.01)

    def _let_the_first_in(self) -> None:
        """Make the code for the first administrator when nobody can sign in; who may read it is the box's operator."""
        if self._config.sign_in == "off" or any(one.active for one in self._store.people.all()):
            return
        if setup_code.read(self._store.folder) is None:
            setup_code.make(self._store.folder, self._store.files)
        _log.warning(
            "nobody can sign in yet: open the console, and get its code on this box with: bedside console-code"
        )

    def stop(self) -> None:
        """Let open requests end, then stop; safe to call twice."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_STOP_S)
            if self._thread.is_alive():
                self._server.force_exit = True
                self._thread.join(_STOP_S)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._server = self._thread = None
