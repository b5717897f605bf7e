"""The worker process itself: limits first, then the entry point, then one request after another.

What this module keeps true: the process dies with the thread that started it, is the first that the kernel kills when
memory runs out, never holds more memory than it was given, and leaves by its own exit code when only a new process can help.

It is started as ``python -m appliance.inference.child`` by ``appliance.inference.worker``, never imported by it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from appliance.inference import heap
from appliance.inference.engine import DeviceLostError
from appliance.inference.frames import ANSWER, FAILED, OUT_OF_MEMORY, READY, WITHOUT_DEVICE, receive, send

_PR_SET_PDEATHSIG = 1
_KILLED_FIRST = "700"

Answer = Callable[[bytes], bytes]


def main(arguments: list[str]) -> int:
    """Serve requests from the socket ``arguments[0]`` until it is closed; the exit code says why it stopped early."""
    descriptor, parent, entry, memory, niceness = arguments
    _die_with(int(parent))
    _limit(int(memory), int(niceness))
    heap.keep()
    with socket.socket(fileno=int(descriptor)) as link:
        try:
            settings = receive(link)[1]
            answer = _load(entry)(settings)
            send(link, READY, b"")
            return _serve(link, answer)
        except EOFError:
            return 0
        except MemoryError:
            return OUT_OF_MEMORY


def _serve(link: socket.socket, answer: Answer) -> int:
    while True:
        _, request = receive(link)
        try:
            body = answer(request)
        except MemoryError:
            return OUT_OF_MEMORY
        except DeviceLostError as error:
            sys.stderr.write(f"bedside worker: {error}\n")
            return WITHOUT_DEVICE
        # The edge of the task: whatever a request makes the reader raise goes back to the one who asked, who counts it.
        except Exception as error:  # noqa: BLE001
            send(link, FAILED, f"{type(error).__name__}: {error}".encode())
        else:
            send(link, ANSWER, body)


def _load(entry: str) -> Callable[[bytes], Answer]:
    module, _, name = entry.partition(":")
    found: Callable[[bytes], Answer] = getattr(importlib.import_module(module), name)
    return found


def _die_with(parent: int) -> None:
    """Be killed when the starting thread ends; leave at once when it ended before this was set."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()


def _limit(memory: int, niceness: int) -> None:
    """Bound the heap (``RLIMIT_DATA``: address space would stop CUDA, which reserves far more than it uses)."""
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(niceness)
    # A container may forbid it: the limit above still holds.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
