"""The activation map of a reading as a picture to lay over the preview: a PNG with transparency.

What this module keeps true: the PNG covers the whole preview, so that a page only stretches one over the other; outside
``overlay_box`` it is clear. Stronger is both more opaque and further from yellow to red, so that it reads without colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.records import Reading

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIDE = 320
"""Rows and columns of the PNG, which the browser stretches over the preview."""
_FLOOR = 0.15
"""Share of the strongest activation below which nothing is drawn."""


def overlay_png(reading: Reading) -> bytes | None:
    """The map of a reading as PNG (RGBA, ``SIDE`` × ``SIDE``), ``None`` when it has none that fits its shape."""
    import cv2
    import numpy as np

    rows, columns = reading.overlay_shape
    if rows < 1 or columns < 1 or len(reading.overlay) != rows * columns:
        return None
    activation = np.frombuffer(reading.overlay, np.uint8).reshape(rows, columns).astype(np.float32) / 255.0
    top, left, bottom, right = (round(min(max(edge, 0.0), 1.0) * SIDE) for edge in reading.overlay_box)
    if bottom <= top or right <= left:
        return None
    whole = np.zeros((SIDE, SIDE), np.float32)
    whole[top:bottom, left:right] = cv2.resize(
        activation, (right - left, bottom - top), interpolation=cv2.INTER_CUBIC
    ).clip(0.0, 1.0)
    done, png = cv2.imencode(".png", _coloured(whole), [cv2.IMWRITE_PNG_COMPRESSION, 6])
    return bytes(png) if done else None


def _coloured(strength: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    import numpy as np

    shown = ((strength - _FLOOR) / (1.0 - _FLOOR)).clip(0.0, 1.0)
    bgra = np.empty((*strength.shape, 4), np.float32)
    bgra[..., 0] = 32.0
    bgra[..., 1] = 210.0 - 170.0 * shown
    bgra[..., 2] = 255.0
    bgra[..., 3] = 255.0 * np.sqrt(shown)
    return np.rint(bgra).astype(np.uint8)
