"""Is the overlay about the finding? A deletion test and a pointing game on held-out positives.

What this module keeps true: maps come from the shipped INT8 graph. Deletion: the model input's fifth with the highest map is
set to the input's mean; random masks of the same size and grain stand beside it (Samek 2017). Pointing: the map's highest
point lies inside a radiologist's box (Zhang 2018); chance is the share of the picture that the boxes cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from tools.train.quantise import outputs

Floats = npt.NDArray[np.floating]
SHARE = 0.2
RANDOM_MASKS = 5


def enlarged(cam: Floats, side: int) -> Floats:
    """An activation map ``[h, w]`` at ``[side, side]``, as the overlay shows it."""
    return np.asarray(cv2.resize(cam.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC))


def _without(image: Floats, ranking: Floats) -> Floats:
    out = image.copy()
    out[ranking >= np.quantile(ranking, 1 - SHARE)] = image.mean()
    return out


def deletion(model: Path, images: Floats, cams: Floats, finding: int) -> dict[str, float]:
    """Mean fall of the logit when the top fifth of the map is masked, and when random fifths are.

    Args:
        model: The INT8 graph.
        images: Held-out positives ``[n, side, side]``.
        cams: Their maps ``[n, h, w]`` of the finding.
        finding: Index of the finding among the logits.
    """
    random = np.random.default_rng(11)
    side = images.shape[1]

    def logits(stack: Floats) -> Floats:
        batches = (
            {"image": part[:, None].astype(np.float32)} for part in np.array_split(stack, max(1, len(stack) // 8))
        )
        return outputs(model, batches, ["logits"])["logits"][:, finding]

    whole = logits(images)
    masked = logits(np.stack([_without(i, enlarged(c, side)) for i, c in zip(images, cams, strict=True)]))
    falls = []
    for _ in range(RANDOM_MASKS):
        stack = [_without(i, enlarged(random.normal(size=cams.shape[1:]), side)) for i in images]
        falls.append(whole - logits(np.stack(stack)))
    at_random = np.mean(falls, axis=0)
    return {
        "positives": len(images),
        "fall of the logit, map's top fifth masked": float(np.mean(whole - masked)),
        "fall of the logit, random fifth masked": float(at_random.mean()),
        "share where the map's mask falls more": float(np.mean(whole - masked > at_random)),
    }


def pointing(cams: Floats, boxes: Sequence[Sequence[tuple[float, float, float, float]]]) -> dict[str, float]:
    """Share of maps ``[n, h, w]`` whose peak is inside a box (x, y, width, height as shares), beside chance."""
    side = 224
    hits, covered = [], []
    for cam, own in zip(cams, boxes, strict=True):
        row, column = np.unravel_index(int(np.argmax(enlarged(cam, side))), (side, side))
        x, y = (float(column) + 0.5) / side, (float(row) + 0.5) / side
        hits.append(any(left <= x <= left + w and top <= y <= top + h for left, top, w, h in own))
        covered.append(min(1.0, sum(w * h for _, _, w, h in own)))
    return {
        "films with boxes": len(hits),
        "peak inside a box": float(np.mean(hits)),
        "by chance": float(np.mean(covered)),
    }
