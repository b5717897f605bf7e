"""A picture for the browser out of a DICOM original, in a process of its own: ``python -m hub.render FILE FOLDER``.

What this module keeps true: a file from the wire is decoded only in a child process with limits on memory and time, so a
hostile or broken one costs that picture and nothing else; MONOCHROME1 is inverted, the window comes from the file (VOI
LUT), pixels keep up to 16 bits so that the reader can window them again.

Into FOLDER: ``image.png`` (8 bit, default window), ``pixels.bin`` (grey images: little-endian 16 bit, row by row) and
``picture.json`` (``Picture``); of a clip on request ``frame-N.jpg``, ``AT_ONCE`` frames at a time: ``… FILE FOLDER N``.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec

MAXIMUM_SIDE = 1600
"""The longer side of what the browser gets, in pixels; enough for a full screen, small enough for a tablet."""

AT_ONCE = 24
"""Frames of a clip that one child decodes."""

_CLIP_SIDE = 1024
_MAXIMUM_FRAMES = 10_000
_MAXIMUM_PIXELS = 200_000_000
_MEMORY = 4 << 30
_SECONDS = 60


class RenderError(Exception):
    """No picture can be made of this file; the message says why."""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """What was made. ``centre`` and ``width`` of the default window as shares of the 16-bit range; grey images only.

    ``spacing``: mm from row to row and from column to column of what is shown; ``spacing_at`` says where that is true.
    ``times_ms``: when each frame of a clip begins; not ``times_said``: the file does not say, 25 in a second are assumed.
    """

    columns: int
    rows: int
    grey: bool
    frames: int = 1
    centre: float = 0.5
    width: float = 1.0
    spacing: tuple[float, float] | None = None
    spacing_at: Literal["", "patient", "detector"] = ""
    times_ms: list[float] = []
    times_said: bool = True


def rendered(original: Path, folder: Path) -> Picture:
    """The picture of ``original``, kept in ``folder`` from the first time on; raises ``RenderError``."""
    described = folder / "picture.json"
    if not described.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="render-") as work:
            _in_child(original, Path(work))
            folder.mkdir(exist_ok=True)
            for name in ("image.png", "pixels.bin", "picture.json"):  # the description last: it says the rest is there
                if (Path(work) / name).exists():
                    (Path(work) / name).replace(folder / name)
    return msgspec.json.decode(described.read_bytes(), type=Picture)


def frame(original: Path, folder: Path, number: int) -> Path:
    """One frame of a clip as JPEG, kept in ``folder``; raises ``RenderError``."""
    wanted = folder / f"frame-{number}.jpg"
    if not wanted.exists():
        picture = rendered(original, folder)
        if not 0 <= number < picture.frames:
            raise RenderError(f"the clip has {picture.frames} frames, 0 to {picture.frames - 1}")
        with tempfile.TemporaryDirectory(dir=folder, prefix="render-") as work:
            _in_child(original, Path(work), str(number // AT_ONCE * AT_ONCE))
            for made in Path(work).glob("frame-*.jpg"):
                made.replace(folder / made.name)
    return wanted


def _in_child(original: Path, work: Path, *first: str) -> None:
    command = [sys.executable, "-m", "hub.render", str(original), str(work), *first]
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

    dataset = pydicom.dcmread(original)
    frames = _frames(dataset)
    # The frame in the middle stands for a clip.
    array = _array(dataset, frames // 2)
    times, said = _times(dataset, frames)
    grey, centre, width = array.ndim != 3, 0.5, 1.0
    if grey:
        share, centre, width = _grey(np, dataset, array)
        share = _shrink(cv2, share, MAXIMUM_SIDE)
        (work / "pixels.bin").write_bytes((share * 65535).round().astype("<u2").tobytes())
        shown = _windowed(np, share, centre, width)
    else:
        shown = _shrink(cv2, _eight(np, array), MAXIMUM_SIDE)
    spacing, at = _spacing(dataset, array.shape[0] / shown.shape[0])
    picture = Picture(
        columns=shown.shape[1],
        rows=shown.shape[0],
        grey=grey,
        frames=frames,
        centre=centre,
        width=width,
        spacing=spacing,
        spacing_at=at,
        times_ms=times,
        times_said=said,
    )
    if not cv2.imwrite(str(work / "image.png"), shown):
        raise RenderError("the picture can't be written")
    (work / "picture.json").write_bytes(msgspec.json.encode(picture))


def _render_frames(original: Path, work: Path, first: int) -> None:
    import cv2
    import numpy as np
    import pydicom

    dataset = pydicom.dcmread(original)
    for number in range(first, min(first + AT_ONCE, _frames(dataset))):
        array = _array(dataset, number)
        shown = _eight(np, array) if array.ndim == 3 else _windowed(np, *_grey(np, dataset, array))
        path = str(work / f"frame-{number}.jpg")
        if not cv2.imwrite(path, _shrink(cv2, shown, _CLIP_SIDE), [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise RenderError("the frame can't be written")


def _frames(dataset: Any) -> int:
    frames = int(dataset.get("NumberOfFrames") or 1)
    if int(dataset.Rows) * int(dataset.Columns) > _MAXIMUM_PIXELS or not 1 <= frames <= _MAXIMUM_FRAMES:
        raise RenderError(f"{frames} × {dataset.Rows} × {dataset.Columns} pixels are more than a picture has")
    return frames


def _array(dataset: Any, number: int) -> Any:
    from pydicom.pixels import apply_color_lut, pixel_array

    array = pixel_array(dataset, index=number)
    return apply_color_lut(array, dataset) if dataset.PhotometricInterpretation == "PALETTE COLOR" else array


def _eight(np: Any, array: Any) -> Any:
    eight = array if array.dtype == np.uint8 else (array >> (8 * (array.itemsize - 1))).astype(np.uint8)
    return np.ascontiguousarray(eight[..., 2::-1])


def _windowed(np: Any, share: Any, centre: float, width: float) -> Any:
    return (np.clip((share - (centre - width / 2)) / width, 0, 1) * 255).round().astype(np.uint8)


def _grey(np: Any, dataset: Any, array: Any) -> tuple[Any, float, float]:
    """(values as shares of their range, centre and width of the file's window as such shares)."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(array, dataset).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    centre, width = _window(dataset, low, high)
    if "VOILUTSequence" in dataset or dataset.get("VOILUTFunction", "LINEAR") != "LINEAR":
        values = apply_voi_lut(values if "VOILUTSequence" not in dataset else array, dataset).astype(np.float32)
        low, high = float(values.min()), float(values.max())
        centre, width = (low + high) / 2, high - low
    span = max(high - low, 1e-6)
    share, centre, width = (values - low) / span, (centre - low) / span, max(width / span, 1e-4)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        share, centre = 1.0 - share, 1.0 - centre
    return share, centre, width


def _spacing(dataset: Any, shrunk: float) -> tuple[tuple[float, float] | None, Literal["", "patient", "detector"]]:
    """Millimetres between pixels and where that holds (DICOM PS3.3 10.7.1.1 and 10.7.1.3; ultrasound: C.8.5.5)."""
    regions = [one for one in dataset.get("SequenceOfUltrasoundRegions", []) if one.get("RegionSpatialFormat") == 1]
    if regions:
        deltas = {(float(one.PhysicalDeltaY), float(one.PhysicalDeltaX)) for one in regions}
        units = {
            int(one.get(name, 0)) for one in regions for name in ("PhysicalUnitsXDirection", "PhysicalUnitsYDirection")
        }
        if len(deltas) != 1 or units != {3}:  # 3: centimetres
            return None, ""
        [(row, column)] = deltas
        return _scaled(10 * abs(row), 10 * abs(column), shrunk), "patient"
    patient, detector = dataset.get("PixelSpacing"), dataset.get("ImagerPixelSpacing")
    calibrated = patient and (
        dataset.get("PixelSpacingCalibrationType") or (detector and list(detector) != list(patient))
    )
    projection = dataset.get("Modality") in ("CR", "DX", "MG", "RF", "XA", "RG") or bool(detector)
    if patient and (calibrated or not projection):
        return _scaled(float(patient[0]), float(patient[1]), shrunk), "patient"
    if patient or detector:
        found = detector or patient
        return _scaled(float(found[0]), float(found[1]), shrunk), "detector"
    return None, ""


def _scaled(row: float, column: float, shrunk: float) -> tuple[float, float] | None:
    return (row * shrunk, column * shrunk) if row > 0 and column > 0 else None


def _times(dataset: Any, frames: int) -> tuple[list[float], bool]:
    """When each frame begins, ms (DICOM PS3.3 C.7.6.5.1: frame time, frame time vector, recommended rate)."""
    if frames < 2:
        return [], True
    vector = [float(one) for one in dataset.get("FrameTimeVector") or []]
    if len(vector) == frames and all(one >= 0 for one in vector) and sum(vector[1:]) > 0:
        times, at = [], 0.0
        for number, step in enumerate(vector):
            at += step if number else 0.0
            times.append(round(at, 3))
        return times, True
    step = float(dataset.get("FrameTime") or 0)
    rate = float(dataset.get("CineRate") or dataset.get("RecommendedDisplayFrameRate") or 0)
    step = step if step > 0 else (1000 / rate if rate > 0 else 0)
    said = step > 0
    return [round(number * (step if said else 40.0), 3) for number in range(frames)], said


def _shrink(cv2: Any, image: Any, side: int) -> Any:
    scale = side / max(image.shape[:2])
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


def main(original: Path, work: Path, first: int | None = None) -> int:
    """The child: limits first, then decode."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    try:
        if first is None:
            _render(original, work)
        else:
            _render_frames(original, work, first)
    except Exception as error:  # noqa: BLE001 - the edge of a process that exists to contain them
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        shutil.rmtree(work, ignore_errors=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(word) for word in sys.argv[3:4])))
