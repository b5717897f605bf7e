"""An attacker's MQTT client: connects as said, keeps what it hears, says what became of each try."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv5
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from typing_extensions import Self

Heard = tuple[str, bytes, tuple[tuple[str, str], ...], str]
"""Topic, payload, user properties, content type."""


def context(
    authority: Path, chain: Path | None = None, key: Path | None = None, password: str | None = None
) -> ssl.SSLContext:
    """TLS as a client of this authority, with this certificate."""
    made = ssl.create_default_context(cafile=str(authority))
    if chain is not None:
        made.load_cert_chain(chain, key, password)
    return made


class Intruder:
    """A connection. ``problem`` is why there is none."""

    def __init__(
        self,
        port: int,
        tls: ssl.SSLContext | None,
        client_id: str = "intruder",
        patience: float = 3.0,
        will: str = "",
    ) -> None:
        """``will``: the topic of a last will."""
        self.heard: list[Heard] = []
        self.problem = "no answer"
        self._subscribed = threading.Event()
        self._answered = threading.Event()
        self._published: dict[int, str] = {}
        client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5, reconnect_on_failure=False)
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_message, client.on_publish = self._message, self._acknowledged
        client.on_subscribe = lambda *_: self._subscribed.set()
        if will:
            client.will_set(will, b"{}", qos=1)
        if tls is not None:
            client.tls_set_context(tls)
        self._client = client
        try:
            client.connect("localhost", port)
            client.loop_start()
            self._answered.wait(patience)
        except OSError as error:
            self.problem = str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def vanish(self) -> None:
        """Break the connection off, so that the broker publishes the will."""
        inner = self._client.socket()
        if inner is not None:
            inner.shutdown(socket.SHUT_RDWR)
        time.sleep(1.0)

    def listen(self, *filters: str) -> None:
        """Subscribe."""
        self._subscribed.clear()
        self._client.subscribe([(one, 1) for one in filters])
        self._subscribed.wait(3)

    def say(
        self, topic: str, payload: bytes, properties: Sequence[tuple[str, str]] = (), content_type: str = ""
    ) -> bool:
        """Publish and wait for the broker's word; whether it took the message."""
        header = Properties(PacketTypes.PUBLISH)
        if properties:
            header.UserProperty = list(properties)
        if content_type:
            header.ContentType = content_type
        info = self._client.publish(topic, payload, qos=1, properties=header)
        deadline = time.monotonic() + 3
        while info.mid not in self._published and time.monotonic() < deadline and self._client.is_connected():
            time.sleep(0.01)
        return self._published.get(info.mid) == "Success"

    def _connected(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.problem = str(reason) if reason.is_failure else ""
        self._answered.set()

    def _disconnected(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.problem = self.problem or str(reason)
        self._answered.set()

    def _message(self, _client: Any, _data: Any, message: Any) -> None:
        properties = tuple(getattr(message.properties, "UserProperty", ()))
        said = str(getattr(message.properties, "ContentType", ""))
        self.heard.append((message.topic, bytes(message.payload), properties, said))

    def _acknowledged(self, _client: Any, _data: Any, number: int, reason: Any, _properties: Any) -> None:
        self._published[number] = str(reason)
