"""Entry points for the worker's tests: each does to its process what a bad capture could do."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

from appliance.inference.engine import DeviceLostError


def serve(settings: bytes) -> Callable[[bytes], bytes]:
    def answer(request: bytes) -> bytes:
        word, _, rest = request.partition(b" ")
        return ACTS[word](rest) if word in ACTS else settings + request

    return answer


def broken(_: bytes) -> Callable[[bytes], bytes]:
    raise ValueError("no models here")


def never_ready(_: bytes) -> Callable[[bytes], bytes]:
    time.sleep(600)
    raise AssertionError


def _loop(_: bytes) -> bytes:
    while True:
        pass


def _hold(rest: bytes) -> bytes:
    _KEPT.append(b"\x01" * int(rest))
    return b"held"


def _crash(_: bytes) -> bytes:
    ctypes.string_at(0)
    return b""


def _fail(_: bytes) -> bytes:
    raise ValueError("this capture can't be decoded")


def _lose_device(_: bytes) -> bytes:
    raise DeviceLostError("an illegal memory access was encountered")


def _kill(_: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def _sleep(rest: bytes) -> bytes:
    time.sleep(float(rest))
    return b"slept"


def _tell(_: bytes) -> bytes:
    return f"{os.getpid()} {os.nice(0)} {os.environ['OMP_NUM_THREADS']}".encode()


_KEPT: list[bytes] = []
ACTS: dict[bytes, Callable[[bytes], bytes]] = {
    b"loop": _loop,
    b"hold": _hold,
    b"crash": _crash,
    b"fail": _fail,
    b"lose-device": _lose_device,
    b"kill": _kill,
    b"sleep": _sleep,
    b"tell": _tell,
    b"exit": lambda rest: sys.exit(int(rest)),
    b"big": lambda rest: bytes(int(rest)),
}
