"""Hands C-STORE data sets over while they arrive: with ``dimse_server``, what touches pynetdicom's internals.

What this module keeps true: the bytes of an object go from the socket to its sink, piece by piece, never to a temporary
file and never all into memory; whatever is not a fragment of such a data set goes through pynetdicom unchanged; a sink is
either handed to the C-STORE handler whole or discarded, also when the peer vanishes; no length sent by a peer makes more
than ``PDU_MOST`` bytes be allocated.

It relies on pynetdicom 3.0 (written against 3.0.4; ``tests/contract/test_dimse_internals.py`` fails when what it relies on
changes, and ``usable`` says so at run time, upon which the door falls back to objects received in memory):

- ``transport.RequestHandler._create_association`` makes an association before its thread starts, so that its ``dimse``,
  ``dul`` and socket can be replaced; ``AE.make_server`` passes keywords on to the server class;
- ``DIMSEServiceProvider.receive_primitive`` decodes a message in ``message``, which becomes a ``C_STORE_RQ`` with its
  ``encoded_command_set`` once that is whole; its data set is then received and answered here;
- ``DULServiceProvider._read_pdu_data`` reads one PDU, starting with ``socket.recv(6)``; in state ``Sta6`` a P-DATA-TF
  leads to ``dimse.receive_primitive`` and a P-DATA in ``to_provider_queue`` to ``socket.send``, with no change of state;
  ``run_reactor`` polls ``socket.ready`` and the queues ``to_provider_queue``, ``to_user_queue`` and ``dimse.msg_queue``,
  sleeping ``_run_loop_delay`` between. Here it waits for whichever comes first instead, and from one object to the next
  it does not come back at all: even a sleep of nothing gives the processor away, for milliseconds if others want it.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import pynetdicom
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler

from appliance.capture.store_messages import StoreRequest, store_request, store_response
from appliance.capture.waking import SignallingQueue, Waker

PDU_SIZE = 1 << 17
PDU_MOST = 1 << 20
_COMMAND_MOST = 1 << 16
_DATA_MOST = 1 << 22
QUIET = 0.5
_WAIT = 0.25
_P_DATA_TF = 4
_HEAD = 10  # PDU type, reserved, PDU length, item length; no PDU is shorter
_TRANSFER = "Sta6"
_CLOSING = "Sta13"


class Sink(Protocol):
    """Where one data set goes. No method may raise."""

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes; they are overwritten after the return."""

    def finish(self) -> tuple[int, str]:
        """The data set is whole: the status to answer, and a comment (empty for success)."""

    def discard(self) -> None:
        """The rest will never come: leave nothing."""


Note = Callable[[str, str], None]
"""(cause to count by, message to log): something a peer did that ends its association."""

Answered = Callable[[int], object]
"""Is given the status of an answer."""

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


