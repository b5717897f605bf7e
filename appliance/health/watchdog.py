"""Alive means making progress (promise 9): the service manager's watchdog is fed by work, never by a bare timer.

What this module keeps true:

1. ``WATCHDOG=1`` goes out only if every stage has moved within ``patience_s`` of its work appearing, or has nothing to do.
   One stalled stage stops the ping for all, and the manager starts the program again.
2. A stage that can't be asked (it raises, or its answer never comes because a lock is held) counts as stalled.
3. Only the monotonic clock is used: a wall clock that jumps from 1970 to today neither kills nor keeps alive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from appliance.health.notify import Notifier, watchdog_period

_log = structlog.get_logger(__name__)

Stage = Callable[[], tuple[int, bool]]
"""Gives (a counter that grows with each piece of work done, whether there is work to do now)."""

_UNWATCHED_PERIOD = 10.0
"""Seconds between two looks when no manager wants pings: the console still shows a stalled stage."""


class _Seen:
    """What was last seen of a stage: its counter, and when it last moved or had nothing to do."""

    def __init__(self, now: float) -> None:
        self.counter: int | None = None
        self.since = now


class Watchdog:
    """Looks at every stage twice per period of the manager's watchdog.

    Args:
        stages: By name; each is asked from the watchdog's thread and must answer without waiting for its own work.
        notify: Whom to tell.
        patience_s: Seconds that a stage may work on one piece without its counter moving. More than the longest legal
            piece of work (``models.time_limit`` for reading); the manager acts ``patience_s`` + ``WatchdogSec`` after
            the last progress at the latest.
        period_s: Seconds within which the manager wants a ping; read from the environment when ``None``.
        monotonic: The clock, in seconds.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        notify: Notifier,
        patience_s: float,
        *,
        period_s: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages = dict(stages)
        self._notify = notify
        self._patience = patience_s
        period = watchdog_period() if period_s is None else period_s
        self.interval_s = (_UNWATCHED_PERIOD if period is None else period) / 2
        self._monotonic = monotonic
        now = monotonic()
        self._seen = {name: _Seen(now) for name in self._stages}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="watchdog", daemon=True)
        self.pings = 0
        self.failures = 0
        self.stalled: tuple[str, ...] = ()

    def start(self) -> None:
        """Start looking; the first look is at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking and pinging."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def look(self) -> tuple[str, ...]:
        """Look at every stage now, ping if all is well; the stages that stand still."""
        stalled = tuple(name for name, stage in self._stages.items() if not self._moves(name, stage))
        if stalled != self.stalled:
            self._tell(stalled)
        self.stalled = stalled
        if not stalled:
            self.pings += self._notify.alive()
        return stalled

    def _moves(self, name: str, stage: Stage) -> bool:
        seen = self._seen[name]
        try:
            counter, has_work = stage()
        except Exception:  # noqa: BLE001 - the edge of this task: a stage that can't answer is not known to be alive
            self.failures += 1
        else:
            if not has_work or counter != seen.counter:
                seen.since = self._monotonic()
            seen.counter = counter
        return self._monotonic() - seen.since <= self._patience

    def _tell(self, stalled: tuple[str, ...]) -> None:
        if stalled:
            _log.error("no progress, no ping", stages=stalled, patience_s=self._patience)
            self._notify.status(f"no progress for {self._patience:g} s: {', '.join(stalled)}")
        else:
            _log.info("progress again", stages=self.stalled)
            self._notify.status("every stage makes progress")

    def _serve(self) -> None:
        while True:
            self.look()
            if self._ended.wait(self.interval_s):
                return
