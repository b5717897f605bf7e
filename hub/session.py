"""A paho client whose socket is read and written in large pieces, for an outer loop of one thread.

What this module keeps true: paho does the protocol; this only saves system calls. paho asks the socket for one byte, then
a length, then the packet, and sends each packet by itself; here those calls go to buffers, which ``turn`` fills and
empties. Nothing that was sent is held back: ``turn`` flushes before it waits.

The seam is paho's ``_create_socket``, the one private name used here (``tests/contract`` looks whether it is still there);
``pending`` is what paho asks of a TLS socket too.
"""

from __future__ import annotations

import contextlib
import select
import ssl
from typing import Any

import paho.mqtt.client as mqtt

_LARGEST_READ = 1 << 16
_LARGEST_WAITING = 1 << 22
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


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
            self._read = self._inner.recv(_LARGEST_READ)
            self._at = 0
        part = self._read[self._at : self._at + size]
        self._at += len(part)
        return part

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
        except _WOULD_BLOCK:
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


class Session(mqtt.Client):  # type: ignore[misc]
    """paho's client with such a socket."""

    def _create_socket(self) -> Any:
        return BufferedSocket(super()._create_socket())

    def acknowledge(self, mid: int) -> None:
        """Send the PUBACK of message ``mid``: success without properties (MQTT 5, 3.4), straight into the buffer.

        The buffer takes a packet whole or not at all, so this never lands inside another one.
        """
        inner = self.socket()
        if inner is not None:
            inner.send(b"\x40\x02" + mid.to_bytes(2, "big"))

    def turn(self, patience: float) -> bool:
        """Send what waits, wait up to ``patience`` seconds for something to read, read; False: the connection is gone."""
        inner = self.socket()
        if inner is None:
            return False
        if self.want_write():
            self.loop_write()
        try:
            flushed = inner.flush()
            poll = select.poll()
            poll.register(inner.fileno(), select.POLLIN if flushed else select.POLLIN | select.POLLOUT)
            ready = inner.pending() or poll.poll(max(0.0, patience) * 1000)
        except (OSError, ValueError):
            self._sock_close()
            return False
        if ready and self.loop_read() != mqtt.MQTT_ERR_SUCCESS:
            return False
        return bool(self.loop_misc() == mqtt.MQTT_ERR_SUCCESS)
