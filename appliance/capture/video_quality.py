"""How good a live ultrasound picture is, in one word that a nurse can act on.

What this module keeps true: the word is the first thing to mend, in the order in which one mends it (is it live, does the
probe touch, is the gain right); numbers are computed on the cut-out picture only, reduced, in well under a millisecond.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from appliance.capture.video_area import Quality, State

Bytes = npt.NDArray[np.uint8]

_SIDE = 160
_LIT = 18  # grey level above a machine's black
_FROZEN_NS = 1_200_000_000
_SAME = 0.15  # mean grey levels between two frames: a codec's noise on a still picture
_SMOOTHED = 0.7


class Meter:
    """Judges frame after frame. ``add`` takes the cut-out picture (grey or BGR) and its time."""

    def __init__(self) -> None:
        self._before: Bytes | None = None
        self._moved_ns = 0
        self._mean = np.zeros(3)
        self.latest = Quality()

    def add(self, picture: Bytes, t_ns: int) -> Quality:
        """The quality now; smoothed over a few frames."""
        small = _grey(picture)
        if (
            self._before is None
            or self._before.shape != small.shape
            or float(np.mean(cv2.absdiff(small, self._before))) > _SAME
        ):
            self._moved_ns = t_ns
        self._before = small
        inside = small > 0
        area = max(1, int(np.count_nonzero(inside)))
        third = small.shape[0] // 3
        below = max(1, int(np.count_nonzero(inside[third:])))
        now = np.array(
            [
                float(small.sum()) / area / 255,
                np.count_nonzero(small >= 250) / area,
                np.count_nonzero(small[third:] > _LIT) / below,
            ]
        )
        self._mean = now if not self.latest.brightness else _SMOOTHED * self._mean + (1 - _SMOOTHED) * now
        brightness, white, deep = (float(value) for value in self._mean)
        frozen = t_ns - self._moved_ns > _FROZEN_NS
        state = _state(brightness, white, deep, frozen=frozen)
        self.latest = Quality(
            state=state, score=_score(state, brightness, white, deep), brightness=brightness, white=white, deep=deep
        )
        return self.latest


def _state(brightness: float, white: float, deep: float, *, frozen: bool) -> State:
    if frozen:
        return "frozen"
    if brightness < 0.025:
        return "no-contact" if deep < 0.02 else "too-dark"
    if deep < 0.06:
        return "no-contact"
    if brightness < 0.075:
        return "too-dark"
    if white > 0.16 or brightness > 0.62:
        return "too-bright"
    return "good"


def _score(state: State, brightness: float, white: float, deep: float) -> float:
    """1 for a picture in the middle of the useful range, falling to 0 at its edges; at most 0.4 where something is wrong."""
    exposure = min(1.0, brightness / 0.16) * min(1.0, max(0.0, (0.75 - brightness) / 0.25))
    share = exposure * min(1.0, deep / 0.3) * max(0.0, 1 - 3 * white)
    if state == "frozen":
        return 0.0
    return round(share if state == "good" else min(share, 0.4), 3)


def _grey(picture: Bytes) -> Bytes:
    rows, columns = picture.shape[:2]
    scale = min(1.0, _SIDE / max(rows, columns))
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) if small.ndim == 3 else small, dtype=np.uint8)
