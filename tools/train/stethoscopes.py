"""Hand-made features as other stethoscopes would have given them.

What this module keeps true: a copy differs from its recording by one smooth response over frequency, the same in every part
of the sound, and in nothing else; the same seed makes the same copies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def recoloured(features: Floats, bands: npt.NDArray[np.intp] | None, copies: int, amount: float, seed: int) -> Floats:
    """The features ``[n, …]`` and, below them, ``copies`` of each whose levels are shifted band by band.

    Args:
        features: Hand-made features, levels in natural logarithms.
        bands: Columns ``[parts, bands]`` of the absolute levels; ``None``: no copies are made.
        copies: Number of copies.
        amount: Standard deviation of the response, before it is smoothed over three bands and made 0 in the lowest.
        seed: Of the responses.
    """
    if bands is None:
        return features
    random = np.random.default_rng(seed)
    made = [features]
    for _ in range(copies):
        copy = features.copy()
        shift = random.normal(0.0, amount, (len(copy), bands.shape[1] + 2))
        smooth = 1.6 * (0.25 * shift[:, :-2] + 0.5 * shift[:, 1:-1] + 0.25 * shift[:, 2:])
        for columns in bands:
            copy[:, columns] += (smooth - smooth[:, :1]).astype(np.float32)
        made.append(copy)
    return np.concatenate(made)
