"""What a way in is to the soak: a thread that uses it over and over, and what the hub then owes.

What this module keeps true: only what the box said was kept is owed (status 0x0000, a file that it took away, the number of
the capture that a page leads to); everything else that goes wrong is in ``troubles``, nothing is swallowed.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tools.programs import Programs

PATIENCE_S = 90.0


class Owed(msgspec.Struct):
    """What the hub must have in the end: SOP instances with the hash of their pixels, files by hash, captures by id."""

    instances: dict[str, str] = {}
    files: set[str] = set()
    captures: set[str] = set()


class Way(threading.Thread):
    """One way in. ``counts`` says what was done, ``troubles`` what should not have happened."""

    pause_s = (2.0, 12.0)

    def __init__(self, programs: Programs, owed: Owed, seed: int) -> None:
        super().__init__(name=type(self).__name__.lower(), daemon=True)
        self.programs, self.owed = programs, owed
        self.chance = random.Random(f"{self.name} {seed}")
        self.counts: Counter[str] = Counter()
        self.troubles: list[str] = []
        self._end = threading.Event()

    @abstractmethod
    def once(self) -> None:
        """Use it once."""

    def run(self) -> None:
        """Use it until ``stop``."""
        while not self._end.wait(self.chance.uniform(*self.pause_s)):
            try:
                self.once()
            except Exception as error:  # noqa: BLE001 - the edge of a task; every one of them is reported and fails the soak
                self.troubles.append(f"{self.name}: {type(error).__name__}: {error}"[:300])

    def finish(self) -> None:
        """Begin nothing more."""
        self._end.set()

    def stop(self) -> None:
        """Wait for what is going on."""
        self.join(2 * PATIENCE_S)
        if self.is_alive():
            self.troubles.append(f"{self.name}: did not end")

    def until(self, what: str, done: Callable[[], Any]) -> Any:
        """The first true answer; ``TimeoutError`` with ``what`` when there is none in time."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if answer := done():
                return answer
            time.sleep(0.2)
        raise TimeoutError(what)


@contextlib.contextmanager
def working(ways: list[Way]) -> Iterator[None]:
    """All ways in use for the time of the block."""
    for way in ways:
        way.start()
    try:
        yield
    finally:
        for way in ways:
            way.finish()
        for way in ways:
            way.stop()
