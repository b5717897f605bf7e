"""Outbox → publish → PUBACK → receipt → closed, ``synchronous=FULL``: grouped (ours), one by one, and paho alone.

- ours: rows waiting in the journal; the link connects, sends all, closes them by the receipts of a responder in a process
  of its own. The time is from the connection to the last row closed durably.
- one by one: the same rows, each published, acknowledged by the broker and closed in a commit of its own (no receipts to
  wait for, which favours it).
- paho alone: the same payloads from memory, QoS 1, window 100, until the last PUBACK; it forgets everything on exit.

The last row is the processor time of this process a message, ours beside paho alone: steadier on a busy machine.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import paho.mqtt.client as mqtt
from typing_extensions import Self

from tools.bench._box import ADDRESS, Box, box, responder
from tools.bench.hub import payload
from tools.bench.rows import Row, row
from tools.servers import Mosquitto, running_mosquitto

MESSAGES = 3_000
FEW = 400
ROUNDS = 5
SPENT: dict[str, float] = {}
"""Processor time of the last run of each, in seconds."""


def grouped(broker: Mosquitto, numbers: range) -> float:
    """Messages a second through our outbox."""
    with box(broker.port) as one:
        ids = one.put_results(payload(number, ADDRESS.key) for number in numbers)
        one.link.start()
        while not one.link.online:
            time.sleep(0.001)
        began, SPENT["grouped"] = time.monotonic(), -time.process_time()
        one.wait_closed(ids, 120)
        SPENT["grouped"] += time.process_time()
        return len(ids) / (max(one.closed[name] for name in ids) - began)


def one_by_one(broker: Mosquitto, numbers: range) -> float:
    """Messages a second, each closed in a commit of its own before the next is sent."""
    with box(broker.port) as one, _Client(broker) as client:
        ids = one.put_results(payload(number, ADDRESS.key) for number in numbers)
        began = time.monotonic()
        for name in ids:
            client.publish_and_wait(one.store.outbox.payload(name))
            _close(one, name)
        return len(ids) / (time.monotonic() - began)


def _close(one: Box, name: str) -> None:
    row_ = one.store.journal.one("SELECT sha256 FROM outbox WHERE id = ?", name)
    if row_ is None:
        raise RuntimeError(f"{name} is gone")
    one.store.journal.write(lambda tx: one.store.outbox.close(tx, name, row_["sha256"], "delivered"))


def bare(broker: Mosquitto, numbers: range) -> float:
    """Messages a second of paho without any store."""
    payloads = [payload(number, ADDRESS.key) for number in numbers]
    with _Client(broker) as client:
        began, SPENT["paho alone"] = time.monotonic(), -time.process_time()
        client.publish_all(payloads)
        SPENT["paho alone"] += time.process_time()
        return len(payloads) / (time.monotonic() - began)


class _Client:
    """A stock paho client with its own thread."""

    def __init__(self, broker: Mosquitto) -> None:
        self._acknowledged = threading.Semaphore(0)
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="peer", protocol=mqtt.MQTTv5)
        self._client.max_inflight_messages_set(100)
        self._client.on_publish = lambda *_: self._acknowledged.release()
        connected = threading.Event()
        self._client.on_connect = lambda *_: connected.set()
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        connected.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish_and_wait(self, data: bytes) -> None:
        """One message, until its PUBACK."""
        self._client.publish(ADDRESS.up("result"), data, qos=1)
        self._acknowledged.acquire(timeout=10)

    def publish_all(self, payloads: list[bytes]) -> None:
        """All of them, until the last PUBACK."""
        for data in payloads:
            self._client.publish(ADDRESS.up("result"), data, qos=1)
        for _ in payloads:
            self._acknowledged.acquire(timeout=30)


def run() -> Iterator[Row]:
    """Ours beside one by one, and beside paho alone."""
    rates: dict[str, list[float]] = {"grouped": [], "one by one": [], "paho alone": []}
    spent: dict[str, list[float]] = {"grouped": [], "paho alone": []}
    options = ("max_queued_messages 0", "persistence false", "log_type none")
    with running_mosquitto(*options) as broker, responder(broker):
        number = 0
        for turn in range(ROUNDS + 1):
            measured = {}
            for name, measure, count in (
                ("grouped", grouped, MESSAGES),
                ("one by one", one_by_one, FEW),
                ("paho alone", bare, MESSAGES),
            ):
                measured[name] = measure(broker, range(number, number + count))
                number += count
            if turn:  # the first round warms up
                for name, rate in measured.items():
                    rates[name].append(rate)
                for name, seconds in SPENT.items():
                    spent[name].append(seconds / MESSAGES * 1e6)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ours = medians["grouped"]
    settings: dict[str, Any] = {"better": "higher", "n": ROUNDS}
    yield row("outbox, grouped", "1/s", ours, medians["one by one"], peer_name="one by one", limit=4.0, **settings)
    yield row("outbox, grouped", "1/s", ours, medians["paho alone"], peer_name="paho alone", limit=0.5, **settings)
    ours, peer = statistics.median(spent["grouped"]), statistics.median(spent["paho alone"])
    yield row("outbox, grouped, processor time", "µs", ours, peer, peer_name="paho alone", n=ROUNDS)
