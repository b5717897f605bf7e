"""A free TCP port, for the programs that tools and tests start.

What this module keeps true: the port is not one that the system gives to outgoing connections, so that none of these takes it
between now and the program's start.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_FIRST = 20_000
_TRIES = 200


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    chance = random.SystemRandom()  # two that ask at the same time must not be given the same
    for _ in range(_TRIES):
        port = chance.randrange(_FIRST, _first_outgoing())
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no TCP port from {_FIRST} on is free; end what holds them (ss -tlnp)")


def _first_outgoing() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32_768
    return max(first, _FIRST + 1000)
