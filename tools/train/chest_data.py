"""The chest X-ray training set: labels, targets for unread films, boxes, cached pictures and maps.

What this module keeps true: mined NIH labels never stand alone as a target. A film read by the RSNA radiologists has their
read; an unread film has the probability of lung opacity that a logistic on its mined findings gives, fitted to the reads of
the *training* patients only. A radiologist's box goes through the same turns and crops as its film.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from appliance.reading import xray
from tools.train import pictures
from tools.train.finetune import Floats, Maps, front_session

FLAGS = ("Pneumonia", "Infiltration", "Atelectasis", "Edema", "Effusion", "Consolidation")
OPACITY, NORMAL, ABNORMAL = "Lung Opacity", "Normal", "No Lung Opacity / Not Normal"
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


def labels_beside(found: list[Film]) -> Floats:
    """What else is known of each film, for a head that is dropped: the three reads, then mined findings; NaN: unknown."""
    mined = (*FLAGS, "No Finding")
    rows = [
        [
            *(float(film.read == read) if film.read else np.nan for read in (OPACITY, NORMAL, ABNORMAL)),
            *(float(name in film.findings) if film.source == "nih" else np.nan for name in mined),
        ]
        for film in found
    ]
    return np.array(rows, dtype=np.float32)


class Cache(msgspec.Struct, frozen=True):
    """Cached copies of every film: maps ``[M, C, h, w]`` and the film each belongs to.

    ``cells``: the share of each cell of the activation map ``[M, 7, 7]`` that the radiologists' boxes cover (0 without a box).
    ``images`` are the unchanged model inputs ``[n, 224, 224]`` (float16 to save space); ``clean`` the row of maps of each
    film's unchanged copy.
    """

    maps: Maps
    cells: Maps
    owner: npt.NDArray[np.int64]
    clean: npt.NDArray[np.int64]
    images: npt.NDArray[np.float16]


def cache(found: list[Film], work: Path, since: int, copies: dict[str, int], log: Callable[[str], None]) -> Cache:
    """The cache under ``work``, made at the first call. ``copies``: source → augmented copies beside clean, flip, centre."""
    path = work / f"chest-cells-{since}-{'-'.join(str(copies[key]) for key in sorted(copies))}.npz"
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
    maps, cells, clean, images = [], [], [], []
    owner: list[int] = []
    for i, film in enumerate(found):
        random = np.random.default_rng([7, i])
        base = xray.tensor320(pictures.load(film.path))
        variants = _variants(base, boxed(film.boxes, xray.BASE), random, copies[film.source])
        clean.append(len(owner))
        stack = np.stack([image for image, _ in variants])[:, None]
        maps.append(front(stack))
        cells.append(np.stack([covered(mask) for _, mask in variants]))
        owner += [i] * len(variants)
        images.append(stack[0, 0].astype(np.float16))
        if i % 200 == 199:
            log(f"cached {i + 1}/{len(found)} films")
    return {
        "maps": np.concatenate(maps),
        "cells": np.concatenate(cells),
        "owner": np.array(owner),
        "clean": np.array(clean),
        "images": np.stack(images),
    }


def boxed(boxes: Sequence[tuple[float, float, float, float]], side: int) -> Floats:
    """1 inside the boxes (x, y, width, height as shares), else 0: ``[side, side]``."""
    mask = np.zeros((side, side), np.float32)
    for x, y, width, height in boxes:
        top, left = round(y * side), round(x * side)
        mask[top : max(top + 1, round((y + height) * side)), left : max(left + 1, round((x + width) * side))] = 1.0
    return mask


def covered(mask: Floats) -> Maps:
    """The share of each of ``CELLS`` × ``CELLS`` cells that ``mask`` ``[side, side]`` covers."""
    return np.asarray(cv2.resize(mask, (CELLS, CELLS), interpolation=cv2.INTER_AREA), dtype=np.float16)


def _variants(base: Floats, mask: Floats, random: np.random.Generator, augmented: int) -> list[tuple[Floats, Floats]]:
    """Model inputs of one film's copies, each with its boxes: clean; flipped and centre where many are wanted; augmented."""
    side = base.shape[0]
    middle = slice(round(side * 0.06), side - round(side * 0.06))
    result = [(xray.normalise(base), mask)]
    if augmented > 2:
        result.append((xray.normalise(np.ascontiguousarray(base[:, ::-1])), np.ascontiguousarray(mask[:, ::-1])))
        centre = np.ascontiguousarray(mask[middle, middle])
        result.append((xray.normalise(np.ascontiguousarray(base[middle, middle])), centre))
    for _ in range(augmented):
        affine = pictures.placement(random, side, (0.72, 1.0), 0.2, 10.0, flip=True)
        changed = pictures.worn(pictures.placed(base, affine), random)
        result.append((pictures.toned(xray.normalise(changed), random), pictures.placed(mask, affine)))
    return result
