"""Keeps the heap of a process that reads: a film's 7 MB are given back to the kernel after each reading and faulted in again.

On the machine where this was found that took 5 of 15 ms. glibc's own settings (mallopt(3)) stop it; elsewhere nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more
_KEPT = 256 << 20


def keep() -> None:
    """Take memory from one heap and give it back only beyond 256 MB."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Return what is free now to the kernel: opening models needs 45 MB that reading does not."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
