"""A socket with buffers, in the place that paho takes for its socket.

What this module keeps true: bytes leave and arrive in the order of a plain socket; a packet is taken into the buffer whole or
not at all. paho asks its socket for one byte, then a length, then the packet, and sends each packet by itself: here those
calls go to buffers, which ``fill`` and ``flush`` exchange with the operating system many packets at a time.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_LARGEST_READ = 1 << 16
_LARGEST_WAITING = 1 << 22
_PUBACK = 0x40


class BufferedSocket:
    """What paho takes for its socket."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._read = b""
        self._at = 0
        self._waiting = bytearray()

    def recv(self, size: int) -> bytes:
        """Up to ``size`` bytes; raises what the socket raises when there are none yet."""
        if self._at >= len(self._read):
            self.fill()
        part = self._read[self._at : self._at + size]
        self._at += len(part)
        return part

    def fill(self) -> bool:
        """Read once from the operating system if nothing is buffered; False at the end of the stream."""
        if self._at >= len(self._read):
            self._read = self._inner.recv(_LARGEST_READ)
            self._at = 0
        return bool(self._read)

    def acknowledgements(self) -> list[tuple[int, int]]:
        """Take the PUBACKs (packet id, reason) that stand whole at the buffer's head; only between two packets."""
        read, at, found = self._read, self._at, []
        end = len(read)
        while at + 4 <= end and read[at] == _PUBACK:
            size = read[at + 1]
            if size < 2 or size > 0x7F or at + 2 + size > end:
                break
            found.append(((read[at + 2] << 8) | read[at + 3], read[at + 4] if size > 2 else 0))
            at += 2 + size
        self._at = at
        return found

    @property
    def buffered(self) -> bool:
        """Whether bytes that were read wait to be taken."""
        return self._at < len(self._read)

    def send(self, data: bytes) -> int:
        """Put ``data`` into the buffer; like a socket, it would block when the peer takes nothing for long."""
        if len(self._waiting) > _LARGEST_WAITING and not self.flush():
            raise BlockingIOError
        self._waiting += data
        return len(data)

    def flush(self) -> bool:
        """Send what waits; False when some of it still does."""
        try:
            while self._waiting:
                sent = self._inner.send(self._waiting)
                del self._waiting[:sent]
        except WOULD_BLOCK:
            return False
        return True

    def pending(self) -> int:
        """Bytes that can be read without asking the operating system."""
        inner = self._inner.pending() if hasattr(self._inner, "pending") else 0
        return len(self._read) - self._at + inner

    def fileno(self) -> int:
        """The socket's own."""
        return int(self._inner.fileno())

    def setblocking(self, flag: bool) -> None:
        """The socket's own."""
        self._inner.setblocking(flag)

    def close(self) -> None:
        """Flush as far as it goes (a DISCONNECT may wait), then close."""
        with contextlib.suppress(OSError):
            self.flush()
        self._inner.close()
