"""A paho client for an outer loop of one thread, made lighter in the two places that cost a hub's worker most.

What this module keeps true: paho keeps the session (connecting, subscribing, in-flight messages, keep-alive). It asks the
socket for one byte, then a length, then the packet, and sends each packet by itself: here those calls go to buffers,
which ``turn`` fills and empties, and nothing that was sent is held back while it waits. An incoming PUBLISH is taken apart
here (MQTT 5, 3.3), because paho's ``Properties`` take more time than all that the hub does with the message; what is
published (``post``) is packed here too.

The seams are three private names of paho 2 (``_create_socket``, ``_handle_publish``, ``_handle_pubackcomp``); without them
nothing starts.
"""

from __future__ import annotations

import contextlib
import select
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from appliance.protocol.buffered import BufferedSocket
from appliance.protocol.packets import FIRST_ID, LAST_ID, publish, text_field, text_pair
from hub.arrivals import Incoming


class Delivered(NamedTuple):
    """A message and what it is acknowledged by: ``mid`` is 0 for QoS 0, which is not acknowledged."""

    mid: int
    message: Incoming


class MalformedError(ValueError):
    """The broker sent a PUBLISH that is not one (MQTT 5): the connection is given up."""


_UTF8_PAIR, _CONTENT_TYPE = 0x26, 0x03
_FIXED = {0x01: 1, 0x02: 4, 0x23: 2}
"""Properties of a fixed size: payload format, message expiry, topic alias (MQTT 5, table 2-4)."""


def parse_publish(command: int, packet: bytes | bytearray) -> Delivered:
    """Take a PUBLISH apart, fixed header's first byte and the rest; raises ``MalformedError``."""
    body = bytes(packet)
    try:
        topic, at = _binary(body, 0)
        mid = 0
        if command & 0x06:
            (mid,) = struct.unpack_from("!H", body, at)
            at += 2
        length, at = _variable(body, at)
        end = at + length
        if end > len(body):
            raise MalformedError("properties are longer than the packet")
        content_type, header = "", []
        while at < end:
            kind = body[at]
            at += 1
            if kind == _UTF8_PAIR:
                name, at = _binary(body, at)
                value, at = _binary(body, at)
                header.append((name.decode(errors="replace"), value.decode(errors="replace")))
            elif kind == _CONTENT_TYPE:
                value, at = _binary(body, at)
                content_type = value.decode(errors="replace")
            else:
                at = _skipped(body, kind, at)
    except (IndexError, struct.error) as error:
        raise MalformedError("the packet is cut short") from error
    # A topic that is not UTF-8 is none of ours: it is counted and dropped where topics are checked.
    return Delivered(mid, Incoming(topic.decode(errors="replace"), body[end:], tuple(header), content_type))


