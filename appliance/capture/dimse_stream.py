"""Hands C-STORE data sets over while they arrive: the one module that touches pynetdicom's internals.

What this module keeps true: the bytes of an object go from the socket to its sink, piece by piece, never to a temporary
file and never all into memory; whatever is not a fragment of such a data set goes through pynetdicom unchanged; a sink is
either handed to the C-STORE handler whole or discarded, also when the peer vanishes; no length sent by a peer makes more
than ``PDU_MOST`` bytes be allocated.

It relies on pynetdicom 3.0 (written against 3.0.4; ``tests/contract/test_dimse_internals.py`` fails when what it relies on
changes, and ``usable`` says so at run time, upon which the door falls back to objects received in memory):

- ``transport.RequestHandler._create_association`` makes an association before its thread starts, so that its ``dimse``,
  ``dul`` and socket can be replaced; ``AE.make_server`` passes keywords on to the server class;
- ``DIMSEServiceProvider.receive_primitive`` decodes into ``message``, whose ``data_set`` is a ``BytesIO`` that is only
  written to until the message is complete, and becomes the primitive's ``DataSet``;
- ``DULServiceProvider._read_pdu_data`` reads one PDU, starting with ``socket.recv(6)``; in state ``Sta6`` a P-DATA-TF
  leads to ``dimse.receive_primitive`` and no change of state; ``run_reactor`` polls ``socket.ready`` and the queues
  ``to_provider_queue``, ``to_user_queue`` and ``dimse.msg_queue``, sleeping ``_run_loop_delay`` between. Here it waits
  for whichever comes first instead, which saves the milliseconds of polling in every exchange.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import ssl
import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any, Protocol

import pynetdicom
from pynetdicom import evt
from pynetdicom._handlers import (
    standard_dimse_recv_handler,
    standard_dimse_sent_handler,
    standard_pdu_recv_handler,
    standard_pdu_sent_handler,
)
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from appliance.capture.waking import SignallingQueue, Waker

PDU_SIZE = 1 << 17
PDU_MOST = 1 << 20
_COMMAND_MOST = 1 << 16
_DATA_MOST = 1 << 22
_UNSERVED_MOST = 4
_WAIT = 0.25
_P_DATA_TF = 4
_TRANSFER = "Sta6"
_CLOSING = "Sta13"


class Sink(Protocol):
    """Where one data set goes. Neither method may raise."""

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes; they are overwritten after the return."""

    def discard(self) -> None:
        """Nobody will ask for this object any more: leave nothing of it, unless it is already kept."""


Note = Callable[[str, str], None]
"""(cause to count by, message to log): something a peer did that ends its association."""

Open = Callable[[Any, str, str, str], Sink]
"""(association, SOP class UID, SOP instance UID, transfer syntax UID) → where the data set goes. May not raise."""


def usable() -> str:
    """Why the internals this module relies on are not there; empty if they are."""
    if not pynetdicom.__version__.startswith("3.0."):
        return f"pynetdicom {pynetdicom.__version__} is not the 3.0 this was written against"
    for owner, name in (
        (RequestHandler, "_create_association"),
        (DIMSEServiceProvider, "receive_primitive"),
        (DULServiceProvider, "_read_pdu_data"),
        (DULServiceProvider, "stop_dul"),
        (AssociationSocket, "ready"),
    ):
        if not hasattr(owner, name):
            return f"pynetdicom {pynetdicom.__version__} has no {owner.__name__}.{name}"
    return ""


def sink_of(request: Any) -> Sink | None:
    """The sink that took the data set of a C-STORE request, or None if it was received in memory."""
    return request.DataSet.sink if isinstance(request.DataSet, _StreamedDataSet) else None


