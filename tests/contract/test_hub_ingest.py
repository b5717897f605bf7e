"""Claims about the hub's MQTT side, with a real broker: acknowledged after the commit, shared, sent again until confirmed."""

from __future__ import annotations

import contextlib
import threading
import time

import msgspec
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from sqlalchemy import func, select

from appliance.protocol import chunks
from appliance.protocol.messages import (
    Command,
    Receipt,
    ReceiptItem,
    ReviewMessage,
    Status,
    decode,
    encode,
    make_id,
    sha256,
)
from hub import outbox, tables
from hub.blobs import BlobStore
from hub.config import BrokerConfig, EscalationConfig, IngestConfig, OutboxConfig
from hub.database import Database
from hub.downlink import Downlink
from hub.ingest import Worker, shared_filters, status_filters
from hub.receive import Receiver
from tests.wire import BOX, pieces, result


class Box:
    """A box on the wire: publishes, collects what comes down."""

    def __init__(self, broker, address=BOX):
        self.address = address
        self.received = []
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=address.key, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(f"bedside/v1/{address.key}/down/+", qos=1)
        self.client.on_message = lambda _, __, message: self.received.append((message.topic, message.payload))
        self.client.max_inflight_messages_set(100)
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()

    def send(self, leaf, payload, properties=None, retain=False):
        topic = f"bedside/v1/{self.address.key}/up/{leaf}"
        self.client.publish(topic, payload, qos=1, properties=properties, retain=retain)

    def send_chunk(self, chunk):
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = chunks.properties(chunk)
        properties.ContentType = chunk.media_type
        self.send("blob", chunk.data, properties)

    def items(self):
        return [
            item
            for topic, payload in list(self.received)
            if topic.endswith("/receipt")
            for item in decode(payload, Receipt).items
        ]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@contextlib.contextmanager
def working(broker, receiver, client_id="hub-1-ingest", **options):
    config = BrokerConfig(host=broker.host, port=broker.port, reconnect_from=0.05, reconnect_to=0.2)
    options.setdefault("filters", shared_filters("ingest"))
    worker = Worker(config, IngestConfig(), receiver, client_id=client_id, **options)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        assert worker.connected.wait(10)
        time.sleep(0.1)  # the subscriptions are on their way
        yield worker
    finally:
        worker.stop()
        thread.join(10)


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def store(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/hub.sqlite")
    database.migrate()
    blobs = BlobStore(tmp_path / "blobs")
    blobs.open()
    yield database, blobs
    database.close()


@pytest.fixture
def box(mosquitto):
    box = Box(mosquitto)
    yield box
    box.close()


def results(database):
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(tables.result)).scalar_one()


def test_results_and_pieces_are_receipted_over_mqtt(mosquitto, store, box):
    with working(mosquitto, Receiver(*store)):
        messages = {result(n).id: encode(result(n)) for n in range(300)}
        data = bytes(range(256)) * 400
        for payload in messages.values():
            box.send("result", payload)
        for chunk in pieces(data):
            box.send_chunk(chunk)
        until(lambda: {i.id for i in box.items() if i.status == "stored"} == {*messages, pieces(data)[0].id})
    assert results(store[0]) == 300
    assert all(i.sha256 == sha256(messages[i.id]) for i in box.items() if i.id in messages)
    assert store[1].path(pieces(data)[0].sha256).read_bytes() == data


def test_what_is_sent_while_the_hub_is_away_is_taken_in_when_it_comes_back(mosquitto, store, box):
    with working(mosquitto, Receiver(*store)):
        pass
    for n in range(50):
        box.send("result", encode(result(n)))
    with working(mosquitto, Receiver(*store)):
        until(lambda: results(store[0]) == 50)


def test_nothing_is_acknowledged_while_the_database_is_away(mosquitto, store, box):
    database, blobs = store
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE result RENAME TO away")
    with working(mosquitto, Receiver(database, blobs)):
        box.send("result", encode(result()))
        time.sleep(0.5)
        assert box.items() == []
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO result")
    with working(mosquitto, Receiver(database, blobs)):  # the broker still has it
        until(lambda: len(box.items()) == 1)


