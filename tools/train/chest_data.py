"""The chest X-ray training set: labels, targets for unread films, boxes, cached pictures and maps.

What this module keeps true: mined NIH labels never stand alone as a target. A film read by the RSNA radiologists has their
read; an unread film has the probability of lung opacity that a logistic on its mined findings gives, fitted to the reads of
the *training* patients only.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.reading import xray
from tools.train import pictures
from tools.train.finetune import Floats, Maps, front_session

FLAGS = ("Pneumonia", "Infiltration", "Atelectasis", "Edema", "Effusion", "Consolidation")
OPACITY, NORMAL = "Lung Opacity", "Normal"
CELLS = 7


class Film(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a ``labels.csv``. ``read``: the radiologists' class or empty; ``boxes``: x, y, width, height as shares."""

    path: Path
    source: str
    patient: str
    label: str
    licence: str
    findings: tuple[str, ...] = ()
    age: float | None = None
    sex: str = ""
    view: str = ""
    read: str = ""
    boxes: tuple[tuple[float, float, float, float], ...] = ()


def films(data: Path) -> list[Film]:
    """All films of ``data/chest-xray``; raises ``OSError`` naming the ``labels.csv`` that is missing."""
    found: list[Film] = []
    for source in ("kermany", "nih"):
        root = data / "chest-xray" / source
        with (root / "labels.csv").open(newline="") as file:
            found += [_film(root, source, row) for row in csv.DictReader(file)]
    return found


def _film(root: Path, source: str, row: dict[str, str]) -> Film:
    return Film(
        path=root / row["file"],
        source=source,
        patient=row["patient"],
        label=row["label"],
        licence=row["licence"],
        findings=tuple(row.get("findings", "").split("|")),
        age=float(row["age"]) if row.get("age") else None,
        sex=row.get("sex", ""),
        view=row.get("view", ""),
        read=row.get("rsna_class", ""),
        boxes=tuple(tuple(box) for box in json.loads(row.get("rsna_boxes_norm_xywh") or "[]")),
    )


def targets(found: list[Film], training: npt.NDArray[np.bool_]) -> Floats:
    """Probability of the finding for each film ``[n]``; see the module's rule for unread films."""
    from sklearn.linear_model import LogisticRegression

    flags = np.array([[flag in film.findings for flag in FLAGS] for film in found], dtype=np.float64)
    read = np.array([bool(film.read) for film in found]) & training
    opacity = np.array([film.read == OPACITY for film in found])
    soft = np.full(len(found), 0.5)
    if read.any():
        soft = LogisticRegression(C=0.3).fit(flags[read], opacity[read]).predict_proba(flags)[:, 1]
    values = [
        float(film.label == "pneumonia")
        if film.source == "kermany"
        else (float(film.read == OPACITY) if film.read else float(soft[i]))
        for i, film in enumerate(found)
    ]
    return np.array(values, dtype=np.float32)


class Cache(msgspec.Struct, frozen=True):
    """Cached copies of every film: maps ``[M, C, h, w]`` and the film each belongs to.

    ``images`` are the unchanged model inputs ``[n, 224, 224]`` (float16 to save space); ``clean`` the row of maps of each
    film's unchanged copy.
    """

    maps: Maps
    owner: npt.NDArray[np.int64]
    clean: npt.NDArray[np.int64]
    images: npt.NDArray[np.float16]


def cache(found: list[Film], work: Path, since: int, copies: dict[str, int], log: Callable[[str], None]) -> Cache:
    """The cache under ``work``, made at the first call. ``copies``: source → augmented copies beside clean, flip, centre."""
    path = work / f"chest-maps-{since}-{'-'.join(str(copies[key]) for key in sorted(copies))}.npz"
    if not path.exists():
        arrays = _make(found, front_session(work, since), copies, log)
        partial = path.with_suffix(".part.npz")
        np.savez(partial, allow_pickle=False, **arrays)
        partial.replace(path)
    with np.load(path) as stored:
        return Cache(**{name: stored[name] for name in Cache.__struct_fields__})


def _make(
    found: list[Film], front: Callable[[Floats], Maps], copies: dict[str, int], log: Callable[[str], None]
) -> dict[str, npt.NDArray[Any]]:
    maps, clean, images = [], [], []
    owner: list[int] = []
    for i, film in enumerate(found):
        random = np.random.default_rng([7, i])
        base = xray.tensor320(pictures.load(film.path))
        variants = _variants(base, random, copies[film.source])
        clean.append(len(owner))
        stack = np.stack(variants)[:, None]
        maps.append(front(stack))
        owner += [i] * len(variants)
        images.append(stack[0, 0].astype(np.float16))
        if i % 200 == 199:
            log(f"cached {i + 1}/{len(found)} films")
    return {
        "maps": np.concatenate(maps),
        "owner": np.array(owner),
        "clean": np.array(clean),
        "images": np.stack(images),
    }


def _variants(base: Floats, random: np.random.Generator, augmented: int) -> list[Floats]:
    """Model inputs of one film's copies: clean; flipped and centre where many are wanted; augmented."""
    side = base.shape[0]
    middle = slice(round(side * 0.06), side - round(side * 0.06))
    result = [xray.normalise(base)]
    if augmented > 2:
        result.append(xray.normalise(np.ascontiguousarray(base[:, ::-1])))
        result.append(xray.normalise(np.ascontiguousarray(base[middle, middle])))
    for _ in range(augmented):
        affine = pictures.placement(random, side, (0.72, 1.0), 0.2, 10.0, flip=True)
        changed = pictures.worn(pictures.placed(base, affine), random)
        result.append(pictures.toned(xray.normalise(changed), random))
    return result
