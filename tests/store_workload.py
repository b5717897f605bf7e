"""A box's life in small, written to a folder, with a line in a file for everything that was acknowledged.

``python -m tests.store_workload FOLDER ACKNOWLEDGED``: run under ``strace`` (``tests.recorded_writes``), so that the order of
acknowledgements and system calls is known.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from appliance.records import Triage
from appliance.store.retention import Retention
from appliance.store.store import Store
from tests.boxes import now, open_store, report

CONTENTS = (b"first", random.Random(1).randbytes(1_100_000), b"third", b"fourth " * 900, b"fifth")
KEYS = ("capture", "outbox", "transfer", "removed", "audit")


class Acknowledged:
    """Says what the store has confirmed, one line a fact."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, **facts: Any) -> None:
        """The facts hold from here on, whatever happens."""
        os.write(self._fd, json.dumps(facts).encode() + b"\n")


def live(folder: Path, said: Acknowledged) -> None:
    """Keep, read, report, send in part, deliver, remove, note; twice opened, with checkpoints between and within."""
    store = open_store(folder)
    frequent_checkpoints(store)
    for number, content in enumerate(CONTENTS):
        identity = report(store, content, Triage.CRITICAL if number == 2 else Triage.ROUTINE, b"original " + content)
        said.say(
            capture=[identity, "reported"], outbox=outbox_of(store, identity), transfer=transfer_of(store, identity)
        )
        store.note("tried", identity, f"entry {number}")
        said.say(audit=number + 1)
        if number == 1:
            said_so_far(store, identity, said)
        if number == 2:
            store.close()
            store = open_store(folder)
            frequent_checkpoints(store)
    Retention(store, 1)._remove(list(store.captures.removable()), "age", now())
    said.say(removed=[entry.capture.id for entry in store.captures.latest() if entry.removed])
    store.close()


def said_so_far(store: Store, identity: str, said: Acknowledged) -> None:
    """The hub has half of the blob, then all, then everything: the capture is delivered."""
    (item,) = [one for one in store.outbox.waiting() if one.capture_id == identity]
    (transfer,) = [one for one in store.transfers.waiting() if one.capture_id == identity]
    store.journal.write(lambda tx: store.transfers.confirm(tx, transfer.id, transfer.sha256, transfer.size // 2))
    said.say(transfer=transfer_of(store, identity))
    store.journal.write(lambda tx: store.outbox.close_delivered(tx, [(item.id, item.sha256)]))
    said.say(outbox=outbox_of(store, identity))
    store.journal.write(
        lambda tx: (
            store.transfers.close(tx, transfer.id, transfer.sha256, "delivered"),
            store.captures.delivered_if_complete(tx, identity),
        )
    )
    said.say(capture=[identity, "delivered"], transfer=transfer_of(store, identity))


def outbox_of(store: Store, identity: str) -> list[str]:
    """[id, state] of a capture's message."""
    (row,) = store.journal.all("SELECT id, state FROM outbox WHERE capture_id = ?", identity)
    return list(row)


def transfer_of(store: Store, identity: str) -> list[Any]:
    """[id, state, bytes confirmed] of a capture's transfer."""
    (row,) = store.journal.all("SELECT id, state, confirmed FROM transfer WHERE capture_id = ?", identity)
    return list(row)


def frequent_checkpoints(store: Store) -> None:
    """Every 8 pages instead of every 2,000: the database file is written, and the WAL begun anew, many times."""
    store.journal._connection.execute("PRAGMA wal_autocheckpoint=8")


if __name__ == "__main__":
    live(Path(sys.argv[1]), Acknowledged(Path(sys.argv[2])))
