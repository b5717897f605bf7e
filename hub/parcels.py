"""Parcels from a stick: the same messages as over the link, through the same receiver, and the receipts back.

What this module keeps true: a parcel is read only if it is whole and signed by a device that was made known here; receipts
are written only for what is committed, and have their name only once they are durable on the stick. A parcel may be
handed in any number of times, here and at other hubs of the same database: its ids are those of the link.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from appliance.protocol import messages
from appliance.protocol.messages import Receipt, ReceiptItem
from appliance.protocol.parcel import (
    RECEIPTS_SUFFIX,
    SUFFIX,
    Entry,
    HubSecret,
    ParcelError,
    device_public,
    entries,
    header_of,
)
from appliance.protocol.topics import TopicError, Up
from hub.arrivals import Incoming
from hub.outbox import address
from hub.receive import Receiver

BATCH = 100
_ITEMS = 500
_UP: dict[str, Up] = {"result": "result", "blob": "blob", "receipt": "receipt", "checkpoint": "checkpoint"}


class Taken(NamedTuple):
    """What became of a parcel, in words; ``receipts`` is the file that goes back, ``None`` when nothing was taken."""

    parcel: Path
    words: str
    receipts: Path | None


def make_keys(path: Path) -> HubSecret:
    """Make the hub's key file (mode 0600); one that is there is opened, never overwritten. Raises ``ParcelError``."""
    secret = os.urandom(32)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return open_keys(path)
    except OSError as error:
        raise ParcelError(f"{path}: {error.strerror}; choose a folder that this user may write") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(secret) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return HubSecret(secret)


def open_keys(path: Path) -> HubSecret:
    """The hub's keys from their file; raises ``ParcelError``."""
    try:
        return HubSecret(base64.b64decode(path.read_bytes().strip(), validate=True))
    except OSError as error:
        raise ParcelError(f"{path}: {error.strerror}; make the keys with: bedside-hub keys {path}") from error
    except (binascii.Error, ValueError) as error:
        raise ParcelError(f"{path}: not a key file; restore it from its backup") from error


def known_devices(path: Path) -> dict[str, str]:
    """Device to its public key, from lines ``site/name key``; raises ``ParcelError``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ParcelError(f"{path}: can't be read; put a line of `bedside export --key` of each box into it") from error
    fields = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if any(len(one) != 2 for one in fields):
        raise ParcelError(f"{path}: each line is a device and its key, as `bedside export --key` prints them")
    return {one[0]: one[1] for one in fields}


def take_parcels(folder: Path, secret: HubSecret, devices: dict[str, str], receiver: Receiver) -> Iterator[Taken]:
    """Take in every parcel of a folder; one that can't be says why and keeps no other back.

    Raises ``StoreUnavailable`` and ``OSError``: then nothing of the present parcel is answered, and it can be handed in again.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            device = header_of(path).device
            if device not in devices:
                words = f"{device[:80]} is not known here: append the line of its `bedside export --key` to the devices file"
                yield Taken(path, words, None)
                continue
            yield _take(path, device, secret, devices[device], receiver)
        except (ParcelError, TopicError) as error:
            yield Taken(path, str(error), None)


def _take(path: Path, device: str, secret: HubSecret, key: str, receiver: Receiver) -> Taken:
    items: dict[tuple[str, str], ReceiptItem] = {}
    batch: list[Incoming] = []
    count = 0
    for entry in entries(path, secret, device_public(key)):
        batch.append(_incoming(device, entry))
        count += 1
        if len(batch) == BATCH:
            _collect(items, receiver.handle(batch))
            batch = []
    if batch:
        _collect(items, receiver.handle(batch))
    answered = list(items.values())
    receipts = [
        messages.encode(Receipt(items=answered[at : at + _ITEMS], sender="stick"))
        for at in range(0, len(answered), _ITEMS)
    ]
    target = path.with_suffix(RECEIPTS_SUFFIX)
    _write(target, secret.sign(device, receipts))
    stored = sum(item.status == "stored" for item in answered)
    return Taken(path, f"{count} messages from {device}: {stored} of {len(answered)} items stored", target)


def _incoming(device: str, entry: Entry) -> Incoming:
    leaf = _UP.get(entry.leaf)
    if leaf is None:
        raise ParcelError(f"it holds something that does not travel so ({entry.leaf[:20]!r}); export it again")
    return Incoming(address(device).up(leaf), entry.payload, entry.properties, entry.content_type, is_proven=True)


def _collect(items: dict[tuple[str, str], ReceiptItem], published: list[tuple[str, bytes]]) -> None:
    """The last word on each id; of two counts of bytes the larger."""
    for _, payload in published:
        for item in messages.decode(payload, Receipt).items:
            before = items.get((item.id, item.sha256))
            if before is None or item.status != "partial" or item.offset >= before.offset:
                items[item.id, item.sha256] = item


def _write(target: Path, data: bytes) -> None:
    part = target.with_name(f"{target.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems of sticks know no fsync of a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
