"""When each frame was: strictly increasing times of the box's monotonic clock, and how many frames are missing between them.

What this module keeps true: a frame's time is later than that of the frame before; a source's own times (a driver's buffer
times, a stream's presentation times) give the spacing as long as they keep step with the box's clock, and nothing else does;
a frame that should have come and did not is counted as lost, one left out on purpose is not.
"""

from __future__ import annotations

from typing import NamedTuple

_APART_NS = 250_000_000
"""A source's time that strays this far from the box's clock is no longer believed."""
_FOLLOWS = 64
"""The share of its straying that is made good with each frame: clocks drift."""
_LEAST_NS = 1_000
_PAUSE_NS = 2_000_000_000
"""A longer gap is a pause of the source, not a row of lost frames."""


class Stamp(NamedTuple):
    """``t_ns`` of CLOCK_MONOTONIC; ``lost`` frames before this one; ``take`` is false for one too many (the limit)."""

    t_ns: int
    lost: int
    take: bool


class Timeline:
    """Gives frames their times. ``rate``: the source's frames a second, 0 when unknown; ``limit``: most taken, 0 for all."""

    def __init__(self, rate: float, limit: float = 0.0) -> None:
        self._period = 1e9 / rate if rate > 0 else 0.0
        self._limit = 1e9 / limit if limit > 0 else 0.0
        self._offset: int | None = None
        self._last = 0
        self._source = -1
        self._taken = 0.0

    def stamp(self, now_ns: int, source_ns: int | None = None) -> Stamp:
        """The time of a frame that arrived at ``now_ns``; ``source_ns``: what the source says, on any origin."""
        before, said = self._last, self._source
        self._last = self._time(now_ns, source_ns)
        gap = self._last - before
        if source_ns is not None and said >= 0 and source_ns > said:
            gap = source_ns - said
        lost = 0
        if before and self._period and gap < _PAUSE_NS:
            lost = max(0, round(gap / self._period) - 1)
        return Stamp(self._last, lost, self._wanted())

    def _time(self, now_ns: int, source_ns: int | None) -> int:
        made = now_ns
        if source_ns is not None and source_ns > self._source:
            self._source = source_ns
            if self._offset is None:
                self._offset = now_ns - source_ns
            made = source_ns + self._offset
            late = now_ns - made
            if abs(late) > _APART_NS:
                made, self._offset = now_ns, now_ns - source_ns
            else:
                self._offset += late // _FOLLOWS
        return max(made, self._last + _LEAST_NS)

    def _wanted(self) -> bool:
        if not self._limit:
            return True
        if self._last < self._taken + 0.9 * self._limit:
            return False
        self._taken = max(self._taken + self._limit, self._last - 0.5 * self._limit)  # keeps the mean at the limit
        return True
