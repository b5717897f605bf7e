"""From a decoded lung ultrasound still or cine to the model's input, and the clip's quality in numbers.

What this module keeps true: training and the box run this same code. Only the insonated sector reaches the model: screen
text, rulers and the maker's logo lie outside the crop, which is one for all frames of a clip. Frames are taken evenly over
the clip; each is one row of the input. All that depends on the model is read from ``preprocess.parameters``.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import Description
from appliance.reading import xray
from appliance.reading.prepared import Picture, Prepared
from appliance.records import Refusal

KIND = "lung-ultrasound/1"
SEARCH_SIDE = 192
SMALLEST_SECTOR = 0.03
PART_OF_LARGEST = 0.2

Grey = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]


def prepare(picture: Picture, description: Description) -> Prepared:
    """The input of every graph, float32 ``[frames, 1, size, size]`` in 0…1, ``map_box`` the sector, and quality indices.

    ``parameters``: ``size`` (pixels), ``frames`` (most taken of a clip). Without a sector (a black or blank clip) the
    inputs are empty and ``refusal`` has code ``no-sector``.
    """
    parameters = description.preprocess.parameters
    size, most = int(parameters.get("size", 224)), int(parameters.get("frames", 12))
    chosen = evenly(picture.pixels.shape[0], most)
    box = sector(picture, chosen)
    if box is None:
        words = description.refusals.get("no-sector")
        refusal = Refusal(
            code="no-sector",
            reason=words.reason if words else "There is no ultrasound picture in this capture.",
            advice=words.advice if words else "Put gel on the probe, press it to the skin and record again.",
        )
        return Prepared(inputs={}, quality={"sector": 0.0}, refusal=refusal)
    rows = np.stack([tensor(picture, index, box, size) for index in chosen])
    inputs: dict[str, dict[str, npt.NDArray[Any]]] = {
        graph.name: {tensor_in.name: rows[:, None] for tensor_in in graph.inputs} for graph in description.graphs
    }
    return Prepared(
        inputs=inputs, quality=quality(picture, rows, box), frames=tuple(float(i) for i in chosen), map_box=box
    )


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` frame numbers, spread over 0…count−1; a single one is the middle frame of a still or clip."""
    taken = min(count, max(most, 1))
    return [int((i + 0.5) * count / taken) for i in range(taken)]


def tensor(picture: Picture, index: int, box: Box, size: int) -> Grey:
    """Frame ``index`` inside ``box`` as grey float32 ``[size, size]`` in 0…1, averaged by area, squashed to a square."""
    top, left, bottom, right = box
    return xray.displayed(picture, xray.area(picture.pixels[index, top:bottom, left:right], size, size))


def sector(picture: Picture, frames: list[int]) -> Box | None:
    """Rows and columns ``[top, left, bottom, right)`` around the large lit regions of ``frames``; ``None`` without.

    The brightest value over the frames is blurred and cut at a share of its own bright level, so that speckle joins up and
    thin text stays apart.
    """
    rows, columns = picture.pixels.shape[1:3]
    scale = SEARCH_SIDE / max(rows, columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    lit = np.zeros((height, width), np.float32)
    for index in frames:
        lit = np.maximum(lit, xray.displayed(picture, xray.area(picture.pixels[index], height, width)))
    if float(lit.max()) < 0.05 or float(lit.max() - lit.min()) < 0.02:
        return None
    soft = cv2.GaussianBlur(lit, (0, 0), 1.5)
    floor = float(np.percentile(soft, 2))
    level = floor + max(0.02, 0.07 * (float(np.percentile(soft, 99.5)) - floor))
    count, _, stats, _ = cv2.connectedComponentsWithStats((soft > level).astype(np.uint8), connectivity=4)
    if count < 2:
        return None
    areas = stats[1:, cv2.CC_STAT_AREA]
    large = stats[1:][areas >= PART_OF_LARGEST * areas.max()]
    if float(areas.sum()) < SMALLEST_SECTOR * height * width:
        return None
    left, top = (int(large[:, axis].min()) for axis in (cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP))
    right = int((large[:, cv2.CC_STAT_LEFT] + large[:, cv2.CC_STAT_WIDTH]).max())
    bottom = int((large[:, cv2.CC_STAT_TOP] + large[:, cv2.CC_STAT_HEIGHT]).max())
    return (
        int(top * rows / height),
        int(left * columns / width),
        min(rows, -(-bottom * rows // height)),
        min(columns, -(-right * columns // width)),
    )


def quality(picture: Picture, rows: Grey, box: Box) -> dict[str, float]:
    """Named indices that a bundle's gate may limit.

    ``sector`` share of the picture that the crop takes; ``brightness`` and ``contrast`` (1st to 99th percentile) of the
    crop; ``white`` share of saturated pixels; ``lit`` share of pixels above the noise; ``sharpness`` energy of the finest
    detail relative to the next coarser; ``colour`` share of coloured pixels (Doppler); ``frames`` in the capture;
    ``side`` shorter side of the crop in pixels.
    """
    top, left, bottom, right = box
    low, high = np.percentile(rows[:, ::2, ::2], (1.0, 99.0))
    middle = rows[len(rows) // 2]
    soft = cv2.GaussianBlur(middle, (0, 0), 1.0)
    softer = cv2.GaussianBlur(soft, (0, 0), 2.0)
    fine, coarse = float(np.mean(np.square(middle - soft))), float(np.mean(np.square(soft - softer)))
    return {
        "sector": (bottom - top) * (right - left) / float(picture.pixels.shape[1] * picture.pixels.shape[2]),
        "brightness": float(rows.mean()),
        "contrast": float(high - low),
        "white": float(np.mean(rows >= 0.98)),
        "lit": float(np.mean(rows > 0.06)),
        "sharpness": fine / (coarse + 1e-9),
        "colour": _colour(picture, box),
        "frames": float(picture.pixels.shape[0]),
        "side": float(min(bottom - top, right - left)),
    }


def _colour(picture: Picture, box: Box) -> float:
    """Share of pixels of the middle frame's crop whose channels differ by more than an eighth of full scale."""
    if picture.pixels.ndim != 4:
        return 0.0
    top, left, bottom, right = box
    frame = picture.pixels[picture.pixels.shape[0] // 2, top:bottom:3, left:right:3].astype(np.int16)
    return float(np.mean(frame.max(axis=-1) - frame.min(axis=-1) > 32))
