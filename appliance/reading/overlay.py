"""A picture with the activation map over it, for eyes.

What this module keeps true: the picture is shown as its file says (window, table, inversion); the map lies where the reading
says, stretched smoothly; where the map is empty the picture stays untouched, so that a clear film looks clear.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from appliance.reading import xray
from appliance.reading.prepared import Picture
from appliance.records import Reading

SIDE = 1024
"""Longest side, in pixels, of what is made to be looked at."""

_STRONGEST = 0.55


def shown(picture: Picture, frame: int = 0, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """A frame of the picture as it is meant to be seen: BGR uint8 ``[r, c, 3]``, longest side at most ``side``."""
    stored = picture.pixels[min(frame, len(picture.pixels) - 1)]
    scale = min(1.0, side / max(stored.shape[:2]))
    rows, columns = (max(1, round(length * scale)) for length in stored.shape[:2])
    if stored.ndim == 3:
        colour = cv2.resize(np.ascontiguousarray(stored[..., ::-1]), (columns, rows), interpolation=cv2.INTER_AREA)
        return np.asarray(colour, dtype=np.uint8)
    grey = np.rint(xray.displayed(picture, xray.area(stored, rows, columns)) * 255.0).astype(np.uint8)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), dtype=np.uint8)


def blended(picture: Picture, reading: Reading, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """The picture with the reading's map over it, BGR uint8; the picture alone when there is no map."""
    step = -(-picture.header.frames // len(picture.pixels))
    base = shown(picture, reading.overlay_frame // step, side)
    if not reading.overlay:
        return base
    map_ = np.frombuffer(reading.overlay, np.uint8).reshape(reading.overlay_shape)
    rows, columns = base.shape[:2]
    top, left, bottom, right = (
        round(share * length) for share, length in zip(reading.overlay_box, (rows, columns) * 2, strict=True)
    )
    height, width = max(1, bottom - top), max(1, right - left)
    heat = cv2.resize(map_, (width, height), interpolation=cv2.INTER_CUBIC)
    return _over(base, heat, (top, left))


def png(image: npt.NDArray[Any]) -> bytes:
    """``image`` as the bytes of a PNG."""
    done, data = cv2.imencode(".png", image)
    if not done:
        raise ValueError(f"an image of {image.shape} {image.dtype} can't be written as PNG")
    return bytes(data.tobytes())


def _over(base: npt.NDArray[np.uint8], heat: npt.NDArray[Any], corner: tuple[int, int]) -> npt.NDArray[np.uint8]:
    top, left = corner
    part = base[top : top + heat.shape[0], left : left + heat.shape[1]]
    heat = heat[: part.shape[0], : part.shape[1]]
    alpha = (heat.astype(np.float32) * (_STRONGEST / 255.0))[..., None]
    coloured = cv2.applyColorMap(np.ascontiguousarray(heat), cv2.COLORMAP_TURBO).astype(np.float32)
    over = np.rint(part * (1 - alpha) + coloured * alpha).astype(np.uint8)
    mixed: npt.NDArray[np.uint8] = np.array(base, dtype=np.uint8)
    mixed[top : top + heat.shape[0], left : left + heat.shape[1]] = over
    return mixed
