"""How stored grey values are meant to be shown: rescale, modality LUT, VOI LUT and window, brought to *stored* values.

What this module keeps true: everything after it works on stored values only, so pixels need not be rescaled before they
are shrunk. A straight rescale moves the window; whatever is not straight becomes one table over all stored values.
PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT) and C.7.6.3.1.5 (pixel values).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from appliance.reading.dicom_header import number, text

Table = npt.NDArray[np.float32]


class Display(NamedTuple):
    """Window (centre, width, as in DICOM's LINEAR or SIGMOID function) or table, in stored values.

    ``falling``: higher stored values are darker because the rescale's slope is negative.
    """

    window: tuple[float, float] | None = None
    lut: tuple[float, Table] | None = None
    sigmoid: bool = False
    falling: bool = False


class _Lut(NamedTuple):
    first: float
    table: npt.NDArray[np.float64]
    top: float

    def __call__(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        index = np.clip(np.rint(values - self.first), 0, len(self.table) - 1).astype(np.intp)
        return self.table[index]


def display(dataset: Any, stored: int, *, signed: bool) -> Display:
    """The ``Display`` of a grey image of ``stored`` bits; the first of several windows or tables counts."""
    modality = _lut(dataset, "ModalityLUTSequence", signed=signed)
    slope, intercept = number(dataset, "RescaleSlope", 1.0) or 1.0, number(dataset, "RescaleIntercept", 0.0)
    voi = _lut(dataset, "VOILUTSequence", signed=signed or intercept < 0)
    window = _window(dataset)
    function = text(dataset, "VOILUTFunction").upper() or "LINEAR"
    if modality is None and voi is None:
        if window is None:
            return Display(falling=slope < 0)
        moved = _moved(window, slope, intercept, function)
        return Display(window=moved, sigmoid=function == "SIGMOID", falling=slope < 0)
    if modality is None and voi is not None and slope == 1.0:
        return Display(lut=(voi.first - intercept, (voi.table / voi.top).astype(np.float32)))
    lowest = -(1 << (stored - 1)) if signed else 0
    values = np.arange(lowest, lowest + (1 << stored), dtype=np.float64)
    values = modality(values) if modality is not None else values * slope + intercept
    if voi is not None:
        shown = voi(values) / voi.top
    elif window is not None:
        shown = _windowed(values, window, function)
    else:
        shown = values / (modality.top if modality is not None else 1.0)
    return Display(lut=(float(lowest), shown.astype(np.float32)))


def _window(dataset: Any) -> tuple[float, float] | None:
    centre, width = number(dataset, "WindowCenter", np.nan), number(dataset, "WindowWidth", np.nan)
    return None if np.isnan(centre) or np.isnan(width) or width <= 0 else (centre, width)


def _moved(window: tuple[float, float], slope: float, intercept: float, function: str) -> tuple[float, float]:
    """The window in stored values. Exact and linear functions differ by half a value (C.11.2.1.2.1 and C.11.2.1.3.2)."""
    centre, width = window
    if function == "SIGMOID":
        return (centre - intercept) / slope, width / abs(slope)
    middle, extent = (centre, width) if function == "LINEAR_EXACT" else (centre - 0.5, width - 1.0)
    return (middle - intercept) / slope + 0.5, extent / abs(slope) + 1.0


def _windowed(values: npt.NDArray[np.float64], window: tuple[float, float], function: str) -> npt.NDArray[np.float64]:
    centre, width = window
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -50.0, 50.0))))
    middle, extent = (centre, width) if function == "LINEAR_EXACT" else (centre - 0.5, width - 1.0)
    return np.asarray(np.clip((values - middle) / max(extent, 1e-6) + 0.5, 0.0, 1.0))


def _lut(dataset: Any, keyword: str, *, signed: bool) -> _Lut | None:
    """The first table of a LUT sequence; descriptor (entries, first value mapped, bits) as in C.11.1.1 and C.11.2.1.1."""
    sequence = dataset.get(keyword)
    if not sequence or "LUTData" not in sequence[0] or "LUTDescriptor" not in sequence[0]:
        return None
    entries, first, bits = (int(value) for value in sequence[0].LUTDescriptor)
    entries = entries or 1 << 16
    if first >= 1 << 15 and signed:
        first -= 1 << 16
    data = sequence[0].LUTData
    if isinstance(data, bytes):
        wide = len(data) >= 2 * entries
        big = not dataset.original_encoding[1]
        kind = np.dtype((">" if big else "<") + "u2") if wide else np.dtype("u1")
        table = np.frombuffer(data, kind, min(entries, len(data) // kind.itemsize)).astype(np.float64)
    else:
        table = np.atleast_1d(np.asarray(data, dtype=np.float64))[:entries]
    if not table.size:
        return None
    # Entries above what the descriptor's bits can hold occur in the field: the table's own reach then counts.
    return _Lut(float(first), table, max(float((1 << min(bits, 16)) - 1), float(table.max()), 1.0))
