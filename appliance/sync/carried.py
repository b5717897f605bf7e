"""The hub's receipts, carried back on a stick (``docs/usb.md``).

What this module keeps true: receipts are proven to be the hub's, for this box, before they are obeyed; they leave the stick
only after the journal has them, or a folder from which the running daemon takes them. The clock is not set by them:
they were written days ago.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from appliance.config import Config
from appliance.protocol import messages
from appliance.protocol.messages import Receipt
from appliance.protocol.parcel import RECEIPTS_SUFFIX, SUFFIX, HubPublic, ParcelError
from appliance.records import Moment
from appliance.store.errors import InUse
from appliance.store.files import RealFiles, durable
from appliance.store.store import Store
from appliance.sync.export import of_device
from appliance.sync.uplink import Uplink

FOLDER = "carried"
"""In the state folder: receipts that the running daemon takes within seconds."""


class CarriedBack(NamedTuple):
    """What became of a file of receipts, in words."""

    path: Path
    words: str
    kept: bool


def carry_back(config: Config, folder: Path, now: Callable[[], Moment]) -> Iterator[CarriedBack]:
    """Obey the receipts in a folder of the stick, directly or through the running daemon; then clear the stick of them.

    Raises ``ParcelError`` when the hub's key is not configured, ``StoreError`` or ``OSError``.
    """
    hub = HubPublic(config.usb.hub_key)
    device = f"{config.device.site}/{config.device.name}"
    try:
        store: Store | None = Store(config.storage, now)
    except InUse:
        store = None
    try:
        for path in of_device(folder, device, RECEIPTS_SUFFIX):
            try:
                receipts = hub.opened(path.read_bytes(), device)
            except ParcelError as error:
                yield CarriedBack(path, str(error), kept=False)
                continue
            words = _hand_over(config, path, receipts) if store is None else _obey(config, store, receipts, now)
            path.with_suffix(SUFFIX).unlink(missing_ok=True)
            path.unlink()
            yield CarriedBack(path, words, kept=True)
    finally:
        if store is not None:
            store.close()


def take_carried(state: Path, received: Callable[[str, bytes], None]) -> int:
    """For the daemon: obey what was handed over; how many receipts. ``received``: as ``Downlink.received``."""
    count = 0
    for path in sorted((state / FOLDER).glob("*.json")):
        received("receipt", path.read_bytes())
        path.unlink()
        count += 1
    return count


def _obey(config: Config, store: Store, receipts: Iterable[bytes], now: Callable[[], Moment]) -> str:
    uplink = Uplink(store, config.link, time.monotonic, lambda: now().wall[:10])
    items = [item for one in receipts for item in messages.decode(one, Receipt).items]
    delivered = uplink.receipts(items)
    uplink.disconnected()  # writes the offsets of what the hub holds in part
    store.note("carried", "receipts", f"{len(items)} from a stick, {len(delivered)} captures delivered")
    return f"{len(items)} receipts, {len(delivered)} captures delivered"


def _hand_over(config: Config, path: Path, receipts: Iterable[bytes]) -> str:
    files, folder = RealFiles(), config.state / FOLDER
    files.make_folder(folder)
    count = 0
    for count, receipt in enumerate(receipts, start=1):
        with durable(files, folder / f"{path.stem}-{count:04}.json") as file:
            file.write(receipt)
    return f"{count} receipts handed to the running daemon"
