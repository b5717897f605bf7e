"""The ring between a sound card's callback and the one who takes the samples from it.

What this module keeps true: ``put`` never waits and makes no array; a block that finds no room is lost as a whole, counted,
and its place is known, so that what follows keeps its time; whoever takes gets every sample that was put, in order, once, and
each gap where it was. One thread puts, one takes, and neither holds a lock: each index is written by one side only, after the
bytes that it stands for (the interpreter's own lock orders them).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

BYTES = 4
"""Of a sample: signed, 32 bits, little-endian, as PortAudio gives them; 16 and 24 bits stand in the upper ones, exactly."""
_GAPS = 64


class Ring:
    """Room for ``frames`` samples of one channel."""

    def __init__(self, frames: int) -> None:
        self._size = frames * BYTES
        self._room = memoryview(bytearray(self._size))
        self._gap_at = array("q", [0] * _GAPS)
        self._gap_frames = array("q", [0] * _GAPS)
        self._put = self._taken = 0  # bytes, ever growing
        self._gaps_put = self._gaps_taken = 0
        self.overflows = 0
        self.lost = 0

    @property
    def frames(self) -> int:
        """Samples put so far, without those lost."""
        return self._put // BYTES

    def put(self, block: bytes | memoryview, frames: int, *, overflow: bool) -> None:
        """Add a block of ``frames`` samples; ``overflow``: samples were lost before it, by the card's own account."""
        if overflow:
            self.overflows += 1
        size = frames * BYTES
        if self._size - (self._put - self._taken) < size:
            self._lose(frames)
            return
        start = self._put % self._size
        first = min(size, self._size - start)
        if first == size:
            self._room[start : start + size] = block
        else:
            view = memoryview(block)
            self._room[start:] = view[:first]
            self._room[: size - first] = view[first:]
        self._put += size  # last: until here nobody looks at these bytes

    def take(self, most: int, *, last: bool = False) -> Iterator[bytes | int]:
        """What came, up to ``most`` samples: bytes of samples, and for each gap the number of samples that are missing.

        A gap is told when something came after it, since it may still grow; or, with ``last`` (nobody puts any more), at once.
        """
        end = min(self._put, self._taken + most * BYTES)
        while True:
            gap = self._gaps_taken % _GAPS
            waiting = self._gaps_taken < self._gaps_put
            if waiting and self._gap_at[gap] == self._taken and (last or self._put > self._taken):
                yield self._gap_frames[gap]
                self._gaps_taken += 1
                continue
            until = min(end, self._gap_at[gap]) if waiting else end
            if until <= self._taken:
                return
            start, stop = self._taken % self._size, (until - 1) % self._size + 1
            room = self._room
            taken = bytes(room[start:stop]) if start < stop else bytes(room[start:]) + bytes(room[:stop])
            self._taken = until  # after the copy: from here the room is the putter's again
            yield taken

    def _lose(self, frames: int) -> None:
        self.lost += frames
        newest = (self._gaps_put - 1) % _GAPS
        full = self._gaps_put - self._gaps_taken >= _GAPS
        if full or (self._gaps_put > self._gaps_taken and self._gap_at[newest] == self._put):
            self._gap_frames[newest] += frames
            return
        slot = self._gaps_put % _GAPS
        self._gap_at[slot], self._gap_frames[slot] = self._put, frames
        self._gaps_put += 1
