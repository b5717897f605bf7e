"""The MQTT worker: reads through a shared subscription, hands batches to the ``Receiver``, confirms after its commit.

What this module keeps true: a message is acknowledged to the broker (PUBACK) only after it was committed, and its receipt
is published before that; a message that was not committed is delivered again by the broker, to this worker or another;
nothing from an earlier connection is acknowledged on a later one. While the database is away the session stays alive, the
batch is kept and tried again, and the broker holds back the rest (receive maximum).

One thread does everything: reading, the transaction, writing. That leaves no queue between threads to lose or to lock.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from appliance.protocol import topics
from hub.config import BrokerConfig, IngestConfig
from hub.receive import Published, Receiver, StoreUnavailable
from hub.session import Delivered, Session
from hub.trust import Voice

_LOG = structlog.get_logger("hub.ingest")
_RETRY_S = 0.5
_CONNECT_S = 10.0

Tick = Callable[[], Sequence[Published]]


def shared_filters(share: str) -> list[str]:
    """What a worker subscribes to, as a member of the group ``share``."""
    return [
        topics.every_up(leaf, share) for leaf in ("result", "blob", "receipt", "telemetry", "renewal", "checkpoint")
    ]


def status_filters() -> list[str]:
    """Retained states are not delivered to shared subscriptions (MQTT 5, 4.8.2): one session reads them for itself."""
    return [topics.every_up("status")]


class Worker:
    """One MQTT session and its receiver. ``run`` blocks until ``stop``; the rest may be called from other threads."""

    def __init__(
        self,
        broker: BrokerConfig,
        ingest: IngestConfig,
        receiver: Receiver,
        *,
        client_id: str,
        filters: Sequence[str],
        tick: Tick | None = None,
        tick_every: float = 1.0,
        voice: Voice | None = None,
    ) -> None:
        """``tick`` is called every ``tick_every`` seconds while connected; what it returns is published.

        ``voice`` signs what is published.
        """
        self._voice = voice
        self.connected = threading.Event()
        self.receiver = receiver
        self._broker = broker
        self._ingest = ingest
        self._filters = [voice.private(one) if voice is not None else one for one in filters]
        self._tick = tick
        self._tick_every = tick_every
        self._stopping = threading.Event()
        self._nudged = threading.Event()
        self._pending: list[Delivered] = []
        self._since = 0.0
        self._retry_at = 0.0
        self._client_id = client_id
        self._client = self._make_client(client_id)

    def run(self) -> None:
        """Connect, work, connect again, until ``stop``."""
        pause = self._broker.reconnect_from
        while not self._stopping.is_set():
            if self._connect():
                pause = self._broker.reconnect_from
                self._work()
            self._pending.clear()
            self.connected.clear()
            if self._stopping.wait(pause * random.uniform(0.5, 1.0)):  # noqa: S311
                break
            pause = min(self._broker.reconnect_to, pause * 2)

    def stop(self) -> None:
        """Make ``run`` end soon; what is not committed stays with the broker."""
        self._stopping.set()

    def nudge(self) -> None:
        """Make ``tick`` be called soon: there is something new to publish."""
        self._nudged.set()

    def _make_client(self, client_id: str) -> Session:
        client = Session(client_id, self._take)
        client.max_inflight_messages_set(1000)
        client.on_connect = self._on_connect
        broker = self._broker
        if broker.tls:
            client.tls_set_context(_tls_context(broker))
        if broker.username:
            password = Path(broker.password_file).read_text(encoding="utf-8").strip() if broker.password_file else None
            client.username_pw_set(broker.username, password)
        return client

    def _connect(self) -> bool:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = self._broker.session_expiry
        properties.ReceiveMaximum = self._ingest.in_flight
        try:
            self._client.connect(
                self._broker.host,
                self._broker.port,
                keepalive=self._broker.keep_alive,
                clean_start=False,
                properties=properties,
            )
            deadline = time.monotonic() + _CONNECT_S
            while not self.connected.is_set() and time.monotonic() < deadline and not self._stopping.is_set():
                if not self._client.turn(0.1):
                    return False
        except (OSError, ValueError) as error:
            _LOG.warning("broker can't be reached", host=self._broker.host, port=self._broker.port, error=str(error))
            return False
        return self.connected.is_set()

    def _on_connect(self, client: Session, _: Any, __: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            _LOG.warning("broker refused the session", reason=str(reason))
            return
        client.begin(properties)
        client.subscribe([(name, SubscribeOptions(qos=1)) for name in self._filters])
        self._pending.clear()
        self.connected.set()
        _LOG.info("connected", session=self._client_id, host=self._broker.host, port=self._broker.port)

    def _take(self, delivered: Delivered) -> None:
        if not self._pending:
            self._since = time.monotonic()
        self._pending.append(delivered)

    def _work(self) -> None:
        next_tick = 0.0
        while not self._stopping.is_set():
            if not self._client.turn(self._patience(next_tick)):
                _LOG.warning("connection to the broker lost", session=self._client_id)
                return
            self._read_more()
            now = time.monotonic()
            if self._pending and now >= self._retry_at and self._is_ripe(now):
                self._flush()
            if self._tick is not None and (now >= next_tick or self._nudged.is_set()):
                self._nudged.clear()
                next_tick = now + self._tick_every
                self._publish(self._ticked())
        self._client.disconnect()
        self._client.turn(0.0)

    def _patience(self, next_tick: float) -> float:
        """How long to wait for the socket, in seconds."""
        now = time.monotonic()
        patience = 0.2
        if self._tick is not None:
            patience = min(patience, next_tick - now, 0.05)
        if self._pending:
            patience = min(patience, max(self._since + self._ingest.wait / 1000, self._retry_at) - now)
        return max(0.0, patience)

    def _read_more(self) -> None:
        """Read on without asking the operating system in between, as long as whole messages come."""
        before = -1
        while before < len(self._pending) < self._ingest.batch:
            before = len(self._pending)
            if self._client.loop_read() != mqtt.MQTT_ERR_SUCCESS:
                return  # the next ``turn`` says so

    def _is_ripe(self, now: float) -> bool:
        return len(self._pending) >= self._ingest.batch or now >= self._since + self._ingest.wait / 1000

    def _flush(self) -> None:
        batch = self._pending[: self._ingest.batch]
        try:
            replies = self.receiver.handle([delivered.message for delivered in batch])
        except StoreUnavailable as error:
            self._retry_at = time.monotonic() + _RETRY_S
            _LOG.error("batch kept, tried again soon", messages=len(batch), error=str(error))
            return
        self._publish(replies)
        for delivered in batch:
            if delivered.mid:
                self._client.acknowledge(delivered.mid)
        del self._pending[: len(batch)]
        self._since = time.monotonic()

    def _publish(self, published: Sequence[Published]) -> None:
        for topic, payload in published:
            signed = self._voice.properties(topic, payload) if self._voice is not None else ()
            self._client.post(topic, payload, signed)

    def _ticked(self) -> Sequence[Published]:
        if self._tick is None:
            return ()
        try:
            return self._tick()
        except StoreUnavailable as error:
            _LOG.error("database away", error=str(error))
            return ()


def _tls_context(broker: BrokerConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=broker.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if broker.certificate_file:
        context.load_cert_chain(broker.certificate_file, broker.key_file)
    return context
