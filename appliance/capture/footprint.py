"""Keeps a process that only receives small: a box with 4 GB runs models beside it.

What this module keeps true: nothing here changes what a process does, except that one that called ``never_decodes`` first
decodes nothing with gdcm. Reading happens in a process of its own, which never calls it.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys


def never_decodes() -> bool:
    """Keep pydicom from loading gdcm (19 MB), which it would on import; False when pydicom is already loaded.

    Call it before the first import of pydicom, in a process that decodes no pictures.
    """
    if "pydicom" in sys.modules:
        return False
    sys.modules.setdefault("gdcm", None)  # type: ignore[arg-type]  # None makes an import fail, by the language's rules
    return True


def give_back() -> None:
    """Return the memory that start-up needed and freed (30 MB of compiled dictionaries) to the system, where libc can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
