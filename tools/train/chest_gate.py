"""Good and wrong captures for the chest X-ray gate.

What this module keeps true: a changed film is in the fold of its patient, whatever was made of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from appliance.reading import xray
from tools.train import hard, pictures, splits
from tools.train.chest_data import Film
from tools.train.picture_gate import CHANGED, FOLDS, GOOD, Captures, Collector

FILMS = 700
"""Most films of a source."""


def captures(data: Path, found: list[Film]) -> Captures:
    """Films as they are, changed as other devices would, and made wrong; other pictures; model inputs of all."""
    random = np.random.default_rng(17)
    by_source = [np.flatnonzero([film.source == source for film in found]) for source in ("kermany", "nih")]
    chosen = np.concatenate([random.choice(rows, min(FILMS, len(rows)), replace=False) for rows in by_source])
    films = [found[i] for i in chosen]
    folds = splits.folds([film.patient for film in films], [film.source for film in films], FOLDS)
    collector = Collector()
    for i, film in enumerate(films):
        _film(collector, film, i, int(folds[i]), random)
    strangers(collector, data, random)
    for path in sorted((data / "lung-ultrasound").rglob("*.jpg"))[::8]:
        collector.keep(xray.normalise(xray.tensor320(pictures.load(path))), "ultrasound")
    return collector.captures()


def _film(collector: Collector, film: Film, number: int, fold: int, random: np.random.Generator) -> None:
    base = xray.tensor320(pictures.load(film.path))
    collector.keep(xray.normalise(base), GOOD, fold, film.source)
    affine = pictures.placement(random, xray.BASE, (0.75, 1.1), 0.2, 10.0, flip=True)
    worn = pictures.worn(pictures.placed(base, affine), random)
    collector.keep(pictures.toned(xray.normalise(worn), random), CHANGED, fold, film.source)
    names = list(hard.CHANGES)
    for step in range(3):
        kind = names[(3 * number + step) % len(names)]
        changed = hard.CHANGES[kind](base, random)
        collector.keep(xray.normalise(changed), kind, fold, film.source)


def strangers(collector: Collector, data: Path, random: np.random.Generator) -> None:
    """Pictures that are no X-ray: textures, photographs, other modalities, spectrograms."""

    def keep(base: npt.NDArray[np.float32], kind: str) -> None:
        collector.keep(xray.normalise(base), kind)

    for kind, made in hard.textures(random).items():
        for base in made:
            keep(base, kind)
    for base in hard.photographs():
        keep(base, "photograph")
    for base in hard.other_dicom(lambda modality: modality not in {"CR", "DX"}):
        for changed in (base, np.ascontiguousarray(base[:, ::-1]), np.float32(1) - base):
            keep(changed, "other modality")
    sounds = [*sorted((data / "heart-sound").rglob("*.*"))[::12], *sorted((data / "lung-sound").rglob("*.*"))[::15]]
    for base in hard.spectrograms([path for path in sounds if path.suffix in {".wav", ".flac"}]):
        keep(base, "spectrogram")
