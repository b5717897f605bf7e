"""A fleet of a thousand boxes on one broker and two worker processes, one of which is killed: nothing lost, nothing twice."""

from __future__ import annotations

import contextlib
import resource
import selectors
import signal
import subprocess
import sys
import time

import paho.mqtt.client as mqtt
import pytest
from sqlalchemy import func, select

from appliance.protocol.messages import Receipt, decode, encode, sha256
from appliance.protocol.topics import Address
from hub import tables
from hub.database import Database
from tests.wire import result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BOXES = 1_000
EACH = 5
RESEND_S = 5.0


class Fleet:
    """Boxes without threads: one loop over all sockets; each sends again what has no receipt."""

    def __init__(self, broker):
        self.selector = selectors.DefaultSelector()
        self.clients = []
        self.open = {}
        self.receipts = 0
        self.sent = 0
        for number in range(BOXES):
            address = Address(f"site-{number % 20}", f"box-{number}")
            client = mqtt.Client(
                mqtt.CallbackAPIVersion.VERSION2, client_id=f"box-{number}", protocol=mqtt.MQTTv5, userdata=address
            )
            client.on_connect = lambda c, address, *_: c.subscribe(address.down("receipt"), 1)
            client.on_message = self._receipt
            client.connect(broker.host, broker.port, keepalive=120)
            self.selector.register(client.socket(), selectors.EVENT_READ, client)
            self.clients.append((client, address))
            self.turn(0)

    def turn(self, seconds):
        for key, _ in self.selector.select(seconds):
            assert key.data.loop_read() == mqtt.MQTT_ERR_SUCCESS
        for client, _ in self.clients:
            if client.want_write():
                client.loop_write()

    def capture(self, number):
        client, address = self.clients[number % BOXES]
        message = result(number, address=address)
        payload = encode(message)
        self.open[message.id] = (client, address.up("result"), payload, sha256(payload), 0.0)

    def send(self):
        now = time.monotonic()
        for key, (client, topic, payload, digest, last) in list(self.open.items()):
            if now - last > RESEND_S:
                client.publish(topic, payload, qos=1)
                self.sent += 1
                self.open[key] = (client, topic, payload, digest, now)
            if self.sent % 50 == 0:
                self.turn(0)

    def _receipt(self, _, __, message):
        for item in decode(message.payload, Receipt).items:
            self.receipts += 1
            assert item.status == "stored"
            waiting = self.open.get(item.id)
            if waiting is not None and waiting[3] == item.sha256:
                del self.open[item.id]


@contextlib.contextmanager
def worker(configuration, folder, name):
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "hub", "worker", "-c", str(configuration)], stderr=file)
    try:
        deadline = time.monotonic() + 60
        while b"connected" not in log.read_bytes():
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def test_a_thousand_boxes_at_once_and_a_killed_worker_lose_and_double_nothing(mosquitto, postgresql, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4 * BOXES:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * BOXES), hard))
    mosquitto.stop()
    mosquitto.start()  # with the new limit
    configuration = tmp_path / "hub.toml"
    configuration.write_text(
        f'[storage]\nstate = "{tmp_path}"\nrefuse_below = 1\n[database]\nurl = "{postgresql.url}"\n'
        f"[broker]\nport = {mosquitto.port}\n",
        encoding="utf-8",
    )
    database = Database(postgresql.url)
    with worker(configuration, tmp_path, "a") as first, worker(configuration, tmp_path, "b"):
        fleet = Fleet(mosquitto)
        for number in range(BOXES * EACH):
            fleet.capture(number)
        fleet.send()
        while fleet.receipts < BOXES * EACH // 3:
            fleet.turn(0.1)
        first.send_signal(signal.SIGKILL)
        with worker(configuration, tmp_path, "c"):
            deadline = time.monotonic() + 300
            while fleet.open:
                assert time.monotonic() < deadline, f"{len(fleet.open)} results have no receipt"
                fleet.turn(0.1)
                fleet.send()
    with database.read() as connection:
        stored = connection.execute(select(func.count()).select_from(tables.result)).scalar_one()
        boxes = connection.execute(select(func.count()).select_from(tables.device)).scalar_one()
        conflicts = connection.execute(select(func.count()).select_from(tables.conflict)).scalar_one()
    database.close()
    assert (stored, boxes, conflicts) == (BOXES * EACH, BOXES, 0)
