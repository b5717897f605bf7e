"""How much the box's processes hold over time, and whether it grows.

What this module keeps true: every process that the box started is counted under what it does; a trend is the Theil–Sen slope
(median of all pairs' slopes, Sen 1968) with its 95 % interval, over the samples after the warm-up, of the processes that were
there from the first of these samples to the last.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
import psutil

EVERY_S = 10.0
WARM = 0.25
"""The first quarter is for caches to fill."""


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """Of one process: resident megabytes (median, most), growth in MB an hour [low, high], most open files and threads."""

    median_mb: float
    most_mb: float
    mb_an_hour: float
    low: float
    high: float
    files: int
    threads: int


class Watch:
    """Samples programs (name → process id) and all that they started until ``stop``."""

    def __init__(self, roots: Mapping[str, int], every_s: float = EVERY_S) -> None:
        self._roots = {name: psutil.Process(pid) for name, pid in roots.items()}
        self._every_s = every_s
        self._samples: dict[tuple[str, int], list[tuple[float, float, int, int]]] = defaultdict(list)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="memory", daemon=True)
        self._rounds = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> dict[str, Trend]:
        """End; the trends of the processes that were there all the time after the warm-up."""
        self._end.set()
        self._thread.join()
        first = int(self._rounds * WARM)
        lasting = {key: rows for key, rows in self._samples.items() if len(rows) >= self._rounds - first - 1}
        return {name: trend(rows[-(self._rounds - first) :]) for (name, _), rows in lasting.items()}

    def _serve(self) -> None:
        begun = time.monotonic()
        while not self._end.wait(self._every_s):
            self._rounds += 1
            at = (time.monotonic() - begun) / 3600
            for root, process in self._all():
                try:
                    with process.oneshot():
                        row = (at, process.memory_info().rss / 1e6, process.num_fds(), process.num_threads())
                        name = _role(root, process)
                except psutil.NoSuchProcess:
                    continue
                self._samples[name, process.pid].append(row)

    def _all(self) -> Iterator[tuple[str, psutil.Process]]:
        for name, root in self._roots.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                yield from ((name, one) for one in (root, *root.children(recursive=True)))


def _role(root: str, process: psutil.Process) -> str:
    """What a process does: the program itself, or the last module that it was told to run."""
    modules = [one.partition(":")[0] for one in process.cmdline() if one.startswith("appliance.")]
    return f"{root}: {modules[-1]}" if modules else root


def trend(rows: list[tuple[float, float, int, int]]) -> Trend:
    """Of samples (hours, MB, files, threads)."""
    from scipy.stats import theilslopes

    hours, megabytes = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    slope, _, low, high = theilslopes(megabytes, hours) if len(rows) > 2 else (0.0, 0.0, 0.0, 0.0)
    return Trend(
        median_mb=round(float(np.median(megabytes)), 1),
        most_mb=round(float(megabytes.max()), 1),
        mb_an_hour=round(float(slope), 2),
        low=round(float(low), 2),
        high=round(float(high), 2),
        files=max(row[2] for row in rows),
        threads=max(row[3] for row in rows),
    )
