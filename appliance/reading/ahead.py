"""Lets the reading process decode a capture while the journal still waits for the disk.

What this module keeps true: looking ahead changes no answer and is blamed for nothing: a capture that is read afterwards gets
the same reading whether or not it was looked at, and what goes wrong meanwhile is forgotten. It happens only while the
process has nothing else to do, so that a bulk import is not decoded twice.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import msgspec

from appliance.inference.worker import Result
from appliance.reading.requests import ReadRequest, known_of
from appliance.records import Capture

_PRIORITY = 50
"""After every capture, before what is live."""


class Idle(Protocol):
    """The worker, as far as it is needed here: see ``appliance.inference.worker.Worker``."""

    @property
    def idle(self) -> bool: ...  # noqa: D102

    def submit(  # noqa: D102
        self, request: bytes, priority: int, timeout_s: float, *, preview: str = ""
    ) -> Future[Result]: ...


class LookAhead:
    """Told of each capture whose bytes are in the vault and whose row is not yet written.

    Args:
        worker: The reading process.
        time_limit_s: As of a reading.
        behind: Whether captures wait to be read.
    """

    def __init__(self, worker: Idle, time_limit_s: float, behind: Callable[[], bool]) -> None:
        self._worker = worker
        self._time_limit_s = time_limit_s
        self._behind = behind

    def __call__(self, capture: Capture) -> None:
        """Look at it now, if nothing else is to be done."""
        if self._worker.idle and not self._behind():
            request = ReadRequest(known=known_of(capture), sha256=capture.sha256, ahead=True)
            self._worker.submit(msgspec.msgpack.encode(request), _PRIORITY, self._time_limit_s, preview="ahead")
