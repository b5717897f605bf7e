"""The made-up hard set: pictures that a chest X-ray or lung ultrasound model must refuse.

What this module keeps true: every kind is named, so that a gate can be measured on a kind left out of its training; all
are float32 ``[320, 320]`` in 0…1, as after ``tensor320``; the same seed gives the same pictures. Other modalities come from
packages that the project's development group depends on, never from the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from appliance.reading import xray
from appliance.reading.prepared import Header, Picture

Grey = npt.NDArray[np.float32]
SIDE = xray.BASE
HELD_OUT = ("RG1", "RG3")
"""Pictures of pydicom-data that no gate is trained on: they are test captures."""


def _crop(picture: Grey, random: np.random.Generator) -> Grey:
    share = np.sqrt(random.uniform(0.06, 0.3))
    side = int(SIDE * share)
    top, left = (int(random.integers(0, SIDE - side + 1)) for _ in range(2))
    return np.asarray(cv2.resize(picture[top : top + side, left : left + side], (SIDE, SIDE)), dtype=np.float32)


def _noisy(picture: Grey, random: np.random.Generator) -> Grey:
    return np.clip(picture + random.normal(0, random.uniform(0.3, 0.8), picture.shape), 0, 1).astype(np.float32)


def _blurred(picture: Grey, random: np.random.Generator) -> Grey:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), random.uniform(9, 20)), dtype=np.float32)


def _cut_off(picture: Grey, random: np.random.Generator) -> Grey:
    out = picture.copy()
    row = int(SIDE * random.uniform(0.25, 0.5))
    out[row:] = random.choice([0.0, 0.5, 1.0])
    return out


def _tiled(picture: Grey, _: np.random.Generator) -> Grey:
    return np.asarray(np.tile(cv2.resize(picture, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA), (2, 2)))


def _saturated(picture: Grey, random: np.random.Generator) -> Grey:
    level = float(np.quantile(picture, random.uniform(0.3, 0.7)))
    return ((picture > level).astype(np.float32) * np.float32(0.9)) + np.float32(0.05)


CHANGES: dict[str, Callable[[Grey, np.random.Generator], Grey]] = {
    "rotated 90°": lambda p, _: np.ascontiguousarray(np.rot90(p)),
    "rotated 270°": lambda p, _: np.ascontiguousarray(np.rot90(p, 3)),
    "rotated 180°": lambda p, _: np.ascontiguousarray(np.rot90(p, 2)),
    "upside down": lambda p, _: np.ascontiguousarray(p[::-1]),
    "inverted": lambda p, _: np.float32(1) - p,
    "crop": _crop,
    "heavy noise": _noisy,
    "heavy blur": _blurred,
    "cut off": _cut_off,
    "tiled": _tiled,
    "two tones": _saturated,
}
"""What is done to good captures. Ultrasound leaves out those that its gate can't or need not tell."""


def textures(random: np.random.Generator) -> dict[str, list[Grey]]:
    """Pictures made of nothing: coloured noise, stripes, checks, gradients, text, discs, flat grey."""
    made: dict[str, list[Grey]] = {"noise": [], "pattern": [], "text": [], "flat": [], "shapes": []}
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None, :])
    for _ in range(40):
        spectrum = np.fft.fft2(random.normal(size=(SIDE, SIDE))) / np.maximum(frequency, 1 / SIDE) ** random.uniform(
            0, 2.2
        )
        made["noise"].append(_unit(np.real(np.fft.ifft2(spectrum))))
        angle, waves = random.uniform(0, np.pi), random.uniform(2, 40)
        wave = np.sin(2 * np.pi * waves * (rows * np.cos(angle) + columns * np.sin(angle)))
        check = np.sign(np.sin(waves * rows * 6)) * np.sign(np.sin(waves * columns * 6))
        made["pattern"] += [_unit(wave), _unit(check)]
        made["flat"].append(
            _unit(rows * random.normal() + columns * random.normal()) * np.float32(random.uniform(0, 1))
        )
        made["text"].append(_text(random))
        made["shapes"].append(_shapes(random))
    return made


def _text(random: np.random.Generator) -> Grey:
    page = np.full((SIDE, SIDE), random.choice([0, 255]), np.uint8)
    ink = 255 - int(page[0, 0])
    letters = np.array(list("ABCDEFGHIKLMNOPRSTUVWXYZ 0123456789"))
    for row in range(12, SIDE, int(random.integers(12, 28))):
        line = "".join(random.choice(letters, 36))
        cv2.putText(page, line, (4, row), cv2.FONT_HERSHEY_SIMPLEX, random.uniform(0.3, 0.6), ink, 1)
    return page.astype(np.float32) / np.float32(255)


