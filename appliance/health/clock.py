"""Time, honestly (promise 7): order from boot id and monotonic clock, wall time with its uncertainty.

What this module keeps true: nothing in the program asks the operating system for the time except here. Wall time is the
monotonic clock plus an anchor; the anchor is replaced only by a source with a smaller uncertainty, and time already given
out is never rewritten. Without any trusted source since boot the uncertainty is ``None``: "don't know". The uncertainty of
an anchor grows with the quartz's drift (``DRIFT``, 100 ppm, a generous bound for uncompensated crystals).
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from pathlib import Path

from appliance.records import Moment

DRIFT = 100e-6

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FLOOR = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc).timestamp()


class Clock:
    """The one clock. ``wall``/``monotonic`` are injectable for tests of a box that wakes in 1970."""

    def __init__(
        self,
        boot_id: str = "",
        wall: Callable[[], float] = time.time,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.boot_id = boot_id or _read_boot_id()
        self._wall = wall
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        self._anchor: tuple[int, float, float] | None = None  # monotonic ns, wall s, uncertainty s

    def now(self) -> Moment:
        """The present moment."""
        monotonic = self._monotonic_ns()
        wall, uncertainty = self._estimate(monotonic)
        return Moment(
            boot_id=self.boot_id,
            monotonic_ns=monotonic,
            wall=rfc3339(wall),
            uncertainty_s=None if uncertainty is None else round(uncertainty, 3),
        )

    def uncertainty(self) -> float | None:
        """Seconds by which the wall clock may be wrong, ``None`` when nothing trusted has said since boot."""
        return self._estimate(self._monotonic_ns())[1]

    def anchor(self, wall: float, uncertainty_s: float) -> bool:
        """A source says it is ``wall`` (seconds since 1970) ± ``uncertainty_s``; whether it is believed."""
        monotonic = self._monotonic_ns()
        with self._lock:
            present = self._grown(monotonic)
            if uncertainty_s < 0 or wall < _FLOOR or (present is not None and present <= uncertainty_s):
                return False
            self._anchor = (monotonic, wall, uncertainty_s)
            return True

    def anchor_text(self, wall: str, uncertainty_s: float) -> bool:
        """``anchor`` for an RFC 3339 text; a text that is no time is not believed."""
        try:
            parsed = dt.datetime.fromisoformat(wall.replace("Z", "+00:00"))
        except ValueError:
            return False
        return parsed.tzinfo is not None and self.anchor(parsed.timestamp(), uncertainty_s)

    def _estimate(self, monotonic: int) -> tuple[float, float | None]:
        with self._lock:
            anchor, grown = self._anchor, self._grown(monotonic)
        if anchor is None:
            return self._wall(), None
        return anchor[1] + (monotonic - anchor[0]) / 1e9, grown

    def _grown(self, monotonic: int) -> float | None:
        if self._anchor is None:
            return None
        return self._anchor[2] + (monotonic - self._anchor[0]) / 1e9 * DRIFT


def rfc3339(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC with milliseconds; times before 1970 or after 9999 are clamped."""
    clamped = min(max(seconds, 0.0), 253402300799.0)
    moment = dt.datetime.fromtimestamp(clamped, tz=dt.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def kernel_synchronised() -> float | None:
    """The kernel clock's own estimate of its error in seconds if a time service disciplines it (adjtimex), else ``None``."""
    import ctypes

    class Timex(ctypes.Structure):
        _fields_ = (
            ("modes", ctypes.c_uint),
            ("offset", ctypes.c_long),
            ("freq", ctypes.c_long),
            ("maxerror", ctypes.c_long),
            ("esterror", ctypes.c_long),
            ("status", ctypes.c_int),
            ("rest", ctypes.c_byte * 256),
        )

    try:
        timex = Timex()
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    unsynchronised = 0x0040  # STA_UNSYNC, sys/timex.h
    return None if state < 0 or timex.status & unsynchronised else timex.maxerror / 1e6


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip().replace("-", "")[:16]
    except OSError:
        import uuid

        return uuid.uuid4().hex[:16]
