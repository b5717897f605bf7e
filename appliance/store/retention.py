"""Retention: what may leave the box, and when.

Rules:

1. Only a capture that the hub has confirmed (``delivered``) loses its files; its row, reading and reviews stay.
2. Those older than ``keep_days`` go, in the order they came. Age is known only while the clock is trusted: a box that wakes
   in 1970, or ten years ahead, removes nothing by age. A capture that came while the clock was not trusted is as old as
   the next one that came while it was.
3. When free space nears the watermark (``NEAR`` times ``storage.refuse_below``), the oldest go whatever their age.
4. A critical capture that no human has taken note of stays; so does one that the reviewer called critical and nobody at
   the bedside has answered.
5. The journal says so first, in one transaction with the audit log; then the file is unlinked. What a power cut leaves
   between the two is removed at the next start (``Store._repair``). With the file goes its wrapped key: nothing can read
   what may be left of it in the flash.
"""

from __future__ import annotations

import datetime as dt
from typing import Literal

import structlog

from appliance.records import Moment, Triage
from appliance.store import audit
from appliance.store.captures import Entry
from appliance.store.journal import Transaction
from appliance.store.store import Store

_log = structlog.get_logger(__name__)

NEAR = 1.5
BATCH = 50
"""Most captures removed in one transaction: others write meanwhile."""

Reason = Literal["age", "space"]


class Retention:
    """Removes what may go. ``keep_days``: how long delivered captures stay at least while there is room."""

    def __init__(self, store: Store, keep_days: int) -> None:
        self._store = store
        self._keep = dt.timedelta(days=keep_days)
        self.removed = 0

    def tend(self) -> list[str]:
        """Remove what may go now; the captures whose files went. Raises ``StoreError`` or ``OSError``."""
        self._spent()
        now = self._store.now()
        gone = self._remove(self._old(now), "age", now)
        while self._short() > 0:
            some = self._remove(self._oldest(), "space", now)
            if not some:
                break
            gone += some
        self.removed += len(gone)
        return gone

    def _short(self) -> int:
        """Bytes that are missing until free space is far enough above the watermark."""
        return round((NEAR - 1) * self._store.refuse_below) - self._store.free()

    def _spent(self) -> None:
        while spent := self._store.journal.write(self._store.transfers.remove_spent):
            self._unlink(spent)

    def _remove(self, chosen: list[Entry], reason: Reason, now: Moment) -> list[str]:
        store = self._store
        if not chosen:
            return []

        def mark(tx: Transaction) -> list[str]:
            hashes = []
            for entry in chosen:
                store.captures.removed(tx, entry.capture.id, now.wall)
                hashes += [entry.capture.sha256, *store.transfers.removed(tx, entry.capture.id)]
                audit.append(tx, now, "removed", entry.capture.id, f"{reason} {entry.capture.size} bytes")
            return hashes

        self._unlink(store.journal.write(mark))
        _log.info("removed from the box", captures=len(chosen), reason=reason)
        return [entry.capture.id for entry in chosen]

    def _unlink(self, hashes: list[str]) -> None:
        """Remove blobs that nothing refers to any more: two captures may have one preview."""
        for sha256 in hashes:
            needed = self._store.journal.one(
                "SELECT 1 FROM capture WHERE sha256 = ?1 AND removed = ''"
                " UNION ALL SELECT 1 FROM transfer WHERE sha256 = ?1 AND removed = 0",
                sha256,
            )
            if needed is None:
                self._store.vault.remove(sha256)

    def _old(self, now: Moment) -> list[Entry]:
        """The first of those that came more than ``keep_days`` ago."""
        chosen: list[Entry] = []
        if now.uncertainty_s is None:
            return chosen
        known, until = now, 0  # ``known``: a moment not before that of any capture up to ``until``
        for entry in self._store.captures.removable():
            if entry.capture.received.uncertainty_s is not None:
                known = entry.capture.received
            elif entry.sequence > until:
                known, until = self._next_known(entry.sequence, now)
            doubt = dt.timedelta(seconds=(known.uncertainty_s or 0.0) + now.uncertainty_s)
            if _time(now.wall) - _time(known.wall) - doubt <= self._keep or len(chosen) == BATCH:
                break
            if not self._must_stay(entry.capture.id):
                chosen.append(entry)
        return chosen

    def _next_known(self, sequence: int, now: Moment) -> tuple[Moment, int]:
        for later in self._store.captures.after(sequence):
            if later.capture.received.uncertainty_s is not None:
                return later.capture.received, later.sequence
        return now, sequence

    def _oldest(self) -> list[Entry]:
        """As many of the first as free the space that is missing."""
        chosen: list[Entry] = []
        wanted = self._short()
        for entry in self._store.captures.removable():
            if wanted <= 0 or len(chosen) == BATCH:
                break
            if not self._must_stay(entry.capture.id):
                wanted -= entry.capture.size
                chosen.append(entry)
        return chosen

    def _must_stay(self, capture_id: str) -> bool:
        store = self._store
        reviews = store.inbox.reviews(capture_id)
        if store.inbox.noted(capture_id):
            return False
        if reviews and reviews[-1].triage is Triage.CRITICAL:
            answered = "SELECT 1 FROM audit WHERE event = 'agreement' AND subject = ?"
            return store.journal.one(answered, capture_id) is None
        critical = "SELECT 1 FROM reading WHERE capture_id = ? AND triage = 'critical'"
        return not reviews and store.journal.one(critical, capture_id) is not None


def _time(wall: str) -> dt.datetime:
    return dt.datetime.fromisoformat(wall.replace("Z", "+00:00"))
