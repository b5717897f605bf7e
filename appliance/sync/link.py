"""The MQTT 5 session with the broker: one thread that connects, paces and reconnects; the one place that talks MQTT here.

What this module keeps true: nothing is published before CONNACK; a new paho client is made for every connection, so that
nothing ever waits in paho's memory that the outbox could not send again; what the hub says is acknowledged to the broker
only after it is durable in the inbox (``manual_ack``). Back-off from ``reconnect_from`` to ``reconnect_to`` seconds, doubled
and jittered, by the monotonic clock; it starts over once a connection has lived for a while.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import structlog

from appliance.config import LinkConfig
from appliance.protocol.messages import Status, encode
from appliance.protocol.topics import Address, TopicError, parse
from appliance.records import Moment
from appliance.sync.certificates import tls_context
from appliance.sync.uplink import Uplink

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

_log = structlog.get_logger(__name__)

SESSION_EXPIRY = 30 * 24 * 3600
"""Seconds for which the broker keeps what the hub says while the box is offline."""

WILL_DELAY = 15
STATUS_EVERY = 60.0
_LIVED = 5.0
_NO_TIME = Moment(boot_id="", monotonic_ns=0, wall="1970-01-01T00:00:00.000Z")


class Link:
    """Keeps the connection, feeds the uplink, hands what comes down to ``received``.

    ``received(leaf, payload)`` must return only when what it got is durable; an exception leaves the message with the
    broker, which delivers it again. ``status`` gives the present status message, ``now`` the box's time.
    """

    def __init__(
        self,
        config: LinkConfig,
        address: Address,
        uplink: Uplink,
        received: Callable[[str, bytes], None],
        status: Callable[[bool], Status],
        now: Callable[[], Moment] = lambda: _NO_TIME,
    ) -> None:
        self._config = config
        self._now = now
        self._address = address
        self._uplink = uplink
        self._received = received
        self._status = status
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._down = threading.Event()
        self._up = threading.Event()
        self._client: Client | None = None
        self._tokens: dict[int, int] = {}
        self._headers: dict[str, Any] = {}
        self._acknowledged: SimpleQueue[int] = SimpleQueue()
        self._arrived: SimpleQueue[tuple[Client, MQTTMessage] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="link", daemon=True)
        self._taker = threading.Thread(target=self._take, name="link-taker", daemon=True)
        self.counts: Counter[str] = Counter()
        self.since = time.monotonic()
        self.problem = ""
        self.progress = 0

    @property
    def online(self) -> bool:
        """Whether the broker has accepted us and the connection stands."""
        return self._up.is_set() and not self._down.is_set()

    def start(self) -> None:
        """Start the threads."""
        self._thread.start()
        self._taker.start()

    def stop(self) -> None:
        """Say goodbye if connected, then end the thread."""
        self._stop.set()
        self._down.set()
        self._wake.set()
        self._arrived.put(None)
        for thread in (self._thread, self._taker):
            if thread.is_alive():
                thread.join(timeout=10)

    def wake(self) -> None:
        """Something new waits for the link."""
        self._uplink.changed()
        self._wake.set()

    def publish(
        self, leaf: str, payload: bytes, token: int, content_type: str, properties: Sequence[tuple[str, str]]
    ) -> bool:
        """See ``uplink.Wire``."""
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        client = self._client
        if client is None or self._down.is_set():
            return False
        header = None if properties else self._headers.get(content_type)
        if header is None:
            header = Properties(PacketTypes.PUBLISH)
            header.ContentType = content_type
            if properties:
                header.UserProperty = list(properties)
            else:
                self._headers[content_type] = header
        topic = self._address.up(leaf)  # type: ignore[arg-type]  # checked by the topic itself
        info = client.publish(topic, payload, qos=1, properties=header)
        if info.rc != 0:
            return False
        self._tokens[info.mid] = token
        return True

    def reply(self, payload: bytes) -> None:
        """Publish a receipt for what came down; lost with the connection, and then asked for again."""
        client = self._client
        if client is not None and not self._down.is_set():
            client.publish(self._address.up("receipt"), payload, qos=1)

    def _serve(self) -> None:
        pause = self._config.reconnect_from
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._connection()
            except Exception as error:  # noqa: BLE001 - the edge of this task: whatever ends a connection, the next one is tried
                self.counts["failed"] += 1
                self.problem = str(error) or type(error).__name__
                _log.info("link failed", broker=f"{self._config.host}:{self._config.port}", error=self.problem)
            lived = time.monotonic() - began > _LIVED
            pause = self._config.reconnect_from if lived else min(pause * 2, self._config.reconnect_to)
            self._stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret

    def _connection(self) -> None:
        self._down.clear()
        self._up.clear()
        self._tokens.clear()
        self._acknowledged = SimpleQueue()
        client = self._make_client()
        client.connect(
            self._config.host,
            self._config.port,
            keepalive=self._config.keep_alive,
            clean_start=False,
            properties=_connect_properties(self._config.in_flight),
        )
        client.loop_start()
        try:
            self._run(client)
        finally:
            self._client = None
            self._uplink.disconnected()
            if self._stop.is_set() and self._up.is_set():
                with contextlib.suppress(ValueError, OSError):
                    client.publish(self._address.up("status"), encode(self._status(False)), qos=1, retain=True)
                    time.sleep(0.05)
                client.disconnect()
            client.loop_stop()
            if self._up.is_set():
                self.since = time.monotonic()
            self._up.clear()

    def _run(self, client: Client) -> None:
        deadline = time.monotonic() + 20
        while not self._up.wait(0.05):
            if self._down.is_set() or self._stop.is_set():
                return
            if time.monotonic() > deadline:
                raise TimeoutError("the broker did not answer CONNECT within 20 s")
        self.since, self.problem = time.monotonic(), ""
        self.counts["connected"] += 1
        self._client = client
        self._uplink.connected(self)
        next_status = 0.0
        while not (self._down.is_set() or self._stop.is_set()):
            now = time.monotonic()
            if now >= next_status:
                next_status = now + STATUS_EVERY
                client.publish(self._address.up("status"), encode(self._status(True)), qos=1, retain=True)
            self._wake.clear()
            self._drain_acknowledged()
            pause = self._uplink.step()
            self.progress += 1
            self._wake.wait(pause)

    def _make_client(self) -> Client:
        from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv5
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        config = self._config
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"bedside-{self._address.site}-{self._address.device}",
            protocol=MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = 10
        client.max_inflight_messages_set(0)  # the uplink has its own window
        if config.username:
            password = Path(config.password_file).read_text().strip() if config.password_file else None
            client.username_pw_set(config.username, password)
        if config.tls:
            client.tls_set_context(tls_context(config, self._now))
        will = Properties(PacketTypes.WILLMESSAGE)
        will.WillDelayInterval = WILL_DELAY
        client.will_set(self._address.up("status"), encode(self._status(False)), qos=1, retain=True, properties=will)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.problem = f"the broker refused: {reason}"
            self.counts["refused"] += 1
            self._down.set()
            return
        client.subscribe([(self._address.down(leaf), _one()) for leaf in ("receipt", "review", "command")])
        self._up.set()

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure and not self.problem:
            self.problem = f"connection lost: {reason}"
        self._down.set()
        self._wake.set()

    def _on_publish(self, _client: Client, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:
        # paho holds a lock here that publish needs: nothing may be waited for
        self._acknowledged.put(mid)
        self._wake.set()

    def _on_message(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        self._arrived.put((client, message))

    def _drain_acknowledged(self) -> None:
        while not self._acknowledged.empty():
            token = self._tokens.pop(self._acknowledged.get(), None)
            if token is not None:
                self._uplink.acknowledged(token)

    def _take(self) -> None:
        """Take what came down, one after another, and acknowledge it to the broker once it is durable."""
        while (item := self._arrived.get()) is not None:
            client, message = item
            try:
                _, _, leaf = parse(message.topic)
                self._received(leaf, bytes(message.payload))
            except TopicError:
                self.counts["foreign"] += 1
            except Exception:  # noqa: BLE001 - the edge of this task: not durable, so not acknowledged, so delivered again
                self.counts["not-taken"] += 1
                _log.exception("a message from the hub could not be taken")
                continue
            client.ack(message.mid, message.qos)
            self._wake.set()


def _one() -> Any:
    from paho.mqtt.subscribeoptions import SubscribeOptions

    return SubscribeOptions(qos=1)


def _connect_properties(in_flight: int) -> Any:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = SESSION_EXPIRY
    properties.ReceiveMaximum = max(in_flight, 20)
    return properties