def test_two_workers_share_the_load_and_one_may_end(mosquitto, store, box):
    first, second = Receiver(*store), Receiver(*store)
    with working(mosquitto, first, "hub-1-a"):
        with working(mosquitto, second, "hub-1-b"):
            for n in range(400):
                box.send("result", encode(result(n)))
            until(lambda: results(store[0]) == 400)
        assert min(first.counts["messages"], second.counts["messages"]) > 100


def test_the_worker_comes_back_after_the_broker_was_killed(mosquitto, store, box):
    with working(mosquitto, Receiver(*store)) as worker:
        mosquitto.kill()
        until(lambda: not worker.connected.is_set())
        mosquitto.start()
        assert worker.connected.wait(10)
        until(box.client.is_connected)
        until(lambda: box.send("result", encode(result())) or time.sleep(0.2) or results(store[0]) == 1)


def downlink(mosquitto, store, receiver, escalation=None):
    config = OutboxConfig(poll=0.05, retry_from=0.3, retry_to=1.0)
    down = Downlink(store[0], config, escalation or EscalationConfig())
    return working(mosquitto, receiver, "hub-1-down", filters=status_filters(), tick=down.tick, tick_every=0.05)


def test_a_review_is_sent_again_until_the_box_confirms_it(mosquitto, store, box):
    review = ReviewMessage(
        id=make_id("review", "x"),
        capture_id=result().capture.id,
        decision="accept",
        reviewer="Dr Roe",
        reviewed_at="2026-01-01T09:00:00Z",
    )
    receiver = Receiver(*store)
    with working(mosquitto, receiver), downlink(mosquitto, store, Receiver(*store)):
        with store[0].write() as connection:
            outbox.add(connection, store[0], BOX.key, review, receiver.now_ms())
        until(lambda: sum(topic.endswith("/review") for topic, _ in box.received) >= 2)
        [payload] = {payload for topic, payload in box.received if topic.endswith("/review")}
        assert payload == encode(review)
        receipt = Receipt(items=[ReceiptItem(id=review.id, sha256=sha256(payload), status="stored")])
        box.send("receipt", encode(receipt))
        until(lambda: not _open(store[0]))
        sent = len(box.received)
        time.sleep(1.2)
        assert len(box.received) == sent


def _open(database):
    with database.read() as connection:
        return outbox.open_rows(connection)


def test_the_retained_state_of_boxes_is_known_after_the_hub_starts(mosquitto, store, box):
    box.send("status", encode(Status(online=True, version="1.2.3")), retain=True)
    time.sleep(0.2)
    with downlink(mosquitto, store, Receiver(*store)):
        until(lambda: _online(store[0]) == [BOX.key])


def _online(database):
    with database.read() as connection:
        return list(connection.execute(select(tables.device.c.key).where(tables.device.c.online)).scalars())


def test_a_critical_result_without_a_human_is_raised_again_at_the_box_step_by_step(mosquitto, store, box):
    escalation = EscalationConfig(critical_after=(0.003, 0.006), check=0.1)
    with working(mosquitto, Receiver(*store)), downlink(mosquitto, store, Receiver(*store), escalation):
        box.send("result", encode(result()))
        until(lambda: len(_commands(box)) == 2)
    assert {c.kind for c in _commands(box).values()} == {"escalate"}
    assert {c.capture_id for c in _commands(box).values()} == {result().capture.id}


def _commands(box):
    found = [decode(payload, Command) for topic, payload in list(box.received) if topic.endswith("/command")]
    return {command.id: command for command in found}


def test_the_receipts_of_a_batch_travel_in_one_message(mosquitto, store, box):
    receiver = Receiver(*store)
    for n in range(200):
        box.send("result", encode(result(n)))
    until(lambda: not box.client.want_write())
    with working(mosquitto, receiver):
        for n in range(200, 400):
            box.send("result", encode(result(n)))
        until(lambda: len({item.id for item in box.items()}) >= 200)
    receipts = [payload for topic, payload in box.received if topic.endswith("/receipt")]
    assert len(receipts) <= 60
    assert max(len(msgspec.json.decode(payload)["items"]) for payload in receipts) > 10
