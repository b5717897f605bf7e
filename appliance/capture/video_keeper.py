"""Keeps the freezes and clips that nobody decides about, and those that a power cut left.

What this module keeps true: a take is given up only when there is nothing of it or it is kept; whatever stands in the way is
tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import structlog

from appliance.capture.intake import IntakeError
from appliance.capture.video_multiframe import NoFrames
from appliance.capture.video_scan import NotNow
from appliance.store.errors import StoreError

_log = structlog.get_logger(__name__)
_EVERY_S = 5.0


class Keeper:
    """``keep`` keeps a take by its id; ``undecided`` names those that waited for too long."""

    def __init__(
        self,
        keep: Callable[[str], object],
        undecided: Callable[[], list[str]],
        stopping: threading.Event,
        every_s: float = _EVERY_S,
    ) -> None:
        self._keep, self._undecided, self._stopping, self._every_s = keep, undecided, stopping, every_s

    def run(self, left: Iterable[str]) -> None:
        """Keep ``left`` and then whatever becomes overdue, until told to stop."""
        overdue = set(left)
        while True:
            overdue = {take_id for take_id in overdue if not self._settled(take_id)}
            if self._stopping.wait(self._every_s):
                return
            overdue.update(self._undecided())

    def _settled(self, take_id: str) -> bool:
        try:
            self._keep(take_id)
        except (NoFrames, NotNow):
            return True
        except (IntakeError, StoreError, OSError) as error:
            _log.error("ultrasound not kept; it is tried again", take=take_id, error=str(error))
            return False
        _log.info("ultrasound kept without a word", take=take_id)
        return True
