"""The server whose associations stream (``dimse_stream``), over plain connections or TLS.

What this module keeps true: accepting never waits for a peer: the TLS handshake runs on the connection's own thread, within
``HANDSHAKE`` seconds, and only ``HANDSHAKES`` at a time; a peer that stalls in the middle of a PDU is dropped.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

from pynetdicom import evt
from pynetdicom._handlers import (
    standard_dimse_recv_handler,
    standard_dimse_sent_handler,
    standard_pdu_recv_handler,
    standard_pdu_sent_handler,
)
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from appliance.capture.dimse_stream import Dimse, Dul, Note, Open, Socket

HANDSHAKE = 15.0
HANDSHAKES = 20


class _Handler(RequestHandler):  # type: ignore[misc]
    def _create_association(self) -> Any:
        plain: socket.socket = self.request
        if self.server.tls is not None:
            plain = self._handshake(plain)
            self.request: socket.socket = plain
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stall = struct.pack("ll", int(self.server.stall_timeout), 0)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, stall)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, stall)
        association = super()._create_association()
        association.dimse = Dimse(association, self.server.open_sink, self.server.note)
        association.dul = Dul(association)
        association.acse_timeout = self.ae.acse_timeout
        association.network_timeout = self.ae.network_timeout
        association.set_socket(Socket(association, plain))
        for event, handler in (
            (evt.EVT_DIMSE_RECV, standard_dimse_recv_handler),
            (evt.EVT_DIMSE_SENT, standard_dimse_sent_handler),
            (evt.EVT_PDU_RECV, standard_pdu_recv_handler),
            (evt.EVT_PDU_SENT, standard_pdu_sent_handler),
        ):
            association.unbind(event, handler)  # they format what is then not logged
        return association

    def _handshake(self, plain: socket.socket) -> ssl.SSLSocket:
        """The connection, encrypted; raises ``OSError``, upon which the server closes it."""
        server = self.server
        if not server.handshakes.acquire(blocking=False):
            raise OSError("too many connections have begun a handshake")
        try:
            plain.settimeout(HANDSHAKE)
            secure: ssl.SSLSocket = server.tls().wrap_socket(plain, server_side=True)
            secure.settimeout(None)
        finally:
            server.handshakes.release()
        return secure


class StreamingServer(ThreadedAssociationServer):  # type: ignore[misc]
    """A server whose associations stream. Made by ``AE.make_server(…, server_class=StreamingServer, …)``.

    ``open_sink`` is called for each object; ``admit`` for each connection with the peer's address; ``note`` for each breach
    of the protocol; a peer that stalls in the middle of a PDU for ``stall_timeout`` seconds is dropped. ``tls`` gives the
    context for the next connection; ``None`` for plain ones.
    """

    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        *args: Any,
        open_sink: Open,
        note: Note,
        admit: Callable[[str], bool],
        stall_timeout: float,
        tls: Callable[[], ssl.SSLContext] | None = None,
        **named: Any,
    ) -> None:
        self.open_sink = open_sink
        self.note = note
        self.admit = admit
        self.stall_timeout = stall_timeout
        self.tls = tls
        self.handshakes = threading.BoundedSemaphore(HANDSHAKES)
        super().__init__(*args, request_handler=_Handler, **named)
        self._gc = [0, 300]  # its garbage collection stays every 30 s at the shorter poll below

    def serve(self) -> None:
        """Serve until ``shutdown``; run it in a thread."""
        self.serve_forever(poll_interval=0.1)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """What kept a connection from becoming an association: said and counted, never printed."""
        error = sys.exc_info()[1]
        words = getattr(error, "reason", None) or type(error).__name__
        self.note("rejected-connection", f"the connection did not become an association ({words})")

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Whether the connection may stay."""
        return self.admit(str(client_address[0]))


def hang_up(server: Any, patience: float) -> None:
    """End the server's associations at once and wait at most ``patience`` seconds for each."""
    associations = server.active_associations
    for association in associations:
        plain = association.dul.socket.socket if association.dul.socket is not None else None
        if plain is not None:
            with contextlib.suppress(OSError):
                plain.shutdown(socket.SHUT_RDWR)
    for association in associations:
        association.join(patience)
