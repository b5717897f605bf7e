"""Lets what is compared run before the machine's other work, all of it alike, so that the others don't decide the figure.

What this module keeps true: it is the same for every receiver and every client of a row; without the right to it (root) nothing
changes but a note that says so. What it takes away is the wait for a processor: on a busy machine a thread that the disk has
woken stands behind whoever runs there for up to 4 ms, three times an image, and who never waits for the disk does not.

Two ways, because neither fits all. ``REALTIME`` (``SCHED_RR``) is for work that mostly waits: it would keep the kernel's own
threads, which write to the disk, from processors that it keeps busy. ``AHEAD`` (the highest weight, within the session and
among sessions, and the shortest slice: ``sched_setattr(2)``, ``sched(7)``) is for work that fills the processors.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Precedence = Literal["REALTIME", "AHEAD"]
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SLICE_NS = 100_000
_noted: set[str] = set()


def start(command: Sequence[str], precedence: Precedence, **more: Any) -> subprocess.Popen[str]:
    """Start a program that runs before others; its threads and children do too."""
    process = subprocess.Popen(command, start_new_session=True, text=True, **more)
    give(process.pid, precedence)
    return process


def give(pid: int, precedence: Precedence) -> None:
    """Let a process that has no threads yet run before others; 0 is this thread."""
    try:
        if precedence == "REALTIME":
            os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))
        else:
            group = Path(f"/proc/{pid or 'self'}/autogroup")
            if group.exists():
                group.write_text("-20", encoding="ascii")
            os.setpriority(os.PRIO_PROCESS, pid, -20)
            attributes = struct.pack("<IIQiIQQQ", 48, os.SCHED_OTHER, 0, -20, 0, _SLICE_NS, 0, 0)
            ctypes.CDLL(None).syscall(_SCHED_SETATTR.get(platform.machine(), -1), pid, attributes, 0)
    except ProcessLookupError:
        return
    except OSError as error:
        if precedence not in _noted:
            _noted.add(precedence)
            print(f"no precedence over other work ({error.strerror}): its load counts in the figures", file=sys.stderr)
