"""What the recording process tells the one that started it: kinds of messages and their records."""

from __future__ import annotations

from typing import Literal

import msgspec

OPENED, SAMPLES, GAP, END, FAILED, INPUTS = range(1, 7)


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A sound input as it is called now. ``index`` is PortAudio's and holds only in the process that asked."""

    index: int
    name: str
    channels: int
    rate_hz: int


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to record from: a device's name or part of it, a rate (0: the device's own), seconds that the ring holds."""

    device: str = ""
    rate_hz: int = 0
    ring_s: float = 4.0


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What is recorded from now."""

    device: str
    rate_hz: int


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """``overflows``: times that the card said it lost samples; ``lost``: samples for which the ring had no room."""

    overflows: int = 0
    lost: int = 0


Trouble = Literal["none", "not-found", "rate", "open", "gone", "library", "disk"]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why nothing (more) can be recorded, and what to do; ``code`` is stable."""

    code: Trouble
    what: str
    remedy: str
