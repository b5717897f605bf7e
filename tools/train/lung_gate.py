"""Good and wrong captures for the lung ultrasound gate.

What this module keeps true: wrong captures are cropped to a sector as the box would crop them; a turned clip is in the fold
of its patient. Mirrored clips are good: probes are held either way. Other ultrasound (heart, abdomen, vessels) is at hand
only in pydicom-data's few pictures, so the gate can't be trusted to tell it; the card says so.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from appliance.reading import ultrasound, xray
from appliance.reading.prepared import Header, Picture
from tools.train import hard, lung_data, pictures, splits
from tools.train.lung_data import Clip
from tools.train.picture_gate import CHANGED, FOLDS, GOOD, Captures, Collector

Grey = npt.NDArray[np.float32]
FRAMES = 3
CHANGES = (
    "rotated 90°",
    "rotated 270°",
    "rotated 180°",
    "upside down",
    "inverted",
    "heavy noise",
    "tiled",
    "two tones",
)
X_RAYS = 30


def captures(data: Path, found: list[Clip]) -> Captures:
    """Frames as they are, changed as other scanners would, and made wrong; other pictures; model inputs of all."""
    random = np.random.default_rng(23)
    usable = [clip for clip in found if clip.trainable]
    folds = splits.folds([clip.patient for clip in usable], [clip.site for clip in usable], FOLDS)
    collector = Collector()
    for i, clip in enumerate(usable):
        whole = lung_data.frames(clip)
        for step, number in enumerate(ultrasound.evenly(len(whole), FRAMES)):
            frame = whole[number]
            collector.keep(frame, GOOD, int(folds[i]), clip.site)
            for _ in range(2):
                collector.keep(lung_data.changed(frame, random), CHANGED, int(folds[i]), clip.site)
            for more in range(3):
                kind = CHANGES[(FRAMES * 3 * i + 3 * step + more) % len(CHANGES)]
                large = np.asarray(
                    cv2.resize(frame, (hard.SIDE, hard.SIDE), interpolation=cv2.INTER_LINEAR), np.float32
                )
                collector.keep(cropped(hard.CHANGES[kind](large, random)), kind, int(folds[i]), clip.site)
    _strangers(collector, data, random)
    return collector.captures()


def _strangers(collector: Collector, data: Path, random: np.random.Generator) -> None:
    for kind, made in hard.textures(random).items():
        for base in made:
            collector.keep(cropped(base), kind)
    for base in hard.photographs():
        collector.keep(cropped(base), "photograph")
    for base in hard.other_dicom(lambda modality: modality != "US"):
        for changed in (base, np.ascontiguousarray(base[:, ::-1]), np.float32(1) - base):
            collector.keep(cropped(changed), "other modality")
    films = [
        *sorted((data / "chest-xray" / "kermany").rglob("*.jpeg")),
        *sorted((data / "chest-xray" / "nih").rglob("*.jpg")),
    ]
    for path in films[:: max(1, len(films) // (4 * X_RAYS))]:
        collector.keep(cropped(xray.tensor320(pictures.load(path))), "chest X-ray")
    sounds = [*sorted((data / "heart-sound").rglob("*.*"))[::12], *sorted((data / "lung-sound").rglob("*.*"))[::15]]
    for base in hard.spectrograms([path for path in sounds if path.suffix in {".wav", ".flac"}]):
        collector.keep(cropped(base), "spectrogram")


def cropped(base: Grey) -> Grey:
    """A picture ``[320, 320]`` as the box would prepare it: cropped to what is lit, 224 pixels."""
    picture = Picture(header=Header(media_type="image/png"), pixels=np.round(base * 255).astype(np.uint8)[None])
    box = ultrasound.sector(picture, [0]) or (0, 0, *base.shape)
    return ultrasound.tensor(picture, 0, box, 224)


def shrunk(base: Grey) -> Grey:
    """A picture ``[320, 320]`` at the model's size, not cropped."""
    return np.asarray(cv2.resize(base, (224, 224), interpolation=cv2.INTER_AREA), dtype=np.float32)


def made_sector(random: np.random.Generator) -> Grey:
    """A generated lung sector: speckle, a bright pleural line, its repeats (A-lines)."""
    rows = np.mgrid[0:224, 0:224][0].astype(np.float32)
    speckle = np.abs(cv2.GaussianBlur(random.normal(size=(224, 224)).astype(np.float32), (0, 0), 1.2))
    lines = sum(np.exp(-(((rows - 50 * k) / 2.5) ** 2)) * 0.8**k for k in range(1, 5))
    made = (speckle * np.exp(-rows / 130) + 0.7 * np.asarray(lines, np.float32)).astype(np.float32)
    return lung_data.wedged(np.clip(made, 0, 1).astype(np.float32), np.random.default_rng(6))
