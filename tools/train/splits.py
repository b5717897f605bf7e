"""Folds that keep every file of a patient (or block, or hospital) together.

What this module keeps true: a group is in one fold only, whatever the order of the files, and the same seed gives the
same folds on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def folds(groups: Sequence[str], strata: Sequence[str], count: int, seed: str = "bedside") -> npt.NDArray[np.int64]:
    """A fold number 0…count−1 for every file.

    Args:
        groups: Patient of each file.
        strata: Label or source of each file; folds get about equal shares of every stratum (of a group's first file).
        count: Number of folds.
        seed: Changes the order in which groups are dealt.
    """
    first: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for group, stratum in zip(groups, strata, strict=True):
        first.setdefault(group, stratum)
        sizes[group] = sizes.get(group, 0) + 1
    load: dict[str, list[int]] = {}
    fold_of: dict[str, int] = {}
    for group in sorted(first, key=lambda name: (-sizes[name], hashlib.sha256(f"{seed}\0{name}".encode()).digest())):
        filled = load.setdefault(first[group], [0] * count)
        fold_of[group] = int(np.argmin(filled))
        filled[fold_of[group]] += sizes[group]
    return np.array([fold_of[group] for group in groups], dtype=np.int64)
