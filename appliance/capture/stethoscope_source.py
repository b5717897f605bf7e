"""The recording process as seen by the one who started it: blocks of samples, or why there are none.

What this module keeps true: whatever happens to the sound library (no device, pulled out, crashed, hung), ``blocks`` ends
within seconds and says why; a process that does not end by itself is killed.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Protocol

import msgspec

from appliance.capture.stethoscope_messages import (
    END,
    FAILED,
    GAP,
    INPUTS,
    OPENED,
    SAMPLES,
    Counts,
    Failure,
    Input,
    Opened,
    Wanted,
)

_PROGRAM = "appliance.capture.stethoscope_device"
_OPEN_S = 15.0
_STALLED_S = 8.0
_END_S = 3.0
_LONGEST_MESSAGE = 1 << 24
_AGAIN = Failure(
    code="library", what="the sound library ended unexpectedly", remedy="try again; if it stays, run bedside doctor"
)


class NoSound(Exception):  # noqa: N818 - the condition's name
    """There is nothing to record from, or no more; ``failure`` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.what}; {failure.remedy}")
        self.failure = failure


class Block(msgspec.Struct, frozen=True):
    """Samples (signed 32 bits, little-endian) that follow ``gap`` samples for which there was no room."""

    samples: bytes
    gap: int = 0


class Source(Protocol):
    """Where sound comes from."""

    def open(self) -> Opened:
        """Begin; raises ``NoSound``."""

    def blocks(self) -> Iterator[Block | None]:
        """What comes, until ``stop``; ``None`` when nothing came for a moment. Raises ``NoSound`` when it ends by itself."""

    def stop(self) -> None:
        """Let ``blocks`` end with what is still on its way; from any thread, more than once."""

    def close(self) -> Counts:
        """Let everything go and say what was lost."""


class ProcessSource:
    """The box's sound input, recorded by a process of its own."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._process: subprocess.Popen[bytes] | None = None
        self._counts = Counts()

    def open(self) -> Opened:
        """See ``Source``. The calling thread must live as long as the recording (the process is killed with it)."""
        self._process = _start("record", msgspec.json.encode(self._wanted).decode())
        kind, body = self._message(_OPEN_S)
        if kind != OPENED:
            raise NoSound(_failure(kind, body))
        return msgspec.json.decode(body, type=Opened)

    def blocks(self) -> Iterator[Block | None]:
        """See ``Source``."""
        gap, heard = 0, time.monotonic()
        while True:
            kind, body = self._message(0.25, optional=True)
            if kind == SAMPLES:
                yield Block(body, gap)
                gap, heard = 0, time.monotonic()
            elif kind == GAP:
                gap += struct.unpack(">QI", body)[0]
            elif kind == END:
                self._counts = msgspec.json.decode(body, type=Counts)
                if gap:
                    yield Block(b"", gap)
                kind, body = self._message(_END_S, optional=True)
                if body:
                    raise NoSound(_failure(kind, body))
                return
            elif kind:
                raise NoSound(_failure(kind, body))
            elif time.monotonic() - heard > _STALLED_S:
                raise NoSound(
                    Failure(
                        code="library", what="the sound library hangs", remedy="unplug the stethoscope, then try again"
                    )
                )
            else:
                yield None

    def stop(self) -> None:
        """See ``Source``."""
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()

    def close(self) -> Counts:
        """See ``Source``."""
        if self._process is not None:
            _end(self._process)
            self._process = None
        return self._counts

    def _message(self, patience: float, *, optional: bool = False) -> tuple[int, bytes]:
        """The next message; kind 0 when none came in ``patience`` seconds and it is ``optional``, or when the process ended."""
        if self._process is None or self._process.stdout is None:
            return FAILED, b""
        fd = self._process.stdout.fileno()
        if not _readable(fd, patience):
            return (0, b"") if optional else (FAILED, b"")
        head = _exactly(fd, 5)
        if head is None:
            return FAILED, b""
        kind, size = struct.unpack(">BI", head)
        body = _exactly(fd, size) if size <= _LONGEST_MESSAGE else None
        return (FAILED, b"") if body is None else (kind, body)


def sound_inputs() -> tuple[Input, ...]:
    """The sound inputs that are there now; raises ``NoSound`` when the sound library can't be used."""
    process = _start("list")
    try:
        out, _ = process.communicate(timeout=_OPEN_S)
    except subprocess.TimeoutExpired as error:
        raise NoSound(
            Failure(code="library", what="the sound library hangs", remedy="unplug sound devices, then try again")
        ) from error
    finally:
        _end(process)
    if len(out) < 5:
        raise NoSound(_AGAIN)
    kind, size = struct.unpack_from(">BI", out)
    if kind != INPUTS:
        raise NoSound(_failure(kind, out[5 : 5 + size]))
    return msgspec.json.decode(out[5 : 5 + size], type=tuple[Input, ...])


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", _PROGRAM, *arguments, str(os.getpid())]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=True
        )
    except OSError as error:
        raise NoSound(
            Failure(code="library", what=f"the recorder can't be started ({error.strerror})", remedy="try again")
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _readable(fd: int, patience_s: float) -> bool:
    waiting = select.poll()  # a box with many open files has descriptors that select() can't wait for
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(patience_s * 1000))


def _exactly(fd: int, size: int) -> bytes | None:
    parts, left = [], size
    while left:
        if not _readable(fd, _STALLED_S):
            return None
        part = os.read(fd, min(left, 1 << 20))
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _failure(kind: int, body: bytes) -> Failure:
    if kind != FAILED or not body:
        return _AGAIN
    return msgspec.json.decode(body, type=Failure)
