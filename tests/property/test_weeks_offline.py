"""Thirty days without a link, thousands of studies, a disk that fills: then everything arrives, once, hash by hash."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from appliance.capture.intake import Facts, Intake, StoreFull
from appliance.config import LinkConfig
from appliance.health.clock import Clock
from appliance.protocol import messages
from appliance.records import CaptureState, Modality, Patient, Triage
from appliance.store import audit
from appliance.store.files import RealFiles
from appliance.store.journal import Transaction
from appliance.store.outbox import Priority
from appliance.store.retention import Retention
from appliance.store.store import MB, Store
from appliance.sync import originals
from appliance.sync.report import result_of
from appliance.sync.uplink import Uplink
from tests.boxes import DEVICE, open_store, reading
from tests.hub_simulator import HubSimulator, Time

DAYS = 30
LEVELS = (Triage.CRITICAL, Triage.URGENT, Triage.URGENT, *[Triage.ROUTINE] * 7)


class Quota(RealFiles):
    """A disk with room for so many bytes of captures before the watermark."""

    def __init__(self, room: int) -> None:
        self.room, self.used = room + 16 * MB, 0

    def free(self, path: Path) -> int:
        return self.room - self.used


class Box:
    """A box far away: its clock wakes in 1970 after every start and is set wrong now and then."""

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.disk = folder, Quota(room)
        self.chance = random.Random(30)
        self.monotonic, self.wall, self.boots = 0.0, 0.0, 0
        self.accepted: dict[str, tuple[str, Triage]] = {}
        self.refused = 0
        self.start()

    def start(self) -> None:
        self.boots += 1
        self.monotonic, self.wall = 10.0, 0.0
        self.clock = Clock(f"boot-{self.boots}", lambda: self.wall, lambda: round(self.monotonic * 1e9))
        self.store: Store = open_store(self.folder, self.disk)
        self.store.now = self.clock.now
        assert self.store.repair.clean

    def take(self, number: int, seconds: float) -> None:
        """One study: kept, read and reported, or refused at the door."""
        self.monotonic += seconds
        self.wall = max(0.0, self.wall + seconds + self.chance.choice([0, 0, 0, 3.2e8, -3.2e8]))
        content = number.to_bytes(4, "big") + self.chance.randbytes(self.chance.randrange(8_000, 30_000))
        facts = Facts(modality=Modality.CHEST_XRAY, media_type="image/png", source="test", patient=Patient())
        try:
            with Intake(self.store, DEVICE).open() as incoming:
                incoming.write(content)
                kept = incoming.keep(facts)
        except StoreFull:
            self.refused += 1
            return
        self.disk.used += len(content)
        triage = self.chance.choice(LEVELS)
        self._report(kept.capture_id, triage)
        self.accepted[kept.capture_id] = (hashlib.sha256(content).hexdigest(), triage)

    def _report(self, name: str, triage: Triage) -> None:
        store, entry, said = self.store, self.store.captures.get(name), reading(name, triage)
        payload = messages.encode(result_of(entry.capture, said, DEVICE, entry.sequence))

        def report(tx: Transaction) -> None:
            store.captures.checked(tx, name)
            store.captures.read(tx, said, "")
            store.outbox.put(
                tx,
                message_id=messages.make_id("result", DEVICE, name, "0"),
                capture_id=name,
                leaf="result",
                priority=Priority.of("result", triage),
                sha256=messages.sha256(payload),
                payload=payload,
            )
            originals.queue(
                store, tx, entry.capture, Priority.of("original", triage), critical=triage is Triage.CRITICAL
            )
            store.captures.reported(tx, name)

        store.journal.write(report)


def drain(box: Box, hub: HubSimulator, budget: int) -> int:
    """The link is back, metered: how many days it took."""
    time, day = Time(), [0]
    uplink = Uplink(box.store, LinkConfig(daily_budget=budget), time, lambda: f"2026-01-{day[0] + 1:02}")
    uplink.connected(hub)
    idle = 0
    while box.store.outbox.totals()[0] or box.store.transfers.totals()[0]:
        before = hub.received_bytes
        uplink.step()
        hub.exchange(uplink)
        time.now += 0.05
        idle = 0 if hub.received_bytes > before else idle + 1
        if idle > 40:  # the day's quota is used up
            day[0] += 1
            idle = 0
            uplink.changed()
        if box.chance.random() < 0.01:
            hub.cut(uplink)
            uplink.connected(hub)
        assert day[0] < 28, "it never ends"
    uplink.disconnected()
    return day[0] + 1


def weeks_offline(folder: Path, studies: int) -> None:
    box = Box(folder, room=round(0.9 * studies * 19_000))
    for number in range(studies):
        if number and number % (studies // 5) == 0:
            box.store.close()  # the generator ran dry
            box.start()
        box.take(number, DAYS * 86400 / studies)
    assert box.refused > 0, "the disk's quota was reached"
    assert len(box.accepted) + box.refused == studies
    waiting = box.store.outbox.waiting(studies)
    assert len(waiting) == len(box.accepted)

    hub = HubSimulator(seed=1, doubling=0.02)
    total = sum(item.size for item in waiting) + box.store.transfers.totals()[1]
    days = drain(box, hub, budget=max(1, total // MB // 3))
    assert days >= 3, "the daily quota stopped it in between"

    wanted = {sha256 for sha256, _ in box.accepted.values()}
    assert set(hub.blobs) == wanted
    assert all(hashlib.sha256(content).hexdigest() == sha256 for sha256, content in hub.blobs.items())
    assert set(hub.results) == {messages.make_id("result", DEVICE, name, "0") for name in box.accepted}
    assert box.store.captures.counts()[CaptureState.DELIVERED.value] == len(box.accepted)
    results = [one for one in hub.order if one.startswith("result:")]
    level = {messages.make_id("result", DEVICE, name, "0"): triage for name, (_, triage) in box.accepted.items()}
    criticals = sum(triage is Triage.CRITICAL for triage in level.values())
    assert {level[one] for one in results[:criticals]} == {Triage.CRITICAL}, "the most urgent came first"
    assert audit.verify(box.store.journal) is None

    box.disk.used += MB // 2  # now that all is delivered, nearing the watermark costs the oldest files only
    gone = Retention(box.store, 90).tend()
    assert gone
    assert not {name for name in gone if box.accepted[name][1] is Triage.CRITICAL}, "nobody has seen those"
    box.disk.used = sum(box.store.vault.size(one) for one in box.store.vault.blobs())
    before = len(box.accepted)
    box.take(studies, 60)
    assert len(box.accepted) == before + 1, "there is room again"
    box.store.close()


@pytest.mark.timeout(120)
def test_200_studies_of_thirty_days_arrive_once_and_whole(tmp_path: Path) -> None:
    weeks_offline(tmp_path, 200)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_5000_studies_of_thirty_days_arrive_once_and_whole(tmp_path: Path) -> None:
    weeks_offline(tmp_path, 5000)
