"""A support vector machine with a Gaussian kernel, to stand beside trees: it draws smooth borders where trees draw steps.

What this module keeps true: ``logits`` and the nodes that ``trees_onnx`` writes from the same ``Kernel`` compute the same;
the machine's margin is scaled to a logit by a fixed factor, never fitted to the recordings that it was trained on.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
FAR = 4.0
"""Standard deviations at which a feature is cut off."""
MARGIN = 1.5
"""Logits at the margin: a probability of 0.82."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """``strength`` (the penalty C), ``width`` (gamma, per squared standard deviation), the most ``rows`` to train on."""

    strength: float
    width: float
    rows: int = 100_000


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """``logit = Σ weight · exp(−width · |vector − x|²) + bias`` over standardised features ``columns``, cut at ``FAR``."""

    columns: npt.NDArray[np.int64]
    mean: Floats
    spread: Floats
    vectors: Floats
    weight: Floats
    bias: float
    width: float


def fit(
    features: Floats,
    positive: npt.NDArray[np.bool_],
    weights: Floats,
    settings: Settings,
    columns: npt.NDArray[np.intp] | None = None,
    share: float = 1.0,
) -> Kernel:
    """Train on rows ``[n, features]``, of more than ``settings.rows`` on a random choice; logits come out times ``share``."""
    from sklearn.svm import SVC

    used = np.arange(features.shape[1]) if columns is None else columns
    chosen = np.arange(len(features))
    if chosen.size > settings.rows:
        chosen = np.random.default_rng(0).choice(chosen, settings.rows, replace=False)
    rows = features[chosen][:, used]
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-4
    standard = np.clip((rows - mean) / spread, -FAR, FAR)
    machine = SVC(C=settings.strength, gamma=settings.width, cache_size=400)
    machine.fit(standard, positive[chosen], sample_weight=weights[chosen] / weights[chosen].mean())
    return Kernel(
        columns=np.asarray(used, np.int64),
        mean=mean,
        spread=spread,
        vectors=np.asarray(machine.support_vectors_, np.float32),
        weight=share * MARGIN * machine.dual_coef_[0],
        bias=float(share * MARGIN * machine.intercept_[0]),
        width=settings.width,
    )


def logits(kernel: Kernel, features: Floats) -> npt.NDArray[np.float64]:
    """The logit ``[n]`` of each row of ``features``."""
    standard = np.clip((features[:, kernel.columns] - kernel.mean) / kernel.spread, -FAR, FAR).astype(np.float64)
    vectors = kernel.vectors.astype(np.float64)
    squares = (standard**2).sum(axis=1)[:, None] + (vectors**2).sum(axis=1)[None] - 2.0 * standard @ vectors.T
    return np.asarray(np.exp(-kernel.width * np.maximum(squares, 0.0)) @ kernel.weight + kernel.bias, np.float64)
