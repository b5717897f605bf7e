"""The rows a benchmark yields, and the fair way to time two things against each other.

What this module keeps true: a ratio is always "ours over the peer, more is better"; medians are of interleaved runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table.

    ``ours`` and ``peer`` are medians in ``unit``; ``limit`` is the least ``ratio`` that passes (``None``: for
    information only); ``n`` is how many runs stand behind each median.
    """

    name: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    limit: float | None
    ratio: float | None
    n: int

    @property
    def passed(self) -> bool:
        """Whether the ratio reaches the limit; a row without a limit passes."""
        return self.limit is None or (self.ratio is not None and self.ratio >= self.limit)


def row(
    name: str,
    unit: str,
    ours: float,
    peer: float | None = None,
    *,
    peer_name: str = "",
    limit: float | None = None,
    better: Literal["lower", "higher"] = "lower",
    n: int = 1,
) -> Row:
    """A row with its ratio worked out.

    Times and bytes are ``better="lower"`` (ratio = peer / ours), rates are ``better="higher"`` (ratio = ours / peer).
    An absolute target is written as the peer: ``peer=<target>, peer_name="target", limit=1.0``.
    """
    ratio = None
    if peer is not None:
        over, under = (peer, ours) if better == "lower" else (ours, peer)
        ratio = over / under if under else float("inf")
    return Row(name=name, unit=unit, ours=ours, peer=peer, peer_name=peer_name, limit=limit, ratio=ratio, n=n)


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 2,
    inner: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each of ``runs``, called in turn ``rounds`` times; a sample is the mean of ``inner`` calls.

    The order turns by one in each round, so that none always follows the same neighbour. ``clock`` may be
    ``time.process_time`` for work on one core: what the processor spent, whatever else it had to do.
    """
    for run in runs.values():
        for _ in range(warm_up):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            run = runs[name]
            start = clock()
            for _ in range(inner):
                run()
            seconds[name].append((clock() - start) / inner)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each list."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def speedup(seconds: Mapping[str, list[float]], ours: str, peer: str) -> float:
    """The median over rounds of peer / ours: steadier than a ratio of medians when the machine's speed drifts."""
    return statistics.median(theirs / mine for mine, theirs in zip(seconds[ours], seconds[peer], strict=True))
