"""Fits and measures the gate of a picture model from captures of named kinds.

What this module keeps true: RG1 and RG3 of pydicom-data are test captures and never in a fit; the shares that a card gives
come from patients, and for "kind not in the fit" from kinds, that the measured copy was not fitted to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tools.train import build, gate

FOLDS = 4
GOOD, CHANGED = "good", "good, changed"


class Captures(msgspec.Struct, frozen=True):
    """Model inputs ``[m, 224, 224]``, the kind of each, its patient's fold (−1: no patient) and its source."""

    images: npt.NDArray[np.float32]
    kinds: npt.NDArray[np.str_]
    folds: npt.NDArray[np.int64]
    sources: npt.NDArray[np.str_]


class Collector:
    """Gathers captures one by one."""

    def __init__(self) -> None:
        self._images: list[npt.NDArray[np.float32]] = []
        self._rest: list[tuple[str, int, str]] = []

    def keep(self, image: npt.NDArray[np.float32], kind: str, fold: int = -1, source: str = "") -> None:
        """Add a model input ``[224, 224]``."""
        self._images.append(image)
        self._rest.append((kind, fold, source))

    def captures(self) -> Captures:
        """All that was kept."""
        kinds, folds, sources = zip(*self._rest, strict=True)
        return Captures(np.stack(self._images), np.array(kinds), np.array(folds), np.array(sources))


class Outcome(msgspec.Struct, frozen=True):
    """A fitted gate, its threshold (probability), the table for the card and the usual reach of the distance."""

    fitted: gate.Fitted
    threshold: float
    table: dict[str, dict[str, Any]]
    far: float


def measure(captures: Captures, model: Path, refused_good: float) -> Outcome:
    """Fit the gate to ``features`` of an INT8 graph; ``refused_good``: share of good captures given up.

    The features are those of the form derived on x86 beside ``model``, which says the same in a fifth of the time.
    """
    features = build.scored(model.with_suffix(".x86.onnx"), captures.images, ["features"])["features"]
    kinds = captures.kinds
    folds = np.where(captures.folds >= 0, captures.folds, np.arange(len(kinds)) % FOLDS)
    clean = kinds == GOOD
    good = clean | (kinds == CHANGED)
    held_good, held_bad, unseen = gate.measured(
        features[good], folds[good], features[~good], kinds[~good], folds[~good]
    )
    threshold = gate.choose_threshold(held_good[clean[good]], refused_good)
    fitted = gate.fit(features[good], features[~good], kinds[~good])
    bad_kinds = sorted(set(kinds[~good]))

    def entry(logits: npt.NDArray[np.floating]) -> dict[str, Any]:
        return {"n": len(logits), "refused": gate.refused(logits, threshold)}

    table: dict[str, dict[str, Any]] = {}
    for source in sorted(set(captures.sources[clean])):
        table[f"good: {source}"] = entry(held_good[clean[good] & (captures.sources[good] == source)])
    table["good, changed (other device, borders, small turns)"] = entry(held_good[~clean[good]])
    shares = [gate.refused(held_bad[kinds[~good] == kind], threshold) for kind in bad_kinds]
    table["wrong: all kinds, each weighing the same"] = {"n": len(held_bad), "refused": float(np.mean(shares))}
    table |= {f"wrong: {kind}": entry(held_bad[kinds[~good] == kind]) for kind in bad_kinds}
    table |= {f"wrong, kind not in the fit: {kind}": entry(unseen[kind]) for kind in bad_kinds}
    far = float(np.quantile(gate.distance(fitted, features[clean]), 0.99))
    return Outcome(fitted, threshold, table, far)
