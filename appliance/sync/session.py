"""The box's MQTT 5 session: paho's client, turned by the link's own thread and made lighter where most time went.

What this module keeps true: paho keeps the session (connecting, subscribing, keep-alive, what comes down); nothing is sent
twice by it, because what ``post`` hands over is unknown to paho and forgotten with the connection. A PUBLISH is packed here
(MQTT 5, 3.3) and its PUBACK read here (3.4): paho's own path takes four locks, two wake-ups and a queue for each. No more
messages are unacknowledged than the broker's Receive Maximum allows (``receive_maximum``), and a topic is sent once for each
connection and by its alias from then on, if the broker takes aliases (3.3.2.3.4).

The seams are three private names of paho 2; without them nothing starts.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from appliance.protocol.buffered import WOULD_BLOCK, BufferedSocket
from appliance.protocol.packets import FIRST_ID, LAST_ID, publish, text_field, text_pair

_SEAMS = ("_create_socket", "_handle_pubackcomp", "_sock_close")
_EXPIRY, _CONTENT_TYPE, _TOPIC_ALIAS = 0x02, 0x03, 0x23
_MISC_EVERY = 0.5
"""Seconds between two looks at the keep-alive."""


class Waker:
    """Ends a ``turn`` from any thread. Closed, it does nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends = os.pipe()
        for end in self._ends:
            os.set_blocking(end, False)
        self._rung = self._closed = False

    def ring(self) -> None:
        """Make the present ``turn``, or the next one, end at once."""
        with self._lock:
            if not (self._rung or self._closed):
                self._rung = True
                os.write(self._ends[1], b"\0")

    def heard(self) -> None:
        """Whoever was waiting has noticed: what rings from now on, rings again."""
        with self._lock:
            if self._rung and not self._closed:
                self._rung = False
                os.read(self._ends[0], 1)

    def fileno(self) -> int:
        """What ``poll`` waits for."""
        return self._ends[0]

    def close(self) -> None:
        """Close both ends."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for end in self._ends:
                    os.close(end)


class Session(mqtt.Client):  # type: ignore[misc]
    """One connection's client. ``published`` gets each PUBACK's packet id and whether the broker took the message."""

    def __init__(self, client_id: str, published: Callable[[int, bool], None], waker: Waker) -> None:
        super().__init__(
            callback_api_version=CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=mqtt.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        missing = [name for name in _SEAMS if not hasattr(mqtt.Client, name)]
        if missing:
            raise RuntimeError(f"this release of paho-mqtt has no {missing[0]}; install paho-mqtt 2.1 or 2.2")
        self._published = published
        self._packed: dict[str, bytes] = {}
        self._aliases: dict[str, int] = {}
        self._next_id = FIRST_ID
        self._poll: Any = None
        self._misc_at = 0.0
        self.alias_maximum = 0
        self.receive_maximum = LAST_ID
        self._waker = waker

    def allowed(self, properties: Any) -> None:
        """Note what the broker allows, from CONNACK's properties (absent: no aliases, any number of messages)."""
        self.alias_maximum = int(getattr(properties, "TopicAliasMaximum", 0) or 0)
        self.receive_maximum = int(getattr(properties, "ReceiveMaximum", 0) or LAST_ID)

    def post(
        self,
        topic: str,
        payload: bytes,
        content_type: str = "",
        properties: Sequence[tuple[str, str]] = (),
        *,
        retain: bool = False,
        expiry: int = 0,
    ) -> int:
        """Hand over a QoS 1 message; its packet id, or 0 if the connection is gone. For the link's thread.

        ``expiry``: seconds after which the broker may drop it; 0: never.
        """
        inner = self.socket()
        if inner is None:
            return 0
        name, alias = self._named(topic)
        header = b"".join(text_pair(key, value) for key, value in properties)
        if expiry:
            alias += bytes((_EXPIRY,)) + expiry.to_bytes(4, "big")
        header = alias + (self._content_type(content_type) if content_type else b"") + header
        number = self._next_id
        self._next_id = number + 1 if number < LAST_ID else FIRST_ID
        try:
            inner.send(publish(name, payload, number, header, retain=retain))
        except OSError:
            return 0
        return number

    def acknowledge(self, number: int) -> None:
        """Send the PUBACK of a message that came down. For the link's thread."""
        inner = self.socket()
        if inner is not None:
            with contextlib.suppress(OSError):
                inner.send(b"\x40\x02" + number.to_bytes(2, "big"))

    def turn(self, patience: float) -> bool:
        """Send what waits, wait up to ``patience`` seconds, read what came; False: the connection is gone."""
        inner = self.socket()
        if inner is None:
            return False
        if self.want_write():
            self.loop_write()
        try:
            ready = self._wait(inner, patience)
        except (OSError, ValueError):
            self._sock_close()
            return False
        if ready and not self._read(inner):
            return False
        now = time.monotonic()
        if now < self._misc_at:
            return True
        self._misc_at = now + _MISC_EVERY
        return bool(self.loop_misc() == mqtt.MQTT_ERR_SUCCESS)

    def release(self) -> None:
        """Close the socket, whatever state it is in."""
        self._sock_close()

    def _wait(self, inner: BufferedSocket, patience: float) -> bool:
        flushed = inner.flush()
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._waker.fileno(), select.POLLIN)
        self._poll.register(inner.fileno(), select.POLLIN if flushed else select.POLLIN | select.POLLOUT)
        events = dict(self._poll.poll(0 if inner.pending() else max(0.0, patience) * 1000))
        if self._waker.fileno() in events:
            self._waker.heard()
        return bool(inner.pending() or events.get(inner.fileno(), 0) & ~select.POLLOUT)

    def _read(self, inner: BufferedSocket) -> bool:
        try:
            more = inner.fill()
        except WOULD_BLOCK:
            return True
        except OSError:
            more = False
        if not more:  # paho meets the end itself, and says so to ``on_disconnect``
            return bool(self.loop_read() == mqtt.MQTT_ERR_SUCCESS and self.socket() is not None)
        while True:
            if not self._in_packet["command"]:  # between two packets
                for number, reason in inner.acknowledgements():
                    self._published(number, reason < 0x80)  # MQTT 5, 2.4: from here on failures
                if not inner.buffered:
                    return True
            if self.loop_read() != mqtt.MQTT_ERR_SUCCESS or self.socket() is None:
                return False
            if not inner.buffered:
                return True

    def _handle_pubackcomp(self, _command: Any) -> Any:
        """A PUBACK that came in two parts."""
        packet = self._in_packet["packet"]
        self._published(int.from_bytes(packet[:2], "big"), len(packet) < 3 or packet[2] < 0x80)
        return mqtt.MQTT_ERR_SUCCESS

    def _create_socket(self) -> Any:
        return BufferedSocket(super()._create_socket())

    def _named(self, topic: str) -> tuple[bytes, bytes]:
        """The topic field and, if it may have one, the alias property."""
        alias = self._aliases.get(topic)
        if alias is not None:
            return b"\0\0", _alias(alias)
        name = text_field(topic)
        if len(self._aliases) >= self.alias_maximum:
            return name, b""
        self._aliases[topic] = alias = len(self._aliases) + 1
        return name, _alias(alias)

    def _content_type(self, text: str) -> bytes:
        packed = self._packed.get(text)
        if packed is None:
            packed = self._packed[text] = bytes((_CONTENT_TYPE,)) + text_field(text)
        return packed


def _alias(number: int) -> bytes:
    return bytes((_TOPIC_ALIAS,)) + number.to_bytes(2, "big")
