"""The pre-roll on the disk: the newest seconds of a live picture, encrypted, recycled, readable after a power cut.

What this module keeps true: what was written whole is read back as it was or not at all; a segment that the power cut off
gives the frames before the cut; what is older than the pre-roll and pinned by nobody goes; with a session's head its key is
gone. A session is one run of one decoder; its segments hold about a second each.

Segment, integers big-endian: 8 bytes magic, 4 bytes segment number; then records of 4 bytes length and AES-256-GCM over
MessagePack. The nonce is the frame's number in the session (8 bytes) and the segment's (4 bytes), both used once; the
segment's beginning is authenticated with each record.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.store.files import Files, OpenFile

MAGIC = b"BEDRING1"
SUFFIX = ".seg"
_START = struct.Struct(">8sI")
_LENGTH = struct.Struct(">I")
_NONCE = struct.Struct(">QI")
_MOST = 64 << 20
"""A record that says it is longer than this is a torn one."""


class RingFrame(msgspec.Struct, frozen=True, array_like=True):
    """One frame of the picture area, as it was cut out.

    ``number`` counts in the session; ``t_ns`` is its time on CLOCK_MONOTONIC; ``lost`` frames are missing just before it;
    ``data`` is JPEG-LS (lossless) of ``rows × columns``, grey or RGB by ``channels``.
    """

    number: int
    t_ns: int
    lost: int
    rows: int
    columns: int
    channels: int
    data: bytes


class Span(NamedTuple):
    """From when to when, on CLOCK_MONOTONIC; ``to_ns`` 0 is open."""

    from_ns: int
    to_ns: int = 0

    def holds(self, first_ns: int, last_ns: int) -> bool:
        """Whether anything from ``first_ns`` to ``last_ns`` falls into it."""
        return last_ns >= self.from_ns and (not self.to_ns or first_ns <= self.to_ns)


class _Segment(NamedTuple):
    path: Path
    first_ns: int
    last_ns: int
    size: int


class RingWriter:
    """Writes a session's frames into ``folder``, which exists.

    Args:
        folder: The session's folder.
        key: 32 bytes, this session's own.
        files: Where it writes.
        keep_s: Seconds of pre-roll.
        most: Bytes on the disk before the oldest goes even earlier; what is pinned stays.
        segment_s: Length of a segment.
        sync_s: While something is pinned open, what is written is made durable this often.
    """

    def __init__(
        self,
        folder: Path,
        key: bytes,
        files: Files,
        *,
        keep_s: float,
        most: int,
        segment_s: float = 1.0,
        sync_s: float = 0.5,
    ) -> None:
        self._folder, self._files, self._cipher = folder, files, AESGCM(key)
        self._keep_ns, self._most = int(keep_s * 1e9), most
        self._segment_ns, self._sync_s = int(segment_s * 1e9), sync_s
        self._closed: deque[_Segment] = deque()
        self._file: OpenFile | None = None
        self._serial = 0
        self._first = self._last = self._size = 0
        self._synced = 0.0
        self._pins: tuple[Span, ...] = ()

    def pin(self, spans: Iterable[Span]) -> None:
        """What must stay, from now on; replaces what was said before."""
        self._pins = tuple(spans)

    @property
    def oldest_ns(self) -> int:
        """Time of the oldest frame there is; 0 without any."""
        return self._closed[0].first_ns if self._closed else self._first if self._file else 0

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(segment.size for segment in self._closed) + self._size

    @property
    def full(self) -> bool:
        """Whether the pinned alone is more than may be there."""
        return self.size > 2 * self._most

    def add(self, frame: RingFrame) -> None:
        """Write one frame; raises ``OSError`` as the disk does, and goes on in a new segment then."""
        if self._file is not None and frame.t_ns - self._first >= self._segment_ns:
            self._roll(self._file)
        file = self._file or self._begin(frame.t_ns)
        plain = msgspec.msgpack.encode(frame)
        head = _START.pack(MAGIC, self._serial)
        sealed = self._cipher.encrypt(_NONCE.pack(frame.number, self._serial), plain, head)
        record = _LENGTH.pack(len(sealed)) + frame.number.to_bytes(8, "big") + sealed
        try:
            file.write(record)
        except OSError:
            self._leave(file)  # behind half a record nothing is read back
            raise
        self._size += len(record)
        self._last = frame.t_ns
        if any(not span.to_ns for span in self._pins) and time.monotonic() - self._synced >= self._sync_s:
            self._sync(file)

    def flush(self) -> None:
        """Make durable what was written."""
        if self._file is not None:
            self._sync(self._file)

    def close(self) -> None:
        """Make everything durable and close."""
        if self._file is not None:
            self._roll(self._file)

    def _begin(self, t_ns: int) -> OpenFile:
        self._serial += 1
        file = self._files.create(self._folder / f"{self._serial:08d}{SUFFIX}")
        try:
            file.write(_START.pack(MAGIC, self._serial))
            self._files.sync_folder(self._folder)
        except OSError:
            file.close()
            raise
        self._file = file
        self._first = self._last = t_ns
        self._size = _START.size
        return file

    def _sync(self, file: OpenFile) -> None:
        file.sync()
        self._synced = time.monotonic()

    def _roll(self, file: OpenFile) -> None:
        self._sync(file)
        self._leave(file)
        self._recycle()

    def _leave(self, file: OpenFile) -> None:
        """What was written of the segment stays; the next frame begins another one."""
        file.close()
        self._file = None
        path = self._folder / f"{self._serial:08d}{SUFFIX}"
        self._closed.append(_Segment(path, self._first, self._last, self._size))
        self._size = 0

    def _recycle(self) -> None:
        """Remove from the oldest on what is too old or too much, up to the first that somebody needs."""
        while self._closed:
            oldest = self._closed[0]
            old = self._last - oldest.last_ns > self._keep_ns
            if not (old or self.size > self._most) or self._pinned(oldest):
                return
            self._files.remove(oldest.path)
            self._closed.popleft()

    def _pinned(self, segment: _Segment) -> bool:
        return any(span.holds(segment.first_ns, segment.last_ns) for span in self._pins)


def read_ring(folder: Path, key: bytes, span: Span) -> Iterator[RingFrame]:
    """The frames of a session within ``span``, oldest first, as far as they were written whole."""
    cipher = AESGCM(key)
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for frame in _segment(path, cipher):
            if span.holds(frame.t_ns, frame.t_ns):
                yield frame


def _segment(path: Path, cipher: AESGCM) -> Iterator[RingFrame]:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        head = file.read(_START.size)
        if len(head) < _START.size or not head.startswith(MAGIC):
            return
        serial = _START.unpack(head)[1]
        while len(begin := file.read(_LENGTH.size + 8)) == _LENGTH.size + 8:
            length = _LENGTH.unpack(begin[: _LENGTH.size])[0]
            sealed = file.read(length) if length <= _MOST else b""
            number = int.from_bytes(begin[_LENGTH.size :], "big")
            try:
                plain = cipher.decrypt(_NONCE.pack(number, serial), sealed, head)
                yield msgspec.msgpack.decode(plain, type=RingFrame)
            except (InvalidTag, ValueError):  # torn by a power cut: nothing after it can be trusted
                return
