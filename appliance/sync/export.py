"""The way out on a stick: what waits for the hub, as parcels (``docs/usb.md``).

What this module keeps true: exporting changes nothing on the box: everything waits on until a receipt closes it, so that a
stick that is lost, pulled out or never read costs nothing. A parcel has its name only once it is whole and durable on
the stick.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.config import Config
from appliance.protocol import chunks
from appliance.protocol.parcel import SUFFIX, Entry, HubPublic, ParcelWriter
from appliance.store.errors import StoreError
from appliance.store.files import RealFiles, durable, sync_folder
from appliance.store.journal import Reader
from appliance.store.keys import key_file, open_key
from appliance.store.outbox import Item, Outbox
from appliance.store.transfers import Transfer, Transfers
from appliance.store.vault import Vault

LARGEST = 1 << 30
"""Bytes of a parcel: FAT32 ends at 4 GiB, and a smaller one is sooner whole."""
_SHARE = 0.98
_SPARE = 2 << 20
_ALL = 1 << 40
_SEALED = 12 + 32 + 16


class Exported(NamedTuple):
    """What an export put on the stick: parcels, results, bytes of pictures and sounds; what it had to leave, in words."""

    parcels: tuple[Path, ...]
    messages: int
    blob_bytes: int
    left: tuple[str, ...]


class Waiting:
    """What waits for the hub, most urgent first, read beside a running daemon or without one."""

    def __init__(self, config: Config) -> None:
        folder = config.state
        if not key_file(folder).exists():
            raise StoreError(f"{folder}: nothing was ever kept here; name the daemon's configuration with --config")
        key = open_key(folder, RealFiles())
        self._reader = Reader(folder / "journal.sqlite")
        self._outbox = Outbox(self._reader, key)
        self._transfers = Transfers(self._reader)
        self._vault = Vault(folder / "vault", key)
        self.problems: list[str] = []

    def entries(self) -> Iterator[Entry]:
        """The messages as the link would send them; what can't be read is left out and said in ``problems``."""
        messages: list[Item | Transfer] = [*self._outbox.waiting(_ALL)]
        blobs: list[Item | Transfer] = [*self._transfers.waiting(_ALL)]
        for one in heapq.merge(messages, blobs, key=lambda item: (item.priority, isinstance(item, Transfer))):
            try:
                if isinstance(one, Item):
                    yield Entry(leaf=one.leaf, payload=self._outbox.payload(one.id), content_type="application/json")
                else:
                    yield from self._chunks(one)
            except StoreError as error:
                self.problems.append(str(error))
        due = self._reader.one("SELECT count(*) AS n FROM original")
        if due is not None and due["n"]:
            self.problems.append(f"{due['n']} originals are still being prepared; they go with the next export")

    def _chunks(self, transfer: Transfer) -> Iterator[Entry]:
        at = min(transfer.confirmed, transfer.size)
        while at < transfer.size:
            data = self._vault.read_range(transfer.sha256, at, chunks.MAXIMUM_CHUNK)
            chunk = chunks.Chunk(
                capture_id=transfer.capture_id,
                kind=transfer.kind,
                sha256=transfer.sha256,
                offset=at,
                total=transfer.size,
                media_type=transfer.media_type,
                data=data,
                encoding=transfer.encoding,
            )
            header = tuple(chunks.properties(chunk))
            yield Entry(leaf="blob", payload=data, content_type=transfer.media_type, properties=header)
            at += len(data)

    def close(self) -> None:
        """Let go of the journal."""
        self._reader.close()


class Stick:
    """The folder that parcels are put into. ``largest``: bytes of a parcel; ``free`` gives the folder's free bytes."""

    def __init__(
        self, folder: Path, largest: int = LARGEST, free: Callable[[Path], int] = lambda path: RealFiles().free(path)
    ) -> None:
        self.folder = folder
        self._largest, self._free = largest, free

    def room(self) -> int:
        """How large the next parcel may be; 0 when it would not be worth it."""
        room = min(self._largest, round(self._free(self.folder) * _SHARE) - _SPARE)
        return room if room > 2 * chunks.MAXIMUM_CHUNK else 0

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """A file that has its name once the block has ended and it is durable."""
        target = self.folder / name
        part = target.with_name(f"{name}.part")
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        self.sync()

    def sync(self) -> None:
        """Return once the names are on the stick."""
        try:
            sync_folder(self.folder)
        except OSError as error:
            if error.errno not in {
                errno.EINVAL,
                errno.ENOTSUP,
            }:  # some file systems of sticks know no fsync of a folder
                raise


def device_key(config: Config) -> Ed25519PrivateKey:
    """The key that this box signs its parcels with, made on first use and sealed with the box key."""
    path, key = config.state / "parcel.key", open_key(config.state, RealFiles())
    held = path.read_bytes() if path.exists() else b""
    if len(held) != _SEALED:
        held = key.seal(held or os.urandom(32), "parcel")  # a box of before kept it unsealed
        with durable(RealFiles(), path) as file:
            file.write(held)
    return Ed25519PrivateKey.from_private_bytes(key.unseal(held, "parcel"))


def export(config: Config, stick: Stick, on_progress: Callable[[int], None] = lambda _: None) -> Exported:
    """Put all that waits, or as much as there is room for, onto the stick; ``on_progress`` gets the bytes so far.

    Raises ``ParcelError`` when the hub's key is not configured, ``StoreError``, or ``OSError`` of the stick; what was there
    before then stays, and so do the parcels that were whole.
    """
    hub = HubPublic(config.usb.hub_key)
    device = f"{config.device.site}/{config.device.name}"
    key, serial = device_key(config), os.urandom(4).hex()
    for path in of_device(stick.folder, device, ".part"):  # the stick was pulled out of an export before
        path.unlink(missing_ok=True)
    older = of_device(stick.folder, device, SUFFIX)
    waiting = Waiting(config)
    parcels: list[Path] = []
    counts = [0, 0]
    rest = waiting.entries()
    entry = next(rest, None)
    try:
        while entry is not None and (room := stick.room()):
            name = f"{_stem(device)}{serial}-{len(parcels) + 1:03}{SUFFIX}"
            with stick.file(name) as file:
                writer = ParcelWriter(file.write, device, serial, len(parcels) + 1, hub, key)
                while entry is not None and writer.size + len(entry.payload) + 1024 < room:
                    writer.add(entry)
                    counts[entry.leaf == "blob"] += len(entry.payload) if entry.leaf == "blob" else 1
                    on_progress(writer.size)
                    entry = next(rest, None)
                writer.finish()
            parcels.append(stick.folder / name)
    finally:
        waiting.close()
    left = [*waiting.problems]
    if entry is not None:
        left.append("the stick is full: the most urgent is on it, the rest stays here; export to another one")
    else:
        for path in older:  # what was in them and still waits is in the new ones
            path.unlink(missing_ok=True)
    return Exported(tuple(parcels), counts[0], counts[1], tuple(left))


def _stem(device: str) -> str:
    return f"bedside-{device.replace('/', '.')}-"


def of_device(folder: Path, device: str, suffix: str) -> list[Path]:
    """The files of this device in a folder of the stick."""
    return sorted(path for path in folder.glob(f"{_stem(device)}*{suffix}") if path.is_file())
