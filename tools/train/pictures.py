"""Training pictures: files to ``Picture``, and the changes a picture may suffer at another site.

What this module keeps true: a training file goes through the same ``appliance.reading`` code as a capture on the box; all
augmentation acts on the displayed 320-pixel picture (0…1) between that code's two steps. Changes aim at shortcuts: burned-in
text, borders, aspect, sharpness and contrast of the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from appliance.reading.prepared import Header, Picture

Grey = npt.NDArray[np.float32]


def load(path: Path) -> Picture:
    """A JPEG or PNG as a ``Picture`` of one frame; raises ``ValueError`` when it can't be decoded."""
    pixels: npt.NDArray[Any] | None = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{path}: can't be decoded as a picture; check the data folder")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    header = Header(media_type="image/jpeg", rows=pixels.shape[0], columns=pixels.shape[1])
    return Picture(header=header, pixels=pixels[None])


def placement(
    random: np.random.Generator, side: int, area: tuple[float, float], aspect: float, degrees: float, *, flip: bool
) -> npt.NDArray[np.float32]:
    """A random affine map ``[2, 3]`` from the changed picture's pixels back to the picture's."""
    share = random.uniform(*area)
    stretch = np.exp(random.uniform(-aspect, aspect) / 2)
    width, height = np.sqrt(share) * stretch, np.sqrt(share) / stretch
    angle = np.deg2rad(random.uniform(-degrees, degrees))
    mirror = -1.0 if flip and random.random() < 0.5 else 1.0
    room_x, room_y = max(0.0, 1 - width) / 2, max(0.0, 1 - height) / 2
    centre = side * (0.5 + np.array([random.uniform(-room_x, room_x), random.uniform(-room_y, room_y)]))
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos * width * mirror, -sin * height], [sin * width * mirror, cos * height]])
    shift = centre - linear @ np.array([side / 2, side / 2])
    return np.concatenate([linear, shift[:, None]], axis=1).astype(np.float32)


def placed(picture: Grey, affine: npt.NDArray[np.float32]) -> Grey:
    """``picture`` seen through ``affine``; outside is black."""
    size = (picture.shape[1], picture.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(picture, affine, size, flags=flags), dtype=np.float32)


def worn(picture: Grey, random: np.random.Generator) -> Grey:
    """Another device's sharpness and noise, and two boxes at the border that stand for burned-in text and shutters."""
    side = picture.shape[0]
    out = picture.copy()
    if random.random() < 0.5:
        smaller = int(side * random.uniform(0.4, 0.9))
        out = cv2.resize(out, (smaller, smaller), interpolation=cv2.INTER_AREA)
        out = cv2.resize(out, (side, side), interpolation=cv2.INTER_LINEAR)
    for _ in range(2):
        if random.random() < 0.5:
            height, width = (int(side * random.uniform(0.03, 0.14)), int(side * random.uniform(0.08, 0.4)))
            if random.random() < 0.5:
                height, width = width, height
            top, left = random.choice([0, side - height]), int(random.integers(0, side - width + 1))
            if random.random() < 0.5:
                top, left = int(random.integers(0, side - height + 1)), int(random.choice([0, side - width]))
            out[top : top + height, left : left + width] = random.choice([0.0, 1.0, random.random()])
    if random.random() < 0.5:
        out = out + random.normal(0, random.uniform(0.005, 0.04), out.shape).astype(np.float32)
    return np.clip(out, 0.0, 1.0).astype(np.float32)


def toned(image: Grey, random: np.random.Generator) -> Grey:
    """Another device's grey scale: gamma, contrast, brightness, after normalisation."""
    out = np.power(image, np.float32(np.exp(random.uniform(-0.5, 0.5))))
    out = (out - 0.5) * random.uniform(0.75, 1.3) + 0.5 + random.uniform(-0.12, 0.12)
    return np.clip(out, 0.0, 1.0).astype(np.float32)


def toned_dark(image: Grey, random: np.random.Generator) -> Grey:
    """Another gain and dynamic range for ultrasound: black stays black."""
    out = np.power(image, np.float32(np.exp(random.uniform(-0.45, 0.45)))) * random.uniform(0.7, 1.35)
    return np.clip(out, 0.0, 1.0).astype(np.float32)
