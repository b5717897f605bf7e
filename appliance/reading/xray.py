"""From a decoded chest X-ray to the model's input, and the picture's quality in numbers.

What this module keeps true: training and the box run this same code. The stored values are shrunk by area averaging first,
so nothing aliases and no full-size float copy is made; window, inversion and stretch come after, on 320 × 320 pixels. All
that depends on the model (sizes, percentiles, gamma) is read from the bundle's ``preprocess.parameters``.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import Description
from appliance.reading.prepared import Picture, Prepared

KIND = "chest-xray/1"
BASE = 320

Grey = npt.NDArray[np.float32]


def prepare(picture: Picture, description: Description) -> Prepared:
    """The input tensor of every graph of the bundle, float32 ``[1, 1, size, size]`` in 0…1, and the quality indices.

    ``parameters``: ``size`` (pixels), ``low`` and ``high`` (percentiles of the stretch), ``mean`` (what gamma brings the
    centre's mean to; 0: no gamma).
    """
    base = tensor320(picture)
    parameters = description.preprocess.parameters
    image = normalise(
        base,
        size=int(parameters.get("size", 224)),
        percentiles=(float(parameters.get("low", 1.0)), float(parameters.get("high", 99.0))),
        mean=float(parameters.get("mean", 0.5)),
    )
    tensor = image[None, None]
    inputs: dict[str, dict[str, npt.NDArray[Any]]] = {
        graph.name: {tensor_in.name: tensor for tensor_in in graph.inputs} for graph in description.graphs
    }
    return Prepared(inputs=inputs, quality=quality(picture, base), frames=(0.0,))


def tensor320(picture: Picture) -> Grey:
    """The first frame as grey float32 ``[320, 320]`` in 0…1, black air and white bone, squashed to a square.

    The window is DICOM's linear function, the sigmoid its sigmoid function (PS3.3 C.11.2.1.2 and C.11.2.1.3.1), here
    applied after averaging. Without window or table 8-bit values are divided by 255 and others stretched from lowest to
    highest.
    """
    return displayed(picture, area(picture.pixels[0], BASE, BASE))


def area(frame: npt.NDArray[Any], rows: int, columns: int) -> Grey:
    """``frame`` (``[rows, columns]`` or colour ``[rows, columns, 3]``) as grey float32 of another size, free of aliasing.

    Axes that shrink are averaged over the area of each new pixel, axes that grow are interpolated.
    """
    narrow = frame.dtype == np.uint8
    # OpenCV rounds to the input's type: eight bits are widened so that averaging keeps its fraction.
    wide = frame.astype(np.uint16) * np.uint16(256) if narrow else frame
    if wide.dtype not in (np.uint16, np.int16, np.float32):
        wide = wide.astype(np.float32)
    small = _shrunk(np.ascontiguousarray(wide), min(rows, wide.shape[0]), min(columns, wide.shape[1]))
    if small.ndim == 3:
        small = small @ np.array([0.299, 0.587, 0.114], np.float32)
    if small.shape != (rows, columns):
        small = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR)
    if narrow:
        small *= np.float32(1 / 256)
    return np.asarray(small, dtype=np.float32)


def _shrunk(wide: npt.NDArray[Any], rows: int, columns: int) -> npt.NDArray[np.float32]:
    """``wide`` averaged by area, halved first where more than five pixels a side make a new one.

    Halving is an exact average and many times faster than the general one; it only moves the borders between new pixels
    by less than a pixel of the original (mean difference below 0.001 of full scale, ``tools.bench.preprocess``).
    """
    down, across = rows / wide.shape[0], columns / wide.shape[1]
    while max(down, across) <= 0.18:
        wide = cv2.resize(wide, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        down, across = down * 2, across * 2
    small = cv2.resize(wide, None, fx=across, fy=down, interpolation=cv2.INTER_AREA)
    if small.shape[:2] != (rows, columns):
        small = cv2.resize(wide, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float32)


def displayed(picture: Picture, values: Grey) -> Grey:
    """Stored ``values`` as they are meant to be seen: window or table applied, MONOCHROME1 inverted, 0…1."""
    if picture.lut is not None:
        first, table = picture.lut
        shown = np.interp(values, first + np.arange(len(table)), table).astype(np.float32)
    elif picture.window is not None:
        centre, width = picture.window
        if picture.sigmoid:
            shown = 1.0 / (1.0 + np.exp(-4.0 * (values - centre) / max(width, 1e-6)))
        else:
            shown = (values - (centre - 0.5)) / max(width - 1.0, 1e-6) + 0.5
    elif picture.pixels.dtype == np.uint8:
        shown = values / np.float32(255.0)
    else:
        lowest, highest = float(values.min()), float(values.max())
        shown = (values - lowest) / max(highest - lowest, 1e-6)
    shown = np.clip(shown, 0.0, 1.0).astype(np.float32)
    return np.float32(1.0) - shown if picture.invert else shown


def normalise(base: Grey, size: int = 224, percentiles: tuple[float, float] = (1.0, 99.0), mean: float = 0.5) -> Grey:
    """Stretch between percentiles, bring the centre's mean to ``mean`` by a gamma, shrink: float32 ``[size, size]``.

    A ``mean`` of 0 leaves the gamma out, for networks that were trained without it.
    """
    low, high = np.percentile(base[::2, ::2], percentiles)
    stretched = np.clip((base - np.float32(low)) * np.float32(1.0 / max(high - low, 1e-3)), 0.0, 1.0)
    edge_rows, edge_columns = base.shape[0] // 8, base.shape[1] // 8
    centre = stretched[edge_rows : base.shape[0] - edge_rows : 3, edge_columns : base.shape[1] - edge_columns : 3]
    bent = cv2.pow(stretched, _gamma(centre, mean)) if mean > 0 else stretched
    if bent.shape != (size, size):
        bent = cv2.resize(bent, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(bent, dtype=np.float32)


def _gamma(values: Grey, mean: float) -> float:
    """The exponent in 0.25…4 with which the mean of ``values`` (0…1) comes nearest to ``mean``, by bisection."""
    low, high = np.log(0.25), np.log(4.0)
    floored = np.log(np.maximum(values, np.float32(1e-4)))
    for _ in range(10):
        middle = (low + high) / 2
        if float(np.exp(floored * np.float32(np.exp(middle))).mean()) > mean:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def quality(picture: Picture, base: Grey) -> dict[str, float]:
    """Named indices of a displayed 320-pixel picture, which a bundle's gate may limit.

    ``brightness`` mean grey 0…1; ``contrast`` 1st to 99th percentile; ``black`` and ``white`` shares of pixels at the ends
    of the scale; ``sharpness`` energy of the finest detail relative to the next coarser, free of units; ``noise`` the share
    of the finest detail in all variance; ``side`` the shorter side in pixels; ``aspect`` columns by rows.
    """
    rows, columns = picture.pixels.shape[1:3]
    low, high = np.percentile(base[::2, ::2], (1.0, 99.0))
    soft = cv2.GaussianBlur(base, (0, 0), 1.0)
    softer = cv2.GaussianBlur(soft, (0, 0), 2.0)
    fine = float(np.mean(np.square(base - soft)))
    coarse = float(np.mean(np.square(soft - softer)))
    variance = float(np.var(base))
    return {
        "brightness": float(base.mean()),
        "contrast": float(high - low),
        "black": float(np.mean(base <= 0.004)),
        "white": float(np.mean(base >= 0.996)),
        "sharpness": fine / (coarse + 1e-9),
        "noise": fine / (variance + 1e-9),
        "side": float(min(rows, columns)),
        "aspect": columns / max(rows, 1),
    }