class Dimse(DIMSEServiceProvider):  # type: ignore[misc]
    """Takes messages apart; a C-STORE's data set goes to its sink, everything else to pynetdicom.

    ``report`` sends an N-EVENT-REPORT on the association's own thread, and gives the answer's status to a callback. It is sent
    once the peer has been quiet for ``QUIET`` seconds: many take whatever comes next for the answer to their last request.
    """

    message: Any

    def __init__(self, association: Any, open_sink: Open, note: Note) -> None:
        super().__init__(association)
        self._open = open_sink
        self._sink: Sink | None = None
        self._request = StoreRequest("", "", 0)
        self._context_id = 0
        self.note = note
        self._sending = threading.Lock()  # the parts of two messages must not mix
        self._reports: queue.SimpleQueue[tuple[Any, int, Answered]] = queue.SimpleQueue()
        self._answers: dict[int, Answered] = {}
        self._active = 0.0

    @property
    def streaming(self) -> int:
        """The presentation context of the data set being received; 0 when there is none."""
        return self._context_id if self._sink is not None else 0

    def receive_primitive(self, primitive: Any) -> None:
        """Take the fragments of a P-DATA-TF. What can't be understood ends the association."""
        self._active = time.monotonic()
        try:
            for context_id, data in primitive.presentation_data_value_list:
                if self._sink is not None:
                    self.fragment(context_id, data[0], memoryview(data)[1:])
                    continue
                if self.command(context_id, data[0], memoryview(data)[1:]):
                    continue
                part = P_DATA()
                part.presentation_data_value_list.append((context_id, data))
                super().receive_primitive(part)
                if self.message is not None:
                    self._inspect(context_id)
        except Exception as error:  # noqa: BLE001 - the edge: what a malformed message breaks, ends this association alone
            self.note("malformed", f"the peer sent a malformed DIMSE message ({type(error).__name__})")
            self.dul.event_queue.put("Evt19")

    def command(self, context_id: int, control: int, data: memoryview) -> bool:
        """Whether this fragment was a whole C-STORE request, as nearly always; anything else is left to pynetdicom."""
        if self.message is not None or control & 3 != 3 or context_id not in self.assoc._accepted_cx:  # noqa: SLF001
            return False
        request = store_request(data)
        if request is None:
            return False
        self._active = time.monotonic()
        self._begin(context_id, request)
        return True

    def _inspect(self, context_id: int) -> None:
        """Look at a message that is not yet whole: has it become a C-STORE request with a data set to come?"""
        message = self.message
        if message.encoded_command_set.tell() > _COMMAND_MOST or message.data_set.tell() > _DATA_MOST:
            raise ValueError("the message is larger than any that belongs here")
        if isinstance(message, C_STORE_RQ):
            request = store_request(message.encoded_command_set.getbuffer())
            if request is None:
                raise ValueError("a C-STORE request without what it needs")
            self.message = None
            self._begin(context_id, request)

    def _begin(self, context_id: int, request: StoreRequest) -> None:
        syntax = self.assoc._accepted_cx[context_id].transfer_syntax[0]  # noqa: SLF001
        self._request, self._context_id = request, context_id
        self._sink = self._open(self.assoc, request.sop_class, request.instance, str(syntax))

    def fragment(self, context_id: int, control: int, data: memoryview) -> None:
        """The next bytes of the data set being received; after the last ones it is answered, on this thread."""
        sink = self._sink
        if sink is None or context_id != self._context_id or control & 1:
            raise ValueError("another message begins inside a data set")
        sink.write(data)
        if control & 2:
            response = store_response(self._request, *sink.finish())
            self._sink = None
            self._active = time.monotonic()
            with self._sending:
                self.dul.answer(context_id, response)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send a whole message."""
        with self._sending:
            super().send_msg(primitive, context_id)

    def report(self, primitive: Any, context_id: int, answered: Answered) -> None:
        """Send an N-EVENT-REPORT request soon; ``answered`` gets the status of its answer, if one comes."""
        self._reports.put((primitive, context_id, answered))
        self.msg_queue.put((None, None))

    def get_msg(self, block: bool = False) -> Any:
        """The next message for pynetdicom, ``(None, None)`` when none came for a while."""
        if block:
            return super().get_msg(block=True)
        while not self._reports.empty() and self._sink is None and time.monotonic() - self._active >= QUIET:
            primitive, number, answered = self._reports.get()
            self._answers[primitive.MessageID] = answered
            self.send_msg(primitive, number)
        try:
            context_id, message = self.msg_queue.get(timeout=_WAIT)
        except queue.Empty:
            return None, None
        if isinstance(message, N_EVENT_REPORT) and message.MessageIDBeingRespondedTo is not None:
            awaited = self._answers.pop(message.MessageIDBeingRespondedTo, None)
            if awaited is not None and message.Status is not None:
                awaited(message.Status)
            return None, None
        return context_id, message

    def discard(self) -> None:
        """The association is over: what was being received is dropped."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.discard()


