"""How much may be on its way at once, and how large a piece should be.

What this module keeps true: whatever the link's speed, what is sent but not yet at the broker stays short in *time*, so
that a critical result never waits behind seconds of image (promise 4), and the link never runs dry while there is
something to send. As BBR does (Cardwell, Cheng, Gunn, Yeganeh, Jacobson 2016), two things are measured: the rate at which
acknowledgements come back when the window was in use, and the shortest way there and back. The window is what the link
carries in that way, a piece (which is acknowledged only whole), and ``TARGET`` seconds more: no more than keeps the line
busy, because all of it is lost, and sent again, when the connection dies. The way is measured with nothing else in the
line: when there was a pause, or, in a long backlog, by letting the line run empty every ``PROBE_EVERY`` seconds.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

TARGET = 0.03
"""Seconds of queue that the window causes."""

GROWING = 0.3
"""The same while the measured rate still grows, so that a fast line is found in seconds."""

PIECE = 0.2
"""Seconds that one chunk may occupy the link: what a cut destroys is half of it on average, and its header is 1/30."""

PROBE_EVERY = 60.0
"""Seconds after which a measured way counts as old."""

MINIMUM_CHUNK = 2048
_MINIMUM_WINDOW = 4096
_FIRST_WINDOW = 32768
_MAXIMUM_WINDOW = 4 << 20
_RATE_SPAN = 5.0
_GROWTH, _ROUNDS = 1.15, 3.0
"""A rate that grew by this factor within so many round trips still grows."""
_MAXIMUM_WAY = 5.0


class _Flying(NamedTuple):
    """A message on its way, and what had been acknowledged when it left: bytes, and when the last of them."""

    size: int
    sent: float
    delivered: int
    delivered_at: float


class Pacing:
    """Window (bytes not yet acknowledged by the broker) and chunk size. Times are monotonic seconds given by the caller."""

    def __init__(self, maximum_chunk: int, maximum_messages: int) -> None:
        self._maximum_chunk = maximum_chunk
        self._maximum_messages = maximum_messages
        self.window = float(_FIRST_WINDOW)
        self.rate = self._grown_to = 0.0
        self.reset()

    def reset(self, maximum_messages: int | None = None) -> None:
        """A new connection: nothing is on its way. Window and rate are kept as a first guess."""
        self._maximum_messages = maximum_messages or self._maximum_messages
        self._flying: dict[int, _Flying] = {}
        self._bytes = 0
        self._delivered = 0
        self._delivered_at = 0.0
        self._began = 0
        self._rates: deque[tuple[float, float]] = deque()
        self._shortest = (_MAXIMUM_WAY, 0)
        self._shortest_at: float | None = None
        self._emptying = False
        self._grown_at = float("-inf")

    @property
    def flying(self) -> int:
        """Bytes sent and not yet acknowledged."""
        return self._bytes

    @property
    def chunk(self) -> int:
        """Bytes that the next chunk should have at most."""
        if self.rate <= 0:
            return min(self._maximum_chunk, 2 * MINIMUM_CHUNK)
        return int(min(self._maximum_chunk, max(MINIMUM_CHUNK, self.rate * PIECE)))

    def room(self) -> bool:
        """Whether anything may be sent now."""
        if self._emptying and self._flying:
            return False
        return self._bytes < self.window and len(self._flying) < self._maximum_messages

    def sent(self, token: int, size: int, now: float) -> None:
        """A message left."""
        if not self._flying:  # the line is empty: the way can be measured, and the rate's clock starts anew
            self._delivered_at, self._began = now, self._delivered
            if self._emptying or self._shortest_at is None or now - self._shortest_at > PROBE_EVERY:
                self._shortest, self._shortest_at, self._emptying = (_MAXIMUM_WAY, 0), now, False
        self._flying[token] = _Flying(size, now, self._delivered, self._delivered_at)
        self._bytes += size

    def acknowledged(self, token: int, now: float) -> None:
        """The broker has it: measure the way and the rate, set the window."""
        entry = self._flying.pop(token, None)
        if entry is None:
            return
        first_round = entry.delivered == self._began  # it filled an empty line: the way there is in its rate
        in_use = self._bytes >= min(self.window, 2 * self.chunk) and not first_round
        self._bytes -= entry.size
        self._delivered += entry.size
        self._delivered_at = now
        took = max(now - entry.sent, 0.0)
        self._shortest = min(self._shortest, (took, entry.size))
        if self._shortest_at is not None and now - self._shortest_at > PROBE_EVERY:
            self._emptying = True
        if now > entry.delivered_at:
            self._measured((self._delivered - entry.delivered) / (now - entry.delivered_at), now, in_use=in_use)
        ahead = TARGET if now > self._grown_at + _ROUNDS * took else GROWING
        wanted = self.rate * (self._way() + ahead) + self.chunk
        self.window = min(max(wanted, _MINIMUM_WINDOW), _MAXIMUM_WINDOW)

    def _way(self) -> float:
        """Seconds there and back, without the time that the message itself took to pass (but half of all, at least)."""
        took, size = self._shortest
        return max(took - size / self.rate, took / 2) if self.rate > 0 else took

    def _measured(self, rate: float, now: float, *, in_use: bool) -> None:
        """Keep the largest rate of the last ``_RATE_SPAN`` seconds; one measured while little was sent only raises it."""
        if not in_use and rate < self.rate:
            return
        while self._rates and self._rates[-1][1] <= rate:
            self._rates.pop()
        self._rates.append((now, rate))
        while now - self._rates[0][0] > _RATE_SPAN:
            self._rates.popleft()
        self.rate = self._rates[0][1]
        if self.rate > _GROWTH * self._grown_to:
            self._grown_to, self._grown_at = self.rate, now
        elif self.rate < self._grown_to / _GROWTH:
            self._grown_to = self.rate
