"""The way out on a stick: nothing lost, nothing twice, nobody else reads it, wherever the stick is pulled out."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import func, select

from appliance.config import Config, DeviceConfig, StorageConfig, UsbConfig
from appliance.protocol import messages
from appliance.protocol.messages import Receipt, ReceiptItem
from appliance.protocol.parcel import (
    Entry,
    HubPublic,
    HubSecret,
    ParcelError,
    ParcelWriter,
    device_public,
    entries,
    public_text,
)
from appliance.protocol.signing import KeySigner
from appliance.records import CaptureState, Triage
from appliance.store import checkpoints
from appliance.store.store import Store
from appliance.sync.carried import carry_back, take_carried
from appliance.sync.export import Stick, device_key, export
from appliance.sync.inbox import Downlink
from appliance.sync.uplink import Uplink
from hub import tables
from hub.blobs import BlobStore
from hub.database import Database
from hub.parcels import known_devices, make_keys, open_keys, take_parcels
from hub.receive import Receiver
from hub.trust import Trust
from tests.boxes import DEVICE, now, open_store, report

MB = 1 << 20


class World:
    """A box, a stick and a hub."""

    def __init__(self, folder: Path) -> None:
        self.state, self.stick, self.hub = folder / "box", folder / "stick", folder / "hub"
        self.stick.mkdir()
        self.hub.mkdir()
        self.secret = make_keys(self.hub / "keys")
        site, name = DEVICE.split("/")
        self.config = Config(
            device=DeviceConfig(site=site, name=name),
            storage=StorageConfig(state=str(self.state), refuse_below=16, reserve=4),
            usb=UsbConfig(hub_key=self.secret.public),
        )
        self.database = Database(f"sqlite:///{self.hub}/hub.sqlite")
        self.database.migrate()
        self.blobs = BlobStore(self.hub / "blobs")
        self.blobs.open()
        self.receiver = Receiver(self.database, self.blobs)

    def open(self) -> Store:
        return open_store(self.state)

    def devices(self) -> dict[str, str]:
        return {DEVICE: public_text(device_key(self.config))}

    def take(self) -> list[str]:
        return [one.words for one in take_parcels(self.stick, self.secret, self.devices(), self.receiver)]

    def back(self) -> list[str]:
        return [one.words for one in carry_back(self.config, self.stick, now)]

    def count(self, table: object) -> int:
        with self.database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())  # type: ignore[arg-type]

    def states(self) -> list[CaptureState]:
        store = self.open()
        found = [entry.state for entry in store.captures.latest()]
        store.close()
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def fill(store: Store, count: int = 3, size: int = 700_000) -> list[bytes]:
    originals = [random.Random(number).randbytes(size) for number in range(count)]
    levels = [Triage.ROUTINE, Triage.CRITICAL, Triage.URGENT]
    for number, original in enumerate(originals):
        report(store, f"capture {number}".encode(), levels[number % 3], original)
    return originals


def test_everything_goes_by_stick_and_the_receipts_close_it(world: World) -> None:
    store = world.open()
    originals = fill(store)
    store.close()
    done = export(world.config, Stick(world.stick))
    assert (done.messages, done.blob_bytes, done.left) == (3, 3 * 700_000, ())
    assert world.states() == [CaptureState.REPORTED] * 3, "exporting closes nothing"
    assert len(world.take()) == 1
    assert world.count(tables.result) == 3
    assert sorted(world.blobs.path(one).read_bytes() for one in world.blobs.stored()) == sorted(originals)
    assert world.back() == ["6 receipts, 3 captures delivered"]
    assert world.states() == [CaptureState.DELIVERED] * 3
    assert list(world.stick.iterdir()) == [], "the stick is clear again"


def test_a_checkpoint_of_the_audit_log_goes_by_stick_too(world: World) -> None:
    store = world.open()
    signer = KeySigner(bytes(32))
    store.journal.write(lambda tx: checkpoints.make(tx, now(), DEVICE, signer, store.outbox))
    store.close()
    assert export(world.config, Stick(world.stick)).messages == 1
    world.receiver = Receiver(world.database, world.blobs, trust=Trust(world.database))
    assert world.take() == [f"1 messages from {DEVICE}: 1 of 1 items stored"], "its parcel proves whose it is"
    assert world.count(tables.checkpoint) == 1
    assert world.back() == ["1 receipts, 0 captures delivered"]


def test_the_stick_and_the_link_may_be_mixed_and_double_nothing(world: World) -> None:
    store = world.open()
    fill(store)
    first = store.outbox.waiting()[0]
    store.close()
    export(world.config, Stick(world.stick))
    world.take()
    world.take()
    assert (world.count(tables.result), world.count(tables.conflict)) == (3, 0)
    store = world.open()
    store.journal.write(lambda tx: store.outbox.close(tx, first.id, first.sha256, "delivered"))  # the link came back
    report(store, b"after the export")
    store.close()
    world.back()
    assert sorted(world.states()) == [CaptureState.DELIVERED] * 3 + [CaptureState.REPORTED]


def test_beside_a_running_daemon_both_ways_work(world: World) -> None:
    store = world.open()
    fill(store)
    export(world.config, Stick(world.stick))
    world.take()
    assert world.back() == ["1 receipts handed to the running daemon"]
    assert list(world.stick.iterdir()) == []
    uplink = Uplink(store, world.config.link, lambda: 0.0, lambda: "2026-01-01")

    class NoClock:
        anchored = False

        def now(self) -> object:
            return now()

        def anchor_text(self, wall: str, uncertainty_s: float) -> bool:
            self.anchored = True
            return True

    clock = NoClock()
    downlink = Downlink(store, uplink, clock, lambda _: None)  # type: ignore[arg-type]
    assert take_carried(world.state, downlink.received) == 1
    assert take_carried(world.state, downlink.received) == 0
    assert {entry.state for entry in store.captures.latest()} == {CaptureState.DELIVERED}
    assert not clock.anchored, "receipts that travelled for days say nothing about the time"
    store.close()


def test_the_most_urgent_comes_first_when_the_stick_is_small(world: World) -> None:
    store = world.open()
    fill(store, 6, 3 * MB)
    store.close()
    done = export(world.config, Stick(world.stick, largest=4 * MB, free=lambda _: 8 * MB - size_of(world.stick)))
    assert len(done.parcels) >= 1
    assert any("the stick is full" in reason for reason in done.left)
    world.take()
    assert world.count(tables.result) == 6, "results before pictures"
    world.back()
    states = world.states()
    assert CaptureState.DELIVERED in states
    assert CaptureState.REPORTED in states
    for _ in range(10):  # again and again with the same small stick
        export(world.config, Stick(world.stick, largest=4 * MB, free=lambda _: 8 * MB - size_of(world.stick)))
        world.take()
        world.back()
    assert set(world.states()) == {CaptureState.DELIVERED}
    assert world.count(tables.conflict) == 0


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


class PulledError(Exception):
    pass


def test_a_stick_pulled_out_at_any_write_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.open()
    fill(store, 3, 1_500_000)
    store.close()
    real = ParcelWriter._put
    for at in range(1, 12):
        left = [at]

        def put(writer: ParcelWriter, data: bytes, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise PulledError
            real(writer, data)

        with monkeypatch.context() as patch:
            patch.setattr(ParcelWriter, "_put", put)
            patch.setattr(Path, "unlink", lambda *_, **__: None)  # a stick that is gone can't be tidied
            try:
                export(world.config, Stick(world.stick, largest=2 * MB))
            except PulledError:
                assert not any(path.name.endswith(".parcel.parcel") for path in world.stick.iterdir())
        assert all("messages from" in words for words in world.take()), "whatever has its name is whole"
    assert world.states() == [CaptureState.REPORTED] * 3
    export(world.config, Stick(world.stick))
    assert not list(world.stick.glob("*.part"))
    world.take()
    world.back()
    assert set(world.states()) == {CaptureState.DELIVERED}
    assert (world.count(tables.result), world.count(tables.conflict)) == (3, 0)


def test_a_damaged_cut_or_foreign_parcel_is_refused_and_the_others_are_taken(world: World) -> None:
    store = world.open()
    fill(store, 1, 100_000)
    store.close()
    (good,) = export(world.config, Stick(world.stick)).parcels
    whole = good.read_bytes()
    rng = random.Random(1)
    for number in range(20):
        bad = bytearray(whole)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        (world.stick / f"bad-{number:02}.parcel").write_bytes(
            bad[: rng.randrange(len(bad))] if number % 4 == 0 else bad
        )
    (world.stick / "empty.parcel").write_bytes(b"")
    (world.stick / "other.parcel").write_bytes(b"PK\x03\x04" + bytes(1000))
    with (world.stick / "stranger.parcel").open("wb") as file:
        ParcelWriter(
            file.write, "site-9/box", "0", 1, HubPublic(world.secret.public), Ed25519PrivateKey.generate()
        ).finish()
    with (world.stick / "forged.parcel").open("wb") as file:
        ParcelWriter(file.write, DEVICE, "0", 1, HubPublic(world.secret.public), Ed25519PrivateKey.generate()).finish()
    taken = list(take_parcels(world.stick, world.secret, world.devices(), world.receiver))
    assert [one.parcel for one in taken if one.receipts] == [good]
    assert len(taken) == 25
    assert "is not known here" in next(one.words for one in taken if one.parcel.name == "stranger.parcel")
    assert world.count(tables.result) == 1


def test_another_hub_cannot_read_a_parcel_and_nothing_of_a_patient_is_in_the_open(world: World) -> None:
    store = world.open()
    report(store, b"Zebedee^Quux")
    store.close()
    (parcel,) = export(world.config, Stick(world.stick)).parcels
    raw = parcel.read_bytes()
    assert b"Zebedee" not in raw
    assert b"bedside/result" not in raw
    with pytest.raises(ParcelError, match="another hub"):
        list(entries(parcel, HubSecret(os.urandom(32)), device_public(public_text(device_key(world.config)))))


def test_receipts_are_obeyed_only_from_this_hub_for_this_box(world: World) -> None:
    store = world.open()
    report(store, b"content")
    item = store.outbox.waiting()[0]
    store.close()
    receipt = messages.encode(Receipt(items=[ReceiptItem(id=item.id, sha256=item.sha256, status="stored")]))
    stem = f"bedside-{DEVICE.replace('/', '.')}-x"
    forged = {
        f"{stem}1.receipts": HubSecret(os.urandom(32)).sign(DEVICE, [receipt]),
        f"{stem}2.receipts": world.secret.sign("site-1/box-2", [receipt]),
        f"{stem}3.receipts": b"junk",
        f"{stem}4.receipts": msgspec.msgpack.encode({"device": DEVICE, "receipts": [receipt], "signature": b""}),
    }
    for name, data in forged.items():
        (world.stick / name).write_bytes(data)
    assert len(world.back()) == 4
    assert world.states() == [CaptureState.REPORTED]
    assert len(list(world.stick.iterdir())) == 4, "what was not obeyed stays for somebody to look at"
    (world.stick / f"{stem}5.receipts").write_bytes(world.secret.sign(DEVICE, [receipt]))
    world.back()
    assert world.states() == [CaptureState.DELIVERED]


def test_an_entry_that_is_no_upward_message_stops_the_parcel(world: World) -> None:
    world.open().close()
    key = device_key(world.config)
    with (world.stick / "p.parcel").open("wb") as file:
        writer = ParcelWriter(file.write, DEVICE, "0", 1, HubPublic(world.secret.public), key)
        writer.add(Entry(leaf="../../etc", payload=b"x"))
        writer.finish()
    (words,) = world.take()
    assert "does not travel so" in words


def test_keys_are_made_once_private_and_said_clearly_when_wrong(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "keys")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    assert make_keys(tmp_path / "keys").public == open_keys(tmp_path / "keys").public == made.public
    (tmp_path / "broken").write_text("not base64 !")
    for path in (tmp_path / "broken", tmp_path / "none"):
        with pytest.raises(ParcelError):
            open_keys(path)
    for text in ("", "AAAA", made.public[:-4]):
        with pytest.raises(ParcelError, match=r"usb\.hub_key"):
            HubPublic(text)
    with pytest.raises(ParcelError, match=r"is empty: write"):
        HubPublic("")
    (tmp_path / "devices").write_text(f"# boxes\n{DEVICE} AAAA\n\n")
    assert known_devices(tmp_path / "devices") == {DEVICE: "AAAA"}
    (tmp_path / "devices").write_text("one word too many\n")
    with pytest.raises(ParcelError, match="each line is a device and its key"):
        known_devices(tmp_path / "devices")


def test_the_commands_carry_a_stick_there_and_back(world: World, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from appliance.cli import app as bedside
    from hub.cli import app as hub

    store = world.open()
    fill(store, 2, 10_000)
    store.close()
    say = CliRunner()
    public = say.invoke(hub, ["keys", str(world.hub / "keys")]).stdout.strip()
    box, center = tmp_path / "bedside.toml", tmp_path / "hub.toml"
    box.write_text(f'[storage]\nstate = "{world.state}"\nrefuse_below = 16\nreserve = 4\n[usb]\nhub_key = "{public}"\n')
    center.write_text(f'[database]\nurl = "sqlite:///{world.hub}/hub.sqlite"\n[storage]\nblobs = "{world.hub}/blobs"\n')
    (tmp_path / "devices").write_text(say.invoke(bedside, ["export", "--key", "-c", str(box)]).stdout)
    done = say.invoke(bedside, ["export", str(world.stick), "-c", str(box)])
    assert done.exit_code == 0, done.output
    assert "2 messages and 20000 bytes of pictures and sounds in 1 parcels" in done.stdout
    options = ["-c", str(center), "--keys", str(world.hub / "keys"), "--devices", str(tmp_path / "devices")]
    done = say.invoke(hub, ["import", str(world.stick), *options])
    assert done.exit_code == 0, done.output
    assert "4 of 4 items stored" in done.stdout
    done = say.invoke(bedside, ["import-receipts", str(world.stick), "-c", str(box)])
    assert done.exit_code == 0, done.output
    assert "2 captures delivered" in done.stdout
    assert say.invoke(bedside, ["import-receipts", str(world.stick), "-c", str(box)]).exit_code == 1
    assert say.invoke(hub, ["import", str(world.stick), *options]).exit_code == 1
