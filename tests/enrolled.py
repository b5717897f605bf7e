"""A hub with an authority, boxes enrolled at it, and its broker, for tests."""

from __future__ import annotations

import datetime as dt
import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from appliance.config import Config, DeviceConfig, StorageConfig
from appliance.protocol.topics import Address
from appliance.records import Moment
from appliance.store.credentials import Identity, identity_of
from appliance.store.keys import BoxKey
from appliance.sync.enrolment import take_answer, write_request
from appliance.sync.signing import Signatures
from hub.arrivals import Incoming
from hub.authority import make_authority
from hub.blobs import BlobStore
from hub.broker import Ports, write_broker
from hub.config import BrokerConfig
from hub.database import Database
from hub.enrolment import Enrolments
from hub.receive import Receiver
from hub.trust import Trust, Voice
from tests.boxes import now
from tests.servers import free_port, wait_for_port

NOW = time.time_ns() // 1_000_000


HERE, THERE = Address("clinic-a", "box-1"), Address("clinic-a", "box-2")


class Hub:
    """A hub's authority, database and receiver."""

    def __init__(self, folder: Path) -> None:
        self.authority = make_authority(folder / "authority", "Test hub")
        self.database = Database(f"sqlite:///{folder}/hub.sqlite")
        self.database.migrate()
        self.enrolments = Enrolments(self.database, self.authority)
        blobs = BlobStore(folder / "blobs")
        blobs.open()
        self.receiver = Receiver(
            self.database, blobs, trust=Trust(self.database, lambda: 0.0), enrolments=self.enrolments
        )
        self.trusts_afresh()
        self.voice = Voice(self.authority.signer)

    def trusts_afresh(self) -> None:
        self.receiver._trust = Trust(self.database)

    def enrol(self, folder: Path, device: Address, days: int = 730) -> Identity:
        self.enrolments._days = days
        config = Config(
            device=DeviceConfig(site=device.site, name=device.device),
            storage=StorageConfig(state=str(folder), refuse_below=16, reserve=4),
        )
        folder.mkdir(exist_ok=True)
        asked = write_request(config, folder, self.enrolments.make_code(device, NOW, 1))
        asked.with_suffix(".enrolled").write_bytes(self.enrolments.enrol(asked.read_bytes(), NOW))
        take_answer(config, folder)
        found = identity_of(folder, BoxKey((folder / "box.key").read_bytes()))
        assert found is not None
        return found

    def reaching(self, broker: Broker) -> BrokerConfig:
        folder = self.authority.folder
        return BrokerConfig(
            host="localhost",
            port=broker.ports.hub,
            tls=True,
            ca_file=str(folder / "ca.pem"),
            certificate_file=str(folder / "hub.pem"),
            key_file=str(folder / "hub.key"),
        )

    def rows(self, table: Any) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(select(table)))


def signed(message: Incoming, identity: Identity) -> Incoming:
    properties = Signatures(identity).added(message.topic, message.payload, message.content_type, message.properties)
    return message._replace(properties=tuple(properties))


class Broker:
    """mosquitto as ``bedside-hub broker`` configures it."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if program is None:
            pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
        self.ports = Ports(free_port(), free_port(), "127.0.0.1")
        user = pwd.getpwuid(os.getuid()).pw_name
        path = write_broker(folder, hub.authority, ["localhost"], self.ports, user)
        self.process = subprocess.Popen([program, "-c", str(path)], stderr=subprocess.DEVNULL)
        wait_for_port(self.ports.boxes, self.process)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def until(done: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hub_time() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


def known_as(when: dt.datetime) -> Moment:
    wall = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Moment(boot_id="b", monotonic_ns=1, wall=wall, uncertainty_s=1.0)


class FixedClock:
    """Never believes anybody."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def now(self) -> Moment:
        return now()

    def anchor_text(self, wall: str, _uncertainty_s: float) -> bool:
        self.told.append(wall)
        return True
