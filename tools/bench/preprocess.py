"""A chest film from its file to the 320-pixel tensor, against pydicom's own steps followed by the same shrinking.

The peer reads the file with pydicom, applies the modality LUT and the VOI LUT to every pixel, inverts MONOCHROME1 and shrinks
by area. Ours shrinks the stored values by area first and windows what is left. Each runs in a process of its own, as it would
be used (ours keeps its heap, as every reading process of the box does), so that neither pays for the other's garbage; the
processes take turns and time themselves. The second row is how far the two pictures lie apart: mean absolute difference in
shares of full scale, at most 0.001.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
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
from tools.bench.rows import Row, medians, row, speedup

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


def _begin(keeps_heap: bool) -> None:
    if keeps_heap:
        heap.keep()
    cv2.setNumThreads(1)


def _timed(way: Callable[[Path], npt.NDArray[Any]], path: Path) -> float:
    start = time.perf_counter()
    way(path)
    return time.perf_counter() - start


def run() -> Iterator[Row]:
    """Speed, then likeness."""
    cv2.setNumThreads(1)
    path = film()
    spawn = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {"ours": [], "pydicom": []}
    with spawn.Pool(1, _begin, (True,)) as mine, spawn.Pool(1, _begin, (False,)) as stock:
        for turn in range(-2, ROUNDS):
            for name, pool, way in (("ours", mine, ours), ("pydicom", stock, theirs)):
                taken = pool.apply(_timed, (way, path))
                if turn >= 0:  # the first two warm up
                    seconds[name].append(taken)
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