class _StreamedDataSet(BytesIO):
    """Stands where pynetdicom wants a ``BytesIO``; stays empty."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink

    def write(self, data: Any) -> int:
        self.sink.write(data)
        return len(data)


class _Dimse(DIMSEServiceProvider):  # type: ignore[misc]
    message: Any

    def __init__(self, association: Any, open_sink: Open, note: Note) -> None:
        super().__init__(association)
        self._open = open_sink
        self.note = note

    @property
    def streaming(self) -> int:
        """The presentation context of the data set being received; 0 when there is none."""
        message = self.message
        return message.context_id if message is not None and isinstance(message.data_set, _StreamedDataSet) else 0

    def receive_primitive(self, primitive: Any) -> None:
        try:
            for item in primitive.presentation_data_value_list:
                part = P_DATA()
                part.presentation_data_value_list.append(item)
                super().receive_primitive(part)
                self._begin(item[0])
        except Exception as error:  # noqa: BLE001 - the edge: what a malformed message breaks, ends this association alone
            self.note("malformed", f"the peer sent a malformed DIMSE message ({type(error).__name__})")
            self.dul.event_queue.put("Evt19")

    def _begin(self, context_id: int) -> None:
        message = self.message
        if message is None or isinstance(message.data_set, _StreamedDataSet):
            return
        if message.encoded_command_set.tell() > _COMMAND_MOST or message.data_set.tell() > _DATA_MOST:
            raise ValueError("the message is larger than any that belongs here")
        if isinstance(message, C_STORE_RQ):
            if self.msg_queue.qsize() > _UNSERVED_MOST:
                raise ValueError("the peer sends objects without waiting for the answers")
            syntax = self.assoc._accepted_cx[context_id].transfer_syntax[0]  # noqa: SLF001
            command = message.command_set
            message.data_set = _StreamedDataSet(
                self._open(
                    self.assoc, str(command.AffectedSOPClassUID), str(command.AffectedSOPInstanceUID), str(syntax)
                )
            )

    def fragment(self, data: memoryview) -> None:
        """The next bytes of the data set being received."""
        self.message.data_set.write(data)

    def complete(self) -> None:
        """The data set being received is whole: an empty last fragment lets pynetdicom finish the message."""
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((self.streaming, b"\x02"))
        self.receive_primitive(primitive)

    def get_msg(self, block: bool = False) -> Any:
        if block:
            return super().get_msg(block=True)
        try:
            return self.msg_queue.get(timeout=_WAIT)
        except queue.Empty:
            return None, None

    def discard(self) -> None:
        """The association is over: objects that nobody will serve are dropped."""
        if self.message is not None and isinstance(self.message.data_set, _StreamedDataSet):
            self.message.data_set.sink.discard()
            self.message = None
        while True:
            try:
                _, request = self.msg_queue.get_nowait()
            except queue.Empty:
                return
            if request is not None and isinstance(getattr(request, "DataSet", None), _StreamedDataSet):
                request.DataSet.sink.discard()


class _Socket(AssociationSocket):  # type: ignore[misc]
    """Reads whole PDUs into one buffer, and can be waited for."""

    def __init__(self, association: Any, client_socket: socket.socket) -> None:
        super().__init__(association, client_socket=client_socket)
        self._ahead = bytearray()
        self._flags = 0 if isinstance(client_socket, ssl.SSLSocket) else socket.MSG_WAITALL

    def fill(self, view: memoryview) -> int:
        """Read until ``view`` is full or the peer has closed; returns how much there is. Raises ``OSError``."""
        got = min(len(self._ahead), len(view))
        if got:
            view[:got] = self._ahead[:got]
            del self._ahead[:got]
        while got < len(view):
            self._acknowledge()
            count = self.socket.recv_into(view[got:], 0, self._flags)
            if count == 0:
                break
            got += count
        return got

    def _acknowledge(self) -> None:
        # A sender with Nagle's algorithm on (most modalities) waits for the acknowledgement of what it has sent before it
        # sends the rest; the kernel would delay that for 40 ms. The option falls back by itself, hence before each wait.
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def push_back(self, data: bytes | bytearray | memoryview) -> None:
        """Let ``data`` be read again."""
        self._ahead[:0] = data

    def drain(self) -> bool:
        """Drop what a peer that was told to go still sends; False once it is gone."""
        self._ahead.clear()
        try:
            return bool(self.socket.recv(PDU_SIZE))
        except OSError:
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        data = bytearray(nr_bytes)
        with memoryview(data) as view:
            got = self.fill(view)
        del data[got:]
        return data

    @property
    def ready(self) -> bool:
        if self._ahead:
            return True
        plain, dul = self.socket, self.assoc.dul
        if plain is None or not self._is_connected:
            return False
        if isinstance(plain, ssl.SSLSocket) and plain.pending():
            return True
        self._acknowledge()
        idle = dul.state_machine.current_state != _CLOSING and dul.event_queue.empty()
        try:
            poll = select.poll()
            poll.register(plain, select.POLLIN)
            poll.register(dul.waker.fd, select.POLLIN)
            events = dict(poll.poll(_WAIT * 1000 if idle else 0))
            if dul.waker.fd in events:
                dul.waker.rest()
            return bool(events.get(plain.fileno()))
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False


class _Dul(DULServiceProvider):  # type: ignore[misc]
    def __init__(self, association: Any) -> None:
        super().__init__(association)
        self.waker = Waker()
        self.to_provider_queue = SignallingQueue(self.waker.wake)
        self.to_user_queue = SignallingQueue(lambda: association.dimse.msg_queue.put((None, None)))
        self._run_loop_delay = 0
        self._buffer = bytearray(6 + PDU_SIZE)

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except Exception as error:  # noqa: BLE001 - the edge of this thread: the association ends, the door stays open
            self.assoc.dimse.note("malformed", f"the association ended by an error ({type(error).__name__})")
        finally:
            self.assoc.dimse.discard()
            self.waker.close()
            self.to_user_queue.put(
                None
            )  # an association still waiting for its request would else hold its place for long

    def stop_dul(self) -> bool:
        if self.state_machine.current_state != "Sta1":
            return False
        self._kill_thread = True
        self.waker.wake()
        self.join()
        return True

    def _read_pdu_data(self) -> None:
        if self.state_machine.current_state == _CLOSING:
            if not self.socket.drain():
                self.event_queue.put("Evt17")
            return
        while True:
            head = self._peek()
            if head is None:
                return
            kind, length = head
            dimse = self.assoc.dimse
            if (
                kind != _P_DATA_TF
                or self.state_machine.current_state != _TRANSFER
                or not dimse.streaming
                or length > PDU_SIZE
                or not self._take_fragments(length)
            ):
                super()._read_pdu_data()
                return
            self._idle_timer.restart()
            if not dimse.streaming or not self.to_provider_queue.empty() or self._kill_thread:
                return

    def _peek(self) -> tuple[int, int] | None:
        """Type and length of the next PDU, left to be read; None (and an event) if there is none that may be read."""
        with memoryview(self._buffer) as view:
            try:
                got = self.socket.fill(view[:6])
            except OSError:
                self.event_queue.put("Evt17")
                return None
            if got < 6:
                self.event_queue.put("Evt17")
                return None
            kind, _, length = struct.unpack_from(">BBL", view)
            if length > PDU_MOST:
                self.assoc.dimse.note("malformed", f"the peer announced a PDU of {length} bytes")
                self.event_queue.put("Evt19")
                return None
            self.socket.push_back(view[:6])
        return kind, length

    def _take_fragments(self, length: int) -> bool:
        """Read one P-DATA-TF made only of fragments of the data set being received; else leave it, and say False."""
        dimse = self.assoc.dimse
        with memoryview(self._buffer) as buffer:
            try:
                got = self.socket.fill(buffer[: 6 + length])
            except OSError:
                got = 0
            with buffer[:got] as view:
                pieces = _fragments(view, dimse.streaming) if got == 6 + length else None
                if pieces is None:
                    self.socket.push_back(view)
                    return False
                for start, end in pieces[1]:
                    dimse.fragment(view[start:end])
        if pieces[0]:
            dimse.complete()
        return True


def _fragments(pdu: memoryview, context_id: int) -> tuple[bool, list[tuple[int, int]]] | None:
    """Whether the last fragment is among the PDU's, and where they are; None if there is anything else in it."""
    pieces: list[tuple[int, int]] = []
    offset, last = 6, False
    while offset < len(pdu):
        if last or offset + 6 > len(pdu):
            return None
        length, context, control = struct.unpack_from(">IBB", pdu, offset)
        start, offset = offset + 6, offset + 4 + length
        if context != context_id or control & 1 or length < 2 or offset > len(pdu):
            return None
        pieces.append((start, offset))
        last = bool(control & 2)
    return last, pieces


