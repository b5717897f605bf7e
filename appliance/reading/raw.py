"""A picture's stored grey values for a viewer that windows them itself: all their depth, few enough of them for a tablet.

What this module keeps true: values are averages of stored values (never windowed, never inverted), in 16 bits; what the sender
meant to be shown goes beside them. A colour picture has none: it is shown as it is.
"""

from __future__ import annotations

import cv2
import numpy as np

from appliance.reading.prepared import Picture, Sound
from appliance.reading.requests import Raw

EDGE = 1280
"""Longest side in pixels: 16 bits of 1280 × 1280 are 3.3 MB."""


def raw(capture: Picture | Sound | None, frame: int | None = None) -> Raw:
    """The values of one frame (the middle one when not said) of a grey picture; an empty ``Raw`` of anything else."""
    if not isinstance(capture, Picture) or capture.pixels.ndim != 3:
        return Raw()
    count = len(capture.pixels)
    stored = capture.pixels[count // 2 if frame is None else min(max(frame, 0), count - 1)]
    scale = min(1.0, EDGE / max(stored.shape))
    rows, columns = (max(1, round(side * scale)) for side in stored.shape)
    small = cv2.resize(stored, (columns, rows), interpolation=cv2.INTER_AREA)
    offset = -32768 if stored.dtype == np.int16 else 0
    low, high = _shown(capture, float(small.min()), float(small.max()))
    values = (small.astype(np.int32) - offset).astype("<u2")
    return Raw(
        rows=rows, columns=columns, offset=offset, low=low, high=high, invert=capture.invert, data=values.tobytes()
    )


def _shown(capture: Picture, lowest: float, highest: float) -> tuple[float, float]:
    """What is spread from black to white: DICOM's linear window (PS3.3 C.11.2.1.2), or everything where there is another."""
    if capture.window is None or capture.lut is not None:
        return lowest, max(highest, lowest + 1.0)
    centre, width = capture.window
    return centre - width / 2, centre + max(width, 1.0) / 2
