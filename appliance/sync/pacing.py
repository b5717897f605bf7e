"""How much may be on its way at once, and how large a piece should be.

What this module keeps true: whatever the link's speed, what is sent but not yet at the broker stays short in *time*, so
that a critical result never waits behind seconds of image (promise 4). The window follows the delay that it causes itself,
as TCP Vegas (Brakmo, Peterson 1995) and LEDBAT (RFC 6817) do: it grows while acknowledgements come back within ``TARGET``
of the fastest one seen lately, and shrinks when they take longer. Pieces are what the link carries in ``PIECE`` seconds.
"""

from __future__ import annotations

from collections import deque

TARGET = 0.5
"""Seconds of queue that the window may cause."""

PIECE = 0.4
"""Seconds that one chunk may occupy the link."""

MINIMUM_CHUNK = 2048
_MINIMUM_WINDOW = 8192
_MAXIMUM_WINDOW = 4 << 20
_RATE_SPAN = 5.0


class Pacing:
    """Window (bytes not yet acknowledged by the broker) and chunk size. Times are monotonic seconds given by the caller."""

    def __init__(self, maximum_chunk: int, maximum_messages: int) -> None:
        self._maximum_chunk = maximum_chunk
        self._maximum_messages = maximum_messages
        self.window = float(4 * _MINIMUM_WINDOW)
        self.reset()

    def reset(self) -> None:
        """A new connection: nothing is on its way. Window and rate are kept as a first guess."""
        self._flying: dict[int, tuple[int, float]] = {}
        self._bytes = 0
        self._fastest: deque[tuple[float, float]] = deque()
        self._acknowledged: deque[tuple[float, int]] = deque()
        self._lately = 0
        self.rate = getattr(self, "rate", 0.0)

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
        return self._bytes < self.window and len(self._flying) < self._maximum_messages

    def sent(self, token: int, size: int, now: float) -> None:
        """A message left."""
        self._flying[token] = (size, now)
        self._bytes += size

    def acknowledged(self, token: int, now: float) -> None:
        """The broker has it: adjust window and rate."""
        entry = self._flying.pop(token, None)
        if entry is None:
            return
        size, sent = entry
        self._bytes -= size
        took = now - sent
        self._measure(now, size, took)
        queued = took - self._fastest[0][1]
        limited = self._bytes + size > self.window / 2  # only a window in use can be judged
        if queued < TARGET and limited:
            self.window = min(self.window + size * (1.0 - queued / TARGET), _MAXIMUM_WINDOW)
        elif queued > TARGET:
            self.window = max(self.window - size * min(queued / TARGET - 1.0, 1.0), _MINIMUM_WINDOW)

    def _measure(self, now: float, size: int, took: float) -> None:
        while self._fastest and (self._fastest[-1][1] >= took):
            self._fastest.pop()
        self._fastest.append((now, took))
        while now - self._fastest[0][0] > 12 * _RATE_SPAN:
            self._fastest.popleft()
        self._acknowledged.append((now, size))
        self._lately += size
        while now - self._acknowledged[0][0] > _RATE_SPAN:
            self._lately -= self._acknowledged.popleft()[1]
        first, before = self._acknowledged[0]  # what came before ``first`` is not in the span's bytes
        if len(self._acknowledged) > 2 and now > first:
            self.rate = (self._lately - before) / (now - first)
