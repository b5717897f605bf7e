"""The console's server: in clear for the box's own screen, and with TLS for tablets where that is set.

What this module keeps true: ``start`` returns when the console answers at every address it should, or raises with cause and
remedy and listens nowhere; a renewed certificate is taken up by new connections, without a restart.
"""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import time
from pathlib import Path

import structlog

from appliance.config import ConsoleConfig
from appliance.console.app import UPLOAD_LIMIT, make_app
from appliance.console.certificate import OwnCertificate, authority_pem, box_addresses, tls_context
from appliance.console.context import Context
from appliance.console.guard import own_names
from appliance.console.listener import ConsoleError, Listener, PlainDoor
from appliance.console.sessions import Sessions
from appliance.store import setup_code
from appliance.store.errors import StoreError

_log = structlog.get_logger(__name__)

_TEND_EVERY_S = 60.0


class ConsoleServer:
    """Serves the console at ``config.address``, ``config.port`` and ``config.tls_port`` (0: any free one, see ``port``)."""

    def __init__(self, config: ConsoleConfig, context: Context, *, upload_limit: int = UPLOAD_LIMIT) -> None:
        self._config = config
        self._store = context.store
        sessions = Sessions(context.store.people, config.idle_lock * 60) if config.sign_in == "on" else None
        self._own = None
        if config.tls == "own":
            self._own = OwnCertificate(self._store.folder, self._store.key, self._store.files, context.device)
        self._app = make_app(
            context,
            upload_limit=upload_limit,
            sessions=sessions,
            authority=self._authority if self._own is not None else None,
        )
        self._plain: Listener | None = None
        self._secure: Listener | None = None
        self._tls: ssl.SSLContext | None = None
        self._loaded: tuple[float, ...] = ()
        self._tended = time.monotonic()

    @property
    def port(self) -> int:
        """The port in clear; the configured one before ``start``."""
        return self._plain.port if self._plain is not None else self._config.port

    @property
    def tls_port(self) -> int:
        """The port with TLS; the configured one before ``start``."""
        return self._secure.port if self._secure is not None else self._config.tls_port

    def start(self) -> None:
        """Listen and serve; raises ``ConsoleError``."""
        self._let_the_first_in()
        config = self._config
        try:
            if config.tls == "off":
                self._plain = Listener(self._app, _bound([config.address], config.port, "port"))
            else:
                self._tls = tls_context()
                self._take_certificate(self._tls)
                self._secure = Listener(self._app, _bound([config.address], config.tls_port, "tls_port"), self._tls)
                door = PlainDoor(self._app, own_names(), lambda: self.tls_port, self._authority)
                places = [config.address] if _reaches_loopback(config) else ["127.0.0.1", config.address]
                self._plain = Listener(door, _bound(places, config.port, "port"))
                self._secure.start()
            self._plain.start()
        except ConsoleError:
            self.stop()
            raise

    def tend(self) -> None:
        """Look now and then whether the certificate must be made anew or was changed; what fails is logged and tried again."""
        if self._tls is None or time.monotonic() - self._tended < _TEND_EVERY_S:
            return
        self._tended = time.monotonic()
        try:
            self._take_certificate(self._tls)
        except ConsoleError as error:
            _log.error("the console's certificate could not be renewed", reason=str(error))

    def stop(self) -> None:
        """Let open requests end, then stop; safe to call twice."""
        for one in (self._secure, self._plain):
            if one is not None:
                one.stop()
        self._plain = self._secure = self._tls = None
        self._loaded = ()

    def _take_certificate(self, tls: ssl.SSLContext) -> None:
        """Give ``tls`` the certificate that is there, made anew where needed, unless it has that already."""
        config, own = self._config, self._own
        try:
            if own is not None:
                names = [*sorted(own_names()), *sorted({config.here, *box_addresses()})]
                if own.renew(names, dt.datetime.now(dt.timezone.utc)):
                    _log.info("made a certificate for the console", names=names)
                certificate = key = own.server
            else:
                certificate, key = Path(config.certificate_file), Path(config.key_file)
            stamps = tuple(one.stat().st_mtime for one in (certificate, key))
            if stamps != self._loaded:
                tls.load_cert_chain(certificate, key, password=own.password if own is not None else "")
                self._loaded = stamps
        except (OSError, ValueError, StoreError) as error:  # ssl.SSLError is an OSError
            remedy = (
                "check the disk and the rights of the state folder"
                if own is not None
                else "console.certificate_file and console.key_file must be PEM files that belong together, readable here"
            )
            raise ConsoleError(f"the console has no certificate for TLS ({error}); {remedy}") from error

    def _authority(self) -> bytes | None:
        return authority_pem(self._store.folder) if self._own is not None else None

    def _let_the_first_in(self) -> None:
        """Make the code for the first administrator when nobody can sign in; who may read it is the box's operator."""
        if self._config.sign_in == "off" or any(one.active for one in self._store.people.all()):
            return
        if setup_code.read(self._store.folder) is None:
            setup_code.make(self._store.folder, self._store.files)
        _log.warning(
            "nobody can sign in yet: open the console, and get its code on this box with: bedside console-code"
        )


def _bound(addresses: list[str], port: int, field: str) -> list[socket.socket]:
    """Sockets that listen, all of them or none."""
    made: list[socket.socket] = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            made.append(socket.create_server((address, port), family=family, backlog=128))
            # asyncio sets this only where the socket names its protocol, which create_server does not: 40 ms a request
            made[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, OverflowError) as error:
            for one in made:
                one.close()
            raise ConsoleError(
                f"the console can't listen on {address} port {port} ({error}); "
                f"set console.address to an address of this box and console.{field} to a free port"
            ) from error
    return made


def _reaches_loopback(config: ConsoleConfig) -> bool:
    """Whether a socket at the configured address is also where the box itself asks (``config.here``)."""
    return config.address in {"0.0.0.0", config.here}  # noqa: S104 - compared, not listened on
