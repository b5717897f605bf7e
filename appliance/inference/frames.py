"""What goes over the socket between a worker and its process: a kind, a length, bytes.

What this module keeps true: a frame arrives whole or not at all.
"""

from __future__ import annotations

import socket
import struct

READY, SETTINGS, REQUEST, ANSWER, FAILED = range(5)
OUT_OF_MEMORY, WITHOUT_DEVICE = 71, 72
"""Exit codes of the process when only a new one can help."""

_HEAD = struct.Struct("<BI")


def send(link: socket.socket, kind: int, body: bytes) -> None:
    """Send one frame; raises ``OSError`` when the other end is gone."""
    link.sendall(_HEAD.pack(kind, len(body)))
    link.sendall(body)


def receive(link: socket.socket) -> tuple[int, bytes]:
    """The next frame: kind and body; raises ``EOFError`` at the end and ``TimeoutError`` by the socket's time limit."""
    kind, length = _HEAD.unpack(_exactly(link, _HEAD.size))
    return kind, _exactly(link, length)


def _exactly(link: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view, have = memoryview(data), 0
    while have < length:
        got = link.recv_into(view[have:])
        if not got:
            raise EOFError("the other end is gone")
        have += got
    return bytes(data)