def _shapes(random: np.random.Generator) -> Grey:
    """Soft bright bars and discs on dark: limbs, hands and phantoms in outline."""
    out = np.full((SIDE, SIDE), random.uniform(0, 0.2), np.float32)
    angle = random.uniform(0, np.pi)
    for _ in range(int(random.integers(1, 7))):
        centre = random.uniform(60, SIDE - 60, 2)
        reach = random.uniform(60, 200) * np.array([np.cos(angle), np.sin(angle)])
        layer = np.zeros_like(out)
        first, last = (tuple(int(v) for v in point) for point in (centre - reach, centre + reach))
        width = int(random.integers(10, 80))
        cv2.line(layer, first, last, random.uniform(0.3, 0.6), width)
        cv2.line(layer, first, last, random.uniform(0.6, 1.0), max(1, width // 3))
        out = np.maximum(out, cv2.GaussianBlur(layer, (0, 0), random.uniform(1, 5)))
        angle += random.normal() * 0.3
    grain = random.normal(0, 0.02, out.shape)
    return np.clip(out + grain, 0, 1).astype(np.float32)


def _unit(values: npt.NDArray[Any]) -> Grey:
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-6)).astype(np.float32)


def other_dicom(wanted: Callable[[str], bool]) -> list[Grey]:
    """Frames of pydicom-data's pictures (MR, CT, ultrasound, faces, colour charts) whose modality is ``wanted``."""
    import data_store
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import pixel_array

    found: list[Grey] = []
    folder = Path(data_store.__file__).parent / "data"  # only what the package holds: pydicom's own way would download
    for name in sorted(folder.glob("**/*.dcm")):
        if name.name.startswith(HELD_OUT):
            continue
        try:
            header = pydicom.dcmread(name, stop_before_pixels=True)
            if not wanted(str(header.get("Modality", ""))) or header.get("Rows", 0) < 48:
                continue
            pixels = pixel_array(name)
        except (AttributeError, ValueError, RuntimeError, KeyError, TypeError, EOFError, InvalidDicomError):
            continue  # damaged on purpose, or a syntax without a decoder here: no use as a picture
        colour = header.get("SamplesPerPixel", 1) == 3
        frames = pixels.reshape(-1, *pixels.shape[-3:]) if colour else pixels.reshape(-1, *pixels.shape[-2:])
        for frame in frames[:: max(1, len(frames) // 4)][:4]:
            shown = frame if frame.dtype in (np.uint8, np.uint16, np.int16) else frame.astype(np.float32)
            picture = Picture(header=Header(media_type="application/dicom"), pixels=np.ascontiguousarray(shown)[None])
            found.append(xray.tensor320(picture))
    return found


def photographs() -> list[Grey]:
    """Crops of the photographs that scikit-learn and matplotlib carry."""
    import matplotlib as mpl
    from sklearn.datasets import load_sample_images

    pages = [np.asarray(page) for page in load_sample_images().images]
    portrait = Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    pages.append(cv2.cvtColor(cv2.imread(str(portrait), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))
    random = np.random.default_rng(3)
    found = []
    for page in pages:
        for _ in range(24):
            side = int(min(page.shape[:2]) * random.uniform(0.3, 1.0))
            top, left = (int(random.integers(0, page.shape[axis] - side + 1)) for axis in (0, 1))
            crop = np.ascontiguousarray(page[top : top + side, left : left + side])
            found.append(xray.tensor320(Picture(header=Header(media_type="image/jpeg"), pixels=crop[None])))
    return found


def spectrograms(sounds: Sequence[Path]) -> list[Grey]:
    """Log spectrograms of recordings, as a confused user might send them."""
    import soundfile

    found = []
    for path in sounds:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = samples[: rate * 8, 0]
        length = max(64, int(rate * 0.03))
        if len(mono) < 4 * length:
            continue
        starts = np.arange(0, len(mono) - length, length // 3)
        frames = np.stack([mono[s : s + length] for s in starts]) * np.hanning(length).astype(np.float32)
        power = np.log(np.abs(np.fft.rfft(frames, axis=1)) ** 2 + 1e-7).T[::-1]
        found.append(np.asarray(cv2.resize(_unit(power), (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.float32))
    return found
