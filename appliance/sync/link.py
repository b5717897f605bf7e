"""The MQTT 5 session with the broker: one thread that connects, paces and reconnects; the one place that talks MQTT here.

What this module keeps true: nothing is published before CONNACK; a new session is made for every connection, so that nothing
ever waits in its memory that the outbox could not send again; what the hub says is acknowledged to the broker only after it
is durable in the inbox. One thread reads and writes the socket, another waits for the disk. Back-off from ``reconnect_from``
to ``reconnect_to`` seconds, doubled and jittered, by the monotonic clock; it starts over once a connection has lived for a
while.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from appliance.config import LinkConfig
from appliance.protocol.messages import Status, encode
from appliance.protocol.topics import DOWN, UP, Address, TopicError, parse
from appliance.records import Moment
from appliance.store.credentials import Identity, reached, why_not
from appliance.sync.certificates import tls_context
from appliance.sync.signing import PROOF_BYTES, Signatures
from appliance.sync.uplink import Uplink

if TYPE_CHECKING:
    from paho.mqtt.client import MQTTMessage

    from appliance.sync.session import Session, Waker

_log = structlog.get_logger(__name__)
T = TypeVar("T")

SESSION_EXPIRY = 30 * 24 * 3600
"""Seconds for which the broker keeps what the hub says while the box is offline."""

WILL_DELAY = 15
STATUS_EVERY = 60.0
TELEMETRY_EXPIRY = 3600
"""Seconds after which telemetry that nobody took is worth nothing; never on a clinical message."""
_LIVED = 5.0
_NO_TIME = Moment(boot_id="", monotonic_ns=0, wall="1970-01-01T00:00:00.000Z")


class Link:
    """Keeps the connection, feeds the uplink, hands what comes down to ``received``.

    ``received(leaf, payload)`` must return only when what it got is durable; an exception leaves the message with the
    broker, which delivers it again. ``status`` gives the present status message, ``now`` the box's time, ``identity`` who
    this box is: without one there is a link only within this machine.
    """

    def __init__(
        self,
        config: LinkConfig,
        address: Address,
        uplink: Uplink,
        received: Callable[[str, bytes], None],
        status: Callable[[bool], Status],
        now: Callable[[], Moment] = lambda: _NO_TIME,
        identity: Callable[[], Identity | None] = lambda: None,
    ) -> None:
        self._config = config
        self._identity = identity
        self._signatures = Signatures(None)
        self._now = now
        self._address = address
        self._uplink = uplink
        self._received = received
        self._status = status
        self._stop = threading.Event()
        self._down = threading.Event()
        self._up = threading.Event()
        self._waker: Waker | None = None
        self._session: Session | None = None
        self._tokens: dict[int, int] = {}
        self._topics: dict[str, str] = {leaf: address.up(leaf) for leaf in UP}
        self._taken: SimpleQueue[tuple[Session, int]] = SimpleQueue()
        self._replies: SimpleQueue[tuple[str, bytes]] = SimpleQueue()
        self._arrived: SimpleQueue[tuple[Session, MQTTMessage] | None] = SimpleQueue()
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
        from appliance.sync.session import Waker

        self._waker = Waker()
        self._thread.start()
        self._taker.start()

    def stop(self) -> None:
        """Say goodbye if connected, then end the thread."""
        self._stop.set()
        self._ring()
        self._arrived.put(None)
        for thread in (self._thread, self._taker):
            if thread.is_alive():
                thread.join(timeout=10)
        if self._waker is not None and not self._thread.is_alive():
            self._waker.close()

    def wake(self) -> None:
        """Something new waits for the link."""
        self._uplink.changed()
        self._ring()

    def publish(
        self, leaf: str, payload: bytes, token: int, content_type: str, properties: Sequence[tuple[str, str]]
    ) -> bool:
        """See ``uplink.Wire``."""
        session = self._session
        number = self._post(session, leaf, payload, content_type, properties) if session is not None else 0
        if not number:
            self._down.set()  # the socket is gone, or has taken nothing for long: the next connection goes on
            return False
        self._tokens[number] = token
        return True

    def reply(self, payload: bytes) -> None:
        """Publish a receipt for what came down; lost with the connection, and then asked for again."""
        self.say("receipt", payload)

    def say(self, leaf: str, payload: bytes) -> None:
        """Publish what is lost with the connection, and then said again by whoever wanted it said."""
        self._replies.put((leaf, payload))
        self._ring()

    def _post(
        self,
        session: Session,
        leaf: str,
        payload: bytes,
        content_type: str = "",
        properties: Sequence[tuple[str, str]] = (),
        *,
        retain: bool = False,
    ) -> int:
        """Hand a message over, signed; see ``Session.post``."""
        topic = self._topics[leaf]
        signed = self._signatures.added(topic, payload, content_type, properties)
        expiry = TELEMETRY_EXPIRY if leaf == "telemetry" else 0
        return session.post(topic, payload, content_type, signed, retain=retain, expiry=expiry)

    def _ring(self) -> None:
        if self._waker is not None:
            self._waker.ring()

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
        self._taken, self._replies = SimpleQueue(), SimpleQueue()
        session = self._make_session()
        try:
            session.connect(
                self._config.host,
                self._config.port,
                keepalive=self._config.keep_alive,
                clean_start=False,
                properties=_connect_properties(self._config.in_flight),
            )
            self._run(session)
        finally:
            self._session = None
            self._uplink.disconnected()
            if self._stop.is_set() and self._up.is_set() and not self._down.is_set():
                self._post(session, "status", encode(self._status(False)), retain=True)
                session.disconnect()
                session.turn(0.05)
            session.release()
            if self._up.is_set():
                self.since = time.monotonic()
            self._up.clear()

    def _run(self, session: Session) -> None:
        deadline = time.monotonic() + 20
        while not self._up.is_set():
            if not session.turn(0.05) or self._down.is_set() or self._stop.is_set():
                return
            if time.monotonic() > deadline:
                raise TimeoutError("the broker did not answer CONNECT within 20 s")
        self.since, self.problem = time.monotonic(), ""
        self.counts["connected"] += 1
        self._session = session
        self._uplink.connected(self, session.receive_maximum)
        next_status = 0.0
        while not (self._down.is_set() or self._stop.is_set()):
            now = time.monotonic()
            if now >= next_status:
                next_status = now + STATUS_EVERY
                self._post(session, "status", encode(self._status(True)), retain=True)
            self._answer(session)
            pause = self._uplink.step()
            self.progress += 1
            if not session.turn(pause):
                return

    def _answer(self, session: Session) -> None:
        """Acknowledge to the broker what is durable, and send the receipts for it."""
        for leaf, payload in _drained(self._replies):
            self._post(session, leaf, payload)
        for of, number in _drained(self._taken):
            if of is session:
                session.acknowledge(number)

    def _make_session(self) -> Session:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        from appliance.sync.session import Session, Waker

        identity = self._identity()
        if problem := why_not(self._config, identity):
            raise ConnectionRefusedError(problem)
        config, self._signatures = reached(self._config, identity), Signatures(identity)
        self._uplink.proof_bytes = PROOF_BYTES if identity is not None else 0
        self._waker = self._waker or Waker()
        name = f"bedside-{self._address.site}-{self._address.device}"
        client = Session(name, self._on_published, self._waker)
        client.connect_timeout = 10
        if config.username:
            password = Path(config.password_file).read_text().strip() if config.password_file else None
            client.username_pw_set(config.username, password)
        if config.tls:
            client.tls_set_context(tls_context(config, self._now, identity.password if identity else ""))
        will = Properties(PacketTypes.WILLMESSAGE)
        will.WillDelayInterval = WILL_DELAY
        last = encode(self._status(False))
        if signed := self._signatures.added(self._topics["status"], last):
            will.UserProperty = list(signed)
        client.will_set(self._topics["status"], last, qos=1, retain=True, properties=will)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_connect(self, client: Session, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.problem = f"the broker refused: {reason}"
            self.counts["refused"] += 1
            self._down.set()
            return
        client.allowed(properties)
        client.subscribe([(self._address.down(leaf), _one()) for leaf in DOWN])
        self._up.set()

    def _on_disconnect(self, _client: Session, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure and not self.problem:
            self.problem = f"connection lost: {reason}"
        self._down.set()

    def _on_published(self, number: int, taken: bool) -> None:
        token = self._tokens.pop(number, None)
        self.counts["not-published"] += not taken
        if token is not None:
            self._uplink.acknowledged(token)

    def _on_message(self, client: Session, _data: Any, message: MQTTMessage) -> None:
        self._arrived.put((client, message))

    def _take(self) -> None:
        """Take what came down, one after another, and have it acknowledged to the broker once it is durable."""
        while (item := self._arrived.get()) is not None:
            session, message = item
            try:
                _, _, leaf = parse(message.topic)
                if self._is_believed(message):
                    self._received(leaf, bytes(message.payload))
            except TopicError:
                self.counts["foreign"] += 1
            except Exception:  # noqa: BLE001 - the edge of this task: not durable, so not acknowledged, so delivered again
                self.counts["not-taken"] += 1
                _log.exception("a message from the hub could not be taken")
                continue
            if message.qos:
                self._taken.put((session, message.mid))
            self._ring()

    def _is_believed(self, message: MQTTMessage) -> bool:
        """Whether the hub said it; what it did not say is counted, dropped and acknowledged, so that it is gone."""
        properties = getattr(message.properties, "UserProperty", ())
        if self._signatures.is_believed(message.topic, bytes(message.payload), properties):
            return True
        self.counts["not-believed"] += 1
        _log.warning("a message that the hub did not sign was dropped", topic=message.topic, size=len(message.payload))
        return False


def _drained(queue: SimpleQueue[T]) -> Iterator[T]:
    """What is in the queue now; this thread alone takes from it."""
    while not queue.empty():
        yield queue.get_nowait()


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
