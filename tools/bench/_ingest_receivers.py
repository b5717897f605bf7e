"""The receivers that ``ingest`` compares, each a process of its own: ``python -m tools.bench._ingest_receivers KIND FOLDER``.

Prints the port it listens on; ends when its standard input is closed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

TITLE = "BEDSIDE"


def ours(folder: Path) -> int:
    """The DICOM door over the real store: encrypted, hashed, fsynced, row committed with synchronous=FULL."""
    from appliance.capture import footprint

    footprint.one_heap()  # both as ``bedside run`` does
    footprint.never_decodes()
    from appliance.capture.dicom import DicomDoor
    from appliance.capture.intake import Intake
    from appliance.config import DicomConfig, StorageConfig
    from appliance.records import Moment
    from appliance.store.store import Store

    def now() -> Moment:
        return Moment(boot_id="bench", monotonic_ns=time.monotonic_ns(), wall="2026-01-01T00:00:00Z")

    store = Store(StorageConfig(state=str(folder)), now)
    store.vault.prepare()
    door = DicomDoor(DicomConfig(address="127.0.0.1", port=_free_port(), ae_title=TITLE), Intake(store, "bench/box"))
    door.start()
    footprint.give_back()
    return door.port


def stock(folder: Path, *, fsync: bool = False) -> int:
    """Stock pynetdicom as its documentation's example stores: decode, ``save_as``, success (no fsync, no encryption).

    ``fsync``: under a temporary name, which becomes the final one when the file is on the disk, and the folder is synced.
    """
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    entries = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def store(event: Any) -> int:
        data_set = event.dataset
        data_set.file_meta = event.file_meta
        target = folder / f"{data_set.SOPInstanceUID}.dcm"
        if not fsync:
            data_set.save_as(target, enforce_file_format=True)
            return 0x0000
        with target.with_suffix(".part").open("xb") as file:
            data_set.save_as(file, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        target.with_suffix(".part").rename(target)
        os.fsync(entries)
        return 0x0000

    ae = AE(TITLE)
    ae.supported_contexts = AllStoragePresentationContexts
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    if server is None:
        raise RuntimeError("pynetdicom did not start")
    return int(server.server_address[1])


def synced(folder: Path) -> int:
    """Stock pynetdicom whose handler fsyncs: what the same word would cost it, without encryption, hash and journal."""
    return stock(folder, fsync=True)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Serve until standard input ends."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    port = {"ours": ours, "stock": stock, "synced": synced}[kind](folder)
    print(port, flush=True)
    sys.stdin.read()
    sys.stdout.flush()
    os._exit(0)  # pynetdicom's threads would be waited for; everything that was acknowledged is on the disk


if __name__ == "__main__":
    sys.exit(main())
