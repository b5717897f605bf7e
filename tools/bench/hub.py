"""Receipts per second of one hub worker on SQLite and on PostgreSQL, beside a subscriber that only counts.

The broker holds a backlog of results (a queued session); the time is that of draining it: for ours each message is
checked, stored in one durable transaction with its batch, receipted and acknowledged; the peer (paho, QoS 1, stock loop)
acknowledges and counts. The rows differ in how many boxes the backlog comes from: receipts to one box share a message.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import sqlalchemy
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from appliance.protocol import topics
from appliance.protocol.messages import CapturePart, FindingPart, ModelPart, Result, encode, make_id
from appliance.records import ADVICE_NOT_DIAGNOSIS, Modality, Moment, Triage, capture_id
from hub import tables
from hub.blobs import BlobStore
from hub.config import BrokerConfig, IngestConfig
from hub.database import Database
from hub.ingest import Worker, shared_filters
from hub.receive import Receiver
from tools.bench.rows import Row, row
from tools.servers import MissingServer, Mosquitto, running_mosquitto, running_postgresql

MESSAGES = 4_000
ROUNDS = 5
LIMIT = 0.25
DEVICES = (1000, 100, 1)
"""How many boxes the backlog comes from."""


def payload(number: int, device: str) -> bytes:
    """A result as a box sends it (about 1.2 kB): nine findings, a model, no overlay."""
    sha256 = f"{number:064x}"
    capture = capture_id(device, sha256)
    findings = [
        FindingPart(id=f"finding-{n}", label=f"Finding {n}", probability=0.1 * n, positive=n > 5, threshold=0.5)
        for n in range(9)
    ]
    message = Result(
        id=make_id("result", device, capture, "0"),
        sequence=number,
        status="read",
        triage=Triage.URGENT,
        advice=ADVICE_NOT_DIAGNOSIS,
        capture=CapturePart(
            id=capture,
            sha256=sha256,
            size=15_000_000,
            modality=Modality.CHEST_XRAY,
            media_type="application/dicom",
            received=Moment(boot_id="boot", monotonic_ns=number, wall="2026-01-01T08:00:00Z", uncertainty_s=1.0),
        ),
        findings=findings,
        model=ModelPart(
            bundle="chest-xray", version="1", sha256="a" * 64, engine="onnxruntime", provider="CPUExecutionProvider"
        ),
    )
    return encode(message)


def _session(broker: Mosquitto, client_id: str, *, manual: bool = False) -> mqtt.Client:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5, manual_ack=manual)
    client.max_inflight_messages_set(1000)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    client.connect(broker.host, broker.port, clean_start=False, properties=properties)
    return client


def _leave_subscribed(broker: Mosquitto, client_id: str) -> None:
    """Make a session that the broker queues for."""
    client = _session(broker, client_id)
    done = threading.Event()
    client.on_subscribe = lambda *_: done.set()
    client.on_connect = lambda c, *_: c.subscribe([(name, SubscribeOptions(qos=1)) for name in shared_filters("bench")])
    client.loop_start()
    done.wait(10)
    client.disconnect()
    client.loop_stop()


def _publish(broker: Mosquitto, first: int, devices: int) -> None:
    client = _session(broker, "publisher")
    client.loop_start()
    last = None
    for number in range(first, first + MESSAGES):
        device = f"site/box-{number % devices}"
        last = client.publish(f"{topics.ROOT}/{device}/up/result", payload(number, device), qos=1)
    if last is not None:
        last.wait_for_publish(60)
    while client.want_write():
        time.sleep(0.01)
    client.disconnect()
    client.loop_stop()


def count(broker: Mosquitto) -> float:
    """Messages per second of a subscriber that acknowledges and counts."""
    seen = [0]
    started = [0.0]
    done = threading.Event()

    def on_message(*_: Any) -> None:
        if not seen[0]:
            started[0] = time.perf_counter()
        seen[0] += 1
        if seen[0] == MESSAGES:
            done.set()

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="drain", protocol=mqtt.MQTTv5)
    client.on_message = on_message
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    client.connect(broker.host, broker.port, clean_start=False, properties=properties)
    client.loop_start()
    if not done.wait(120):
        raise RuntimeError(f"the counting subscriber saw {seen[0]} of {MESSAGES} messages")
    seconds = time.perf_counter() - started[0]
    client.disconnect()
    client.loop_stop()
    return MESSAGES / seconds


class _Timed(Receiver):
    """Notes when the first batch came and when the last was answered."""

    first = 0.0
    last = 0.0

    def handle(self, batch: Any) -> Any:
        self.first = self.first or time.perf_counter()
        published = super().handle(batch)
        self.last = time.perf_counter()
        return published


def ingest(broker: Mosquitto, database: Database, blobs: BlobStore) -> float:
    """Receipted messages per second of one worker."""
    receiver = _Timed(database, blobs)
    config = BrokerConfig(host=broker.host, port=broker.port)
    worker = Worker(config, IngestConfig(share="bench"), receiver, client_id="drain", filters=shared_filters("bench"))
    thread = threading.Thread(target=worker.run)
    thread.start()
    deadline = time.monotonic() + 120
    while receiver.counts.get("stored", 0) < MESSAGES and time.monotonic() < deadline:
        time.sleep(0.02)
    worker.stop()
    thread.join()
    if receiver.counts.get("stored") != MESSAGES:
        raise RuntimeError(f"stored {receiver.counts} of {MESSAGES} messages")
    return MESSAGES / (receiver.last - receiver.first)


@contextlib.contextmanager
def _databases(folder: Path) -> Iterator[dict[str, Database]]:
    with contextlib.ExitStack() as stack:
        found = {"SQLite": Database(f"sqlite:///{folder}/hub.sqlite")}
        try:
            server = stack.enter_context(running_postgresql())
            found["PostgreSQL"] = Database(server.url)
        except MissingServer as error:
            print(f"hub: PostgreSQL is left out: {error}", file=sys.stderr)
        for database in found.values():
            database.migrate()
        yield found
        for database in found.values():
            database.close()


def run() -> Iterator[Row]:
    """The rows: SQLite and PostgreSQL, a backlog of a thousand boxes, of a hundred and of one."""
    # The worker's log would stand between the rows.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    options = ("max_queued_messages 0", "persistence false", "log_type none")
    with tempfile.TemporaryDirectory() as text, running_mosquitto(*options) as broker:
        folder = Path(text)
        blobs = BlobStore(folder / "blobs")
        blobs.open()
        number = 0
        with _databases(folder) as databases:
            for devices in DEVICES:
                rates: dict[str, list[float]] = {"count": [], **{name: [] for name in databases}}
                for turn in range(ROUNDS + 1):
                    for name, found in rates.items():
                        number += MESSAGES
                        _leave_subscribed(broker, "drain")
                        _publish(broker, number, devices)
                        rate = count(broker) if name == "count" else ingest(broker, databases[name], blobs)
                        if turn:  # the first round warms up
                            found.append(rate)
                peer = statistics.median(rates["count"])
                for name in databases:
                    ours = statistics.median(rates[name])
                    of = f"hub receipts/s, {name}, {devices} box{'es' if devices > 1 else ''}"
                    settings: dict[str, Any] = {"peer_name": "counting subscriber", "limit": LIMIT, "n": ROUNDS}
                    yield row(of, "1/s", ours, peer, better="higher", **settings)
            _check(databases, number)


def _check(databases: dict[str, Database], sent: int) -> None:
    """No figure for messages that were lost: each database has what it receipted."""
    for name, database in databases.items():
        with database.read() as connection:
            query = sqlalchemy.select(sqlalchemy.func.count()).select_from(tables.result)
            rows = connection.execute(query).scalar_one()
        expected = len(DEVICES) * (ROUNDS + 1) * MESSAGES
        if rows != expected:
            raise RuntimeError(f"{name} holds {rows} results of {expected} ({sent} were sent in all)")