class Socket(AssociationSocket):  # type: ignore[misc]
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
        """``nr_bytes``, fewer at the end."""
        data = bytearray(nr_bytes)
        with memoryview(data) as view:
            got = self.fill(view)
        del data[got:]
        return data

    @property
    def ready(self) -> bool:
        """Wait a little; whether there is something to read."""
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


class Dul(DULServiceProvider):  # type: ignore[misc]
    """Takes a data set's fragments off the socket itself, and waits for the socket and its queues at once."""

    def __init__(self, association: Any) -> None:
        super().__init__(association)
        self.waker = Waker()
        self.to_provider_queue = SignallingQueue(self.waker.wake)
        self.to_user_queue = SignallingQueue(lambda: association.dimse.msg_queue.put((None, None)))
        self._run_loop_delay = 0
        self._buffer = bytearray(_HEAD + PDU_SIZE)

    def run_reactor(self) -> None:
        """Serve until the association is over."""
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
        """End, once idle; whether it did."""
        if self.state_machine.current_state != "Sta1":
            return False
        self._kill_thread = True
        self.waker.wake()
        self.join()
        return True

    def answer(self, context_id: int, command: bytes) -> None:
        """Send a command set that fits into one fragment; on this thread only."""
        if self.state_machine.current_state == _TRANSFER and self.to_provider_queue.empty():
            size = len(command) + 2
            self.socket.send(struct.pack(">BBIIBB", _P_DATA_TF, 0, size + 4, size, context_id, 3) + command)
            return
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((context_id, b"\x03" + command))
        self.send_pdu(primitive)

    def _read_pdu_data(self) -> None:
        if self.state_machine.current_state == _CLOSING:
            if not self.socket.drain():
                self.event_queue.put("Evt17")
            return
        while self.state_machine.current_state == _TRANSFER and self._take_fragment():
            self._idle_timer.restart()
            ready = self.assoc.dimse.streaming or self.socket.ready
            if not ready or self._kill_thread or not (self.to_provider_queue.empty() and self.event_queue.empty()):
                return
        if self._allowed():
            super()._read_pdu_data()

    def _take_fragment(self) -> bool:
        """Take one P-DATA-TF that is one fragment of a data set, or the request that announces one; else it is left: False."""
        dimse = self.assoc.dimse
        with memoryview(self._buffer) as buffer:
            got = self._fill(buffer[:_HEAD])
            kind, _, length, item = struct.unpack_from(">BBII", buffer)
            if got == _HEAD and kind == _P_DATA_TF and item == length - 4 and 2 <= item <= PDU_SIZE:
                got += self._fill(buffer[_HEAD : _HEAD + item])
                context_id, control = buffer[_HEAD : _HEAD + 2]
                if got == _HEAD + item:
                    if not dimse.streaming:
                        taken = dimse.command(context_id, control, buffer[_HEAD + 2 : got])
                    elif taken := context_id == dimse.streaming and not control & 1:
                        dimse.fragment(context_id, control, buffer[_HEAD + 2 : got])
                    if taken:
                        return True
            self.socket.push_back(buffer[:got])
        return False

    def _fill(self, view: memoryview) -> int:
        try:
            return int(self.socket.fill(view))
        except OSError:  # pynetdicom, reading on, meets it again
            return 0

    def _allowed(self) -> bool:
        """Whether the next PDU may be read: not one that is longer than any should be."""
        with memoryview(self._buffer) as buffer:
            got = self._fill(buffer[:6])
            length = struct.unpack_from(">I", buffer, 2)[0]
            if got < 6 or length > PDU_MOST:
                if got == 6:
                    self.assoc.dimse.note("malformed", f"the peer announced a PDU of {length} bytes")
                self.event_queue.put("Evt19" if got == 6 else "Evt17")
                return False
            self.socket.push_back(buffer[:6])
        return True
