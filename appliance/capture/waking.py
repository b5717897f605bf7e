"""Waiting for a socket and for other threads at once.

What this module keeps true: a wake-up sent before or during the wait ends it; one sent after ``close`` is ignored.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any


class Waker:
    """Ends a ``poll`` from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        """End the wait."""
        with self._lock:  # a closed descriptor's number may already be another file's
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def rest(self) -> None:
        """Take the wake-ups there are."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        """Give the descriptor back; more than once is allowed."""
        with self._lock:
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)


class SignallingQueue(queue.Queue[Any]):
    """Calls ``signal`` after each ``put``."""

    def __init__(self, signal: Callable[[], None]) -> None:
        super().__init__()
        self._signal = signal

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """See ``queue.Queue``."""
        super().put(item, block, timeout)
        self._signal()
