"""How much the daemon writes to its disk each day: flash wears out, and a fault that writes all day ends a box in a year.

What this module keeps true: what is counted is what the kernel counts (``/proc/self/io``, ``write_bytes``; proc(5)), less the
blobs of captures, which are what the box is for; counting costs one row a ``EVERY`` seconds. Nothing is refused when a day
goes over its budget: it is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from appliance.store import usage
from appliance.store.store import MB, Store

EVERY = 600.0
"""Seconds between two entries: each costs some pages itself."""


def write_bytes(process: str = "self", root: Path = Path("/")) -> int | None:
    """Bytes that a process has caused to be written to disks, or ``None`` where the kernel doesn't say."""
    try:
        lines = (root / "proc" / process / "io").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    return int(fields["write_bytes"]) if fields.get("write_bytes", "").isdigit() else None


class DiskWrites:
    """Keeps the day's count. ``measured`` gives the kernel's number."""

    def __init__(
        self,
        store: Store,
        budget: int,
        day: Callable[[], str],
        *,
        measured: Callable[[], int | None] = write_bytes,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._budget = budget * MB
        self._day = day
        self._measured = measured
        self._monotonic = monotonic
        self._before = (measured(), store.vault.written)
        self._at = monotonic()

    def tend(self, *, now: bool = False) -> None:
        """Enter what was written since the last time, once in a while or ``now``; raises ``StoreError``."""
        if not now and self._monotonic() - self._at < EVERY:
            return
        written, blobs = self._measured(), self._store.vault.written
        (before, blobs_before), self._before, self._at = self._before, (written, blobs), self._monotonic()
        if written is None or before is None:
            return
        kept = min(blobs - blobs_before, written - before)
        day = self._day()
        self._store.journal.write(lambda tx: usage.add_written(tx, day, written - before, kept))

    def problem(self) -> str:
        """What to say when today is over its budget; empty while it is not."""
        written, kept = usage.written_on(self._store.journal, self._day())
        if not self._budget or written - kept <= self._budget:
            return ""
        return (
            f"{(written - kept) // MB} MB were written today besides captures (storage.write_budget is "
            f"{self._budget // MB}): the disk wears out early; send the log of today to support."
        )
