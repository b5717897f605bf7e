"""Keeps a process that only receives small: a box with 4 GB runs models beside it.

What this module keeps true: nothing here changes what a process does, except that in one that called ``never_decodes`` first
pydicom decodes no pictures. Reading happens in a process of its own, which never calls it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys

_ARENA_MAX, _MMAP_THRESHOLD = -8, -3  # malloc.h
_LARGE = 256 * 1024
_NOT_LOADED = ("gdcm", "PIL", "numpy", "rich")
"""What pydicom (the first three) and structlog load when it is there, and what only decoding and coloured traces need."""


def never_decodes() -> bool:
    """Load pydicom and structlog without gdcm (19 MB), PIL, numpy (14 MB), rich (4 MB); False when pydicom is there already.

    Call it before the first import of pydicom, in a process that decodes no pictures. All but gdcm can be imported later by
    what needs them.
    """
    if "pydicom" in sys.modules:
        return False
    kept_out = [name for name in _NOT_LOADED if name not in sys.modules]
    for name in kept_out:
        sys.modules[name] = None  # type: ignore[assignment]  # None makes an import fail, by the language's rules
    for name in ("pydicom", "structlog"):
        importlib.import_module(name)
    for name in kept_out:
        if name != "gdcm":
            del sys.modules[name]
    return True


def one_heap() -> None:
    """Let all threads share one heap: each would keep megabytes of its own after an image has passed through it.

    Large buffers stay out of it for good: glibc would take them into it after the first one was freed, and what is small and
    lasts would then lie between the holes that they leave (10 MB in an hour of mixed capture).

    Call it before there are threads. The interpreter lets one of them run at a time, so none waits for another.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """Return memory that is free to the system, where libc can.

    Start-up frees 30 MB (compiled dictionaries); a busy hour leaves holes of 10 MB and more in the one heap.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