def _binary(body: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("!H", body, at)
    end = at + 2 + length
    if end > len(body):
        raise MalformedError("a string is longer than the packet")
    return body[at + 2 : end], end


def _variable(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7, 14, 21):
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedError("a length has more than four bytes")


def _skipped(body: bytes, kind: int, at: int) -> int:
    if kind in _FIXED:
        return at + _FIXED[kind]
    if kind in (0x08, 0x09):  # response topic, correlation data
        return _binary(body, at)[1]
    if kind == 0x0B:  # subscription identifier
        return _variable(body, at)[1]
    raise MalformedError(f"property {kind:#x} does not belong to PUBLISH")


class Session(mqtt.Client):  # type: ignore[misc]
    """paho's client with both."""

    def __init__(self, client_id: str, take: Callable[[Delivered], None]) -> None:
        """``take`` gets each message, inside ``turn``; acknowledge it with ``acknowledge``."""
        super().__init__(
            callback_api_version=CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=mqtt.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        missing = [
            name
            for name in ("_create_socket", "_handle_publish", "_handle_pubackcomp")
            if not hasattr(mqtt.Client, name)
        ]
        if missing:
            raise RuntimeError(f"this release of paho-mqtt has no {missing[0]}; install paho-mqtt 2.1 or 2.2")
        self._take = take
        self._outgoing: deque[tuple[str, bytes, bytes]] = deque()
        self._unacknowledged = 0
        self._next_id = FIRST_ID
        self._receive_maximum = LAST_ID

    def begin(self, properties: Any) -> None:
        """A new connection stands (CONNACK with ``properties``): what was posted on the one before is forgotten."""
        self._outgoing.clear()
        self._unacknowledged = 0
        self._receive_maximum = int(getattr(properties, "ReceiveMaximum", 0) or LAST_ID)

    def post(self, topic: str, payload: bytes, properties: Sequence[tuple[str, str]] = ()) -> None:
        """Publish with quality of service 1, past paho, as soon as the broker's Receive Maximum allows.

        It is lost with the connection: for what is asked for again (receipts) or sent again by whoever keeps it.
        """
        self._outgoing.append((topic, payload, b"".join(text_pair(name, value) for name, value in properties)))
        self._send_posted()

    def _send_posted(self) -> None:
        inner = self.socket()
        while inner is not None and self._outgoing and self._unacknowledged < self._receive_maximum:
            topic, payload, properties = self._outgoing[0]
            try:
                inner.send(publish(text_field(topic), payload, self._next_id, properties))
            except OSError:  # nothing is taken now: the next turn goes on, or meets the end
                return
            self._outgoing.popleft()
            self._unacknowledged += 1
            self._next_id = self._next_id + 1 if self._next_id < LAST_ID else FIRST_ID

    def _acknowledged(self, number: int) -> None:
        if number >= FIRST_ID and self._unacknowledged:
            self._unacknowledged -= 1

    def _handle_pubackcomp(self, _command: Any) -> Any:
        """A PUBACK that came in two parts, or behind something else."""
        self._acknowledged(int.from_bytes(self._in_packet["packet"][:2], "big"))
        return mqtt.MQTT_ERR_SUCCESS

    def _take_acknowledgements(self, inner: BufferedSocket) -> None:
        with contextlib.suppress(OSError):  # paho meets the error, or the end, itself
            inner.fill()
        for number, _ in inner.acknowledgements():
            self._acknowledged(number)

    def _handle_publish(self) -> Any:
        packet = self._in_packet
        try:
            self._take(parse_publish(packet["command"], packet["packet"]))
        except MalformedError:
            return mqtt.MQTT_ERR_PROTOCOL
        return mqtt.MQTT_ERR_SUCCESS

    def _create_socket(self) -> Any:
        return BufferedSocket(super()._create_socket())

    def acknowledge(self, mid: int) -> None:
        """Send the PUBACK of message ``mid``: success without properties (MQTT 5, 3.4), straight into the buffer.

        The buffer takes a packet whole or not at all, so this never lands inside another one.
        """
        inner = self.socket()
        if inner is not None:
            inner.send(b"\x40\x02" + mid.to_bytes(2, "big"))

    def turn(self, patience: float) -> bool:
        """Send what waits, wait up to ``patience`` seconds for something to read, read; False: the connection is gone."""
        inner = self.socket()
        if inner is None:
            return False
        if self.want_write():
            self.loop_write()
        try:
            flushed = inner.flush()
            poll = select.poll()
            poll.register(inner.fileno(), select.POLLIN if flushed else select.POLLIN | select.POLLOUT)
            ready = inner.pending() or poll.poll(max(0.0, patience) * 1000)
        except (OSError, ValueError):
            self._sock_close()
            return False
        if ready:
            if not self._in_packet["command"]:  # between two packets
                self._take_acknowledgements(inner)
            if self.loop_read() != mqtt.MQTT_ERR_SUCCESS:
                return False
            self._send_posted()
        return bool(self.loop_misc() == mqtt.MQTT_ERR_SUCCESS)
