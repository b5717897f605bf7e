"""A chest film from its file to the 320-pixel tensor, against pydicom's own steps followed by the same shrinking.

The peer reads the file with pydicom, applies the modality LUT and the VOI LUT to every pixel, inverts MONOCHROME1 and shrinks
by area. Ours shrinks the stored values by area first and windows what is left. The second row is how far the two pictures
lie apart: mean absolute difference in shares of full scale, at most 0.001.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from appliance.inference import heap
from appliance.reading import xray
from appliance.reading.decode import decode
from appliance.reading.prepared import Picture
from tools.bench.rows import Row, interleave, medians, row, speedup

FILM = "RG1_UNCR.dcm"
ROUNDS = 25
FASTER = 7.0
ALIKE = 0.001


def film() -> Path:
    """pydicom-data's adult chest CR: 1955 × 1841, uncompressed, MONOCHROME1."""
    path = get_testdata_file(FILM)
    if path is None:
        raise FileNotFoundError(f"{FILM} is not there; install pydicom-data")
    return Path(path)


def ours(path: Path) -> npt.NDArray[np.float32]:
    """``[320, 320]`` in 0…1 by the box's own path."""
    picture = decode(path)
    if not isinstance(picture, Picture):
        raise TypeError(f"{path} is no picture")
    return xray.tensor320(picture)


def theirs(path: Path) -> npt.NDArray[Any]:
    """``[320, 320]`` in 0…1 by pydicom's LUT functions on every pixel, then area averaging."""
    dataset = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    full_scale = float((1 << int(dataset.BitsStored)) - 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = full_scale - shown
    return np.asarray(cv2.resize(shown, (xray.BASE, xray.BASE), interpolation=cv2.INTER_AREA) / full_scale)


def run() -> Iterator[Row]:
    """Speed, then likeness."""
    heap.keep()  # as every process that reads
    cv2.setNumThreads(1)
    path = film()
    seconds = interleave({"ours": lambda: ours(path), "pydicom": lambda: theirs(path)}, rounds=ROUNDS)
    median = medians(seconds)
    faster = row(
        "preprocess: file to 320 px tensor",
        "ms",
        1000 * median["ours"],
        1000 * median["pydicom"],
        peer_name="pydicom LUTs, then area",
        limit=FASTER,
        n=ROUNDS,
    )
    # The ratio of each round's neighbours is steadier than that of the medians when the machine's speed drifts.
    yield Row(
        name=faster.name,
        unit=faster.unit,
        ours=faster.ours,
        peer=faster.peer,
        peer_name=faster.peer_name,
        limit=FASTER,
        ratio=speedup(seconds, "ours", "pydicom"),
        n=ROUNDS,
    )
    difference = float(np.abs(ours(path).astype(np.float64) - theirs(path)).mean())
    yield row("preprocess: mean difference", "of full scale", difference, ALIKE, peer_name="limit", limit=1.0)
