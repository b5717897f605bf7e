"""Entries for the audit log from commands that run beside the daemon, which alone writes the journal.

What this module keeps true: an entry is durable when ``note`` returns, in the journal or in a folder from which the running
daemon (or whoever opens the store next) takes it; it is in the log at least once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance.config import StorageConfig
from appliance.records import Moment
from appliance.store.errors import InUse
from appliance.store.files import RealFiles, durable
from appliance.store.store import Store

FOLDER = "notes"
"""In the state folder."""


class _Note(msgspec.Struct, frozen=True):
    event: str
    subject: str
    detail: str
    wall: str


def note(config: StorageConfig, now: Callable[[], Moment], event: str, subject: str, detail: str = "") -> None:
    """Write an entry to the audit log, beside a running daemon or without one; raises ``StoreError`` or ``OSError``."""
    try:
        store = Store(config, now)
    except InUse:
        files, folder = RealFiles(), Path(config.state) / FOLDER
        files.make_folder(folder)
        entry = _Note(event, subject, detail, now().wall)
        with durable(files, folder / f"{time.time_ns():020}.json") as file:
            file.write(msgspec.json.encode(entry))
        return
    try:
        take(store)
        store.note(event, subject, detail)
    finally:
        store.close()


def take(store: Store) -> int:
    """Write the entries that were left beside the store, oldest first; how many."""
    count = 0
    for path in sorted((store.folder / FOLDER).glob("*.json")):
        try:
            left = msgspec.json.decode(path.read_bytes(), type=_Note)
        except msgspec.MsgspecError:
            left = _Note("note", path.name, "could not be read", "an unknown time")
        store.note(left.event, left.subject, f"{left.detail} (at {left.wall})")
        path.unlink()
        count += 1
    return count