class _Handler(RequestHandler):  # type: ignore[misc]
    def _create_association(self) -> Any:
        plain: socket.socket = self.request
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stall = struct.pack("ll", int(self.server.stall_timeout), 0)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, stall)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, stall)
        association = super()._create_association()
        association.dimse = _Dimse(association, self.server.open_sink, self.server.note)
        association.dul = _Dul(association)
        association.acse_timeout = self.ae.acse_timeout
        association.network_timeout = self.ae.network_timeout
        association.set_socket(_Socket(association, plain))
        for event, handler in (
            (evt.EVT_DIMSE_RECV, standard_dimse_recv_handler),
            (evt.EVT_DIMSE_SENT, standard_dimse_sent_handler),
            (evt.EVT_PDU_RECV, standard_pdu_recv_handler),
            (evt.EVT_PDU_SENT, standard_pdu_sent_handler),
        ):
            association.unbind(event, handler)  # they format what is then not logged
        return association


class StreamingServer(ThreadedAssociationServer):  # type: ignore[misc]
    """A server whose associations stream. Made by ``AE.make_server(…, server_class=StreamingServer, …)``.

    ``open_sink`` is called for each object; ``admit`` for each connection with the peer's address; ``note`` for each breach
    of the protocol; a peer that stalls in the middle of a PDU for ``stall_timeout`` seconds is dropped.
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
        **named: Any,
    ) -> None:
        self.open_sink = open_sink
        self.note = note
        self.admit = admit
        self.stall_timeout = stall_timeout
        super().__init__(*args, request_handler=_Handler, **named)
        self._gc = [0, 300]  # its garbage collection stays every 30 s at the shorter poll below

    def serve(self) -> None:
        """Serve until ``shutdown``; run it in a thread."""
        self.serve_forever(poll_interval=0.1)

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
