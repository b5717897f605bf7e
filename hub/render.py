"""A picture for the browser out of a DICOM original, in a process of its own: ``python -m hub.render FILE FOLDER``.

What this module keeps true: a file from the wire is decoded only in a child process with limits on memory and time, so a
hostile or broken one costs that picture and nothing else; MONOCHROME1 is inverted, the window comes from the file (VOI
LUT), pixels keep up to 16 bits so that the reader can window them again.

Into FOLDER: ``image.png`` (8 bit, default window), ``pixels.bin`` (grey images: little-endian 16 bit, row by row) and
``image.json`` (``Picture``).
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

MAXIMUM_SIDE = 1600
"""The longer side of what the browser gets, in pixels; enough for a full screen, small enough for a tablet."""

_MAXIMUM_PIXELS = 200_000_000
_MEMORY = 4 << 30
_SECONDS = 60


class RenderError(Exception):
    """No picture can be made of this file; the message says why."""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """What was made. ``centre`` and ``width`` of the default window as shares of the 16-bit range; grey images only."""

    columns: int
    rows: int
    grey: bool
    frames: int = 1
    centre: float = 0.5
    width: float = 1.0


def rendered(original: Path, folder: Path) -> Picture:
    """The picture of ``original``, kept in ``folder`` from the first time on; raises ``RenderError``."""
    described = folder / "image.json"
    if not described.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="render-") as work:
            _in_child(original, Path(work))
            folder.mkdir(exist_ok=True)
            for name in ("image.png", "pixels.bin", "image.json"):  # the description last: it says the rest is there
                if (Path(work) / name).exists():
                    (Path(work) / name).replace(folder / name)
    return msgspec.json.decode(described.read_bytes(), type=Picture)


def _in_child(original: Path, work: Path) -> None:
    command = [sys.executable, "-m", "hub.render", str(original), str(work)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        child = subprocess.run(command, check=False, capture_output=True, timeout=_SECONDS + 10, env=environment)
    except subprocess.TimeoutExpired as error:
        raise RenderError("decoding took too long") from error
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise RenderError(lines[-1][:200] if lines else f"the decoder ended with status {child.returncode}")


def _render(original: Path, work: Path) -> None:
    import cv2
    import numpy as np
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    dataset = pydicom.dcmread(original)
    pixels, frames = int(dataset.Rows) * int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
    if pixels > _MAXIMUM_PIXELS:
        raise RenderError(f"{dataset.Rows} × {dataset.Columns} pixels are more than {_MAXIMUM_PIXELS}")
    # The frame in the middle stands for a clip.
    array = pixel_array(dataset, index=frames // 2)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        array = apply_color_lut(array, dataset)
    if array.ndim == 3:
        eight = array if array.dtype == np.uint8 else (array >> (8 * (array.itemsize - 1))).astype(np.uint8)
        shown = _shrink(cv2, np.ascontiguousarray(eight[..., 2::-1]))
        picture = Picture(columns=shown.shape[1], rows=shown.shape[0], grey=False, frames=frames)
    else:
        values = apply_modality_lut(array, dataset).astype(np.float32)
        low, high = float(values.min()), float(values.max())
        centre, width = _window(dataset, low, high)
        if "VOILUTSequence" in dataset or dataset.get("VOILUTFunction", "LINEAR") != "LINEAR":
            values = apply_voi_lut(values if "VOILUTSequence" not in dataset else array, dataset).astype(np.float32)
            low, high = float(values.min()), float(values.max())
            centre, width = (low + high) / 2, high - low
        span = max(high - low, 1e-6)
        share = _shrink(cv2, (values - low) / span)
        centre, width = (centre - low) / span, max(width / span, 1e-4)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            share, centre = 1.0 - share, 1.0 - centre
        (work / "pixels.bin").write_bytes((share * 65535).round().astype("<u2").tobytes())
        shown = (np.clip((share - (centre - width / 2)) / width, 0, 1) * 255).round().astype(np.uint8)
        size = {"columns": shown.shape[1], "rows": shown.shape[0]}
        picture = Picture(**size, grey=True, frames=frames, centre=centre, width=width)
    if not cv2.imwrite(str(work / "image.png"), shown):
        raise RenderError("the picture can't be written")
    (work / "image.json").write_bytes(msgspec.json.encode(picture))


def _shrink(cv2: Any, image: Any) -> Any:
    scale = MAXIMUM_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _window(dataset: Any, low: float, high: float) -> tuple[float, float]:
    """The file's first window, or the whole range (DICOM PS3.3 C.11.2.1.2: width at least 1)."""
    centre, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    try:
        centre = float(centre[0] if isinstance(centre, (list, tuple)) or hasattr(centre, "append") else centre)
        width = float(width[0] if isinstance(width, (list, tuple)) or hasattr(width, "append") else width)
    except (TypeError, ValueError, IndexError):
        return (low + high) / 2, max(high - low, 1.0)
    return (centre, width) if width >= 1 else ((low + high) / 2, max(high - low, 1.0))


def main(original: Path, work: Path) -> int:
    """The child: limits first, then decode."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    try:
        _render(original, work)
    except Exception as error:  # noqa: BLE001 - the edge of a process that exists to contain them
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        shutil.rmtree(work, ignore_errors=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
