"""Critical results that nobody has taken note of are raised again at the bedside; the hub does the same on its side.

What this module keeps true: it counts by the monotonic clock, so a wall clock that jumps raises nothing early and keeps
nothing back. A capture of an earlier boot has waited at least since this one began. Taken note of means: the hub sent an
acknowledgement or a review, or the health worker answered the reading at the console. Each time in a row it waits
longer, up to ``_LONGEST`` times the first, so that log and audit log stay readable.
"""

from __future__ import annotations

import structlog

from appliance.records import Moment
from appliance.store import audit
from appliance.store.journal import Transaction
from appliance.store.store import Store

_log = structlog.get_logger(__name__)

_LONGEST = 16


class Escalation:
    """Raises what waits. ``after``: minutes without a human's word; 0 raises nothing."""

    def __init__(self, store: Store, after: float) -> None:
        self._store = store
        self._after_ns = round(after * 60e9)
        self._raised: dict[
            str, tuple[int, int]
        ] = {}  # capture: monotonic ns when last raised, how often since the start

    def tend(self) -> list[str]:
        """Raise what is due and calm what was answered; the captures raised now. Raises ``StoreError``."""
        if not self._after_ns:
            return []
        store, now = self._store, self._store.now()
        waiting = [entry for entry in store.captures.unanswered() if not store.inbox.noted(entry.capture.id)]
        names = {entry.capture.id for entry in waiting}
        answered = set(store.captures.raised()) - names
        if answered:
            store.journal.write(lambda tx: self._calm(tx, answered))
        self._raised = {name: said for name, said in self._raised.items() if name in names}
        due = [entry.capture.id for entry in waiting if self._due(entry.capture.id, entry.capture.received, now)]
        if due:
            store.journal.write(lambda tx: self._raise(tx, due, now))
            for name in due:
                self._raised[name] = (now.monotonic_ns, self._raised.get(name, (0, 0))[1] + 1)
            _log.warning("critical results that nobody has taken note of", captures=due)
        return due

    def _due(self, name: str, received: Moment, now: Moment) -> bool:
        if name in self._raised:
            last, times = self._raised[name]
            return now.monotonic_ns - last >= self._after_ns * min(1 << times, _LONGEST)
        since = received.monotonic_ns if received.boot_id == now.boot_id else 0
        return now.monotonic_ns - since >= self._after_ns

    def _calm(self, tx: Transaction, names: set[str]) -> None:
        for name in names:
            self._store.captures.calm(tx, name)

    def _raise(self, tx: Transaction, names: list[str], now: Moment) -> None:
        for name in names:
            self._store.captures.raise_again(tx, name)
            audit.append(tx, now, "raised", name, "critical, and nobody has taken note")
