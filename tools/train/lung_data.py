"""The lung ultrasound training set: clips, their labels, licences and hospitals, cached frames and maps.

What this module keeps true: the unit is the clip; frames of a clip are twins and weigh one over their number. Clips whose
licence does not let weights be shipped as non-commercial (share-alike, emergency, none) are never trained on: they serve as
websites that the model has never seen. "Abnormal" is every clip whose group is not "regular".
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from appliance.reading import ultrasound
from tools.train import pictures
from tools.train.finetune import Floats, Maps

FINDINGS = ("abnormal", "b-lines", "consolidation", "effusion")
COLUMNS = {"b-lines": "blines", "consolidation": "consolidation", "effusion": "effusion"}
LICENCES = ("CC BY 4.0", "CC BY 2.0", "CC BY-NC 4.0")
CELLS = 7


class Clip(msgspec.Struct, frozen=True, kw_only=True):
    """A clip or still. ``labels``: one of 0, 1 or NaN for each of ``FINDINGS``; ``site``: hospital or website."""

    name: str
    frames: tuple[Path, ...]
    patient: str
    site: str
    probe: str
    licence: str
    group: str
    labels: tuple[float, ...]

    @property
    def trainable(self) -> bool:
        """Whether the licence lets weights trained on it be shipped."""
        return self.licence in LICENCES


def clips(data: Path) -> list[Clip]:
    """All clips of ``data/lung-ultrasound/pocus``, in the order of their first frame."""
    root = data / "lung-ultrasound" / "pocus"
    rows: dict[str, list[dict[str, str]]] = {}
    with (root / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["clip"], []).append(row)
    return [_clip(root, name, several) for name, several in rows.items()]


def _clip(root: Path, name: str, rows: list[dict[str, str]]) -> Clip:
    first = rows[0]
    unknown = float("nan")
    labels = {"abnormal": float(first["label"] != "regular")}
    labels |= {finding: float(first[column]) if first[column] else unknown for finding, column in COLUMNS.items()}
    return Clip(
        name=name,
        frames=tuple(root / row["file"] for row in rows),
        patient=first["patient"],
        site=site(first["url"]),
        probe=first["probe"],
        licence=first["licence"],
        group=first["label"],
        labels=tuple(labels[finding] for finding in FINDINGS),
    )


def site(url: str) -> str:
    """Hospital or website that a clip came from."""
    host = urlparse(url.strip()).netloc.removeprefix("www.")
    if host:
        return host
    return (
        "Northumbria"
        if "northumbria" in url.lower()
        else (url.split(maxsplit=1)[0].lower() if url.strip() else "unknown")
    )


class Cache(msgspec.Struct, frozen=True):
    """Copies of frames: maps ``[M, C, h, w]``, the clip of each, whether unchanged; unchanged inputs and their clips."""

    maps: Maps
    owner: npt.NDArray[np.int64]
    clean: npt.NDArray[np.bool_]
    images: npt.NDArray[np.float16]
    image_owner: npt.NDArray[np.int64]


def cache(
    found: list[Clip], work: Path, since: int, copies: int, front: Callable[[Floats], Maps], log: Callable[[str], None]
) -> Cache:
    """The cache under ``work``, made at the first call, with ``copies`` augmented copies of every frame."""
    path = work / f"lung-maps-{since}-{copies}.npz"
    if not path.exists():
        partial = path.with_suffix(".part.npz")
        np.savez(partial, allow_pickle=False, **_make(found, front, copies, log))
        partial.replace(path)
    with np.load(path) as stored:
        return Cache(**{name: stored[name] for name in Cache.__struct_fields__})


def frames(clip: Clip) -> Floats:
    """Model inputs ``[frames, 224, 224]`` of a clip, prepared as on the box: one sector for all frames of one size."""
    loaded = [pictures.load(path) for path in clip.frames]
    alike = [one for one in loaded if one.pixels.shape == loaded[0].pixels.shape]
    whole = msgspec.structs.replace(loaded[0], pixels=np.concatenate([one.pixels for one in alike]))
    box = ultrasound.sector(whole, list(range(len(alike)))) or (0, 0, *whole.pixels.shape[1:3])
    return np.stack([ultrasound.tensor(whole, i, box, 224) for i in range(len(alike))])


def _make(
    found: list[Clip], front: Callable[[Floats], Maps], copies: int, log: Callable[[str], None]
) -> dict[str, npt.NDArray[Any]]:
    maps, owner, clean, images, image_owner = [], [], [], [], []
    for i, clip in enumerate(found):
        random = np.random.default_rng([9, i])
        whole = frames(clip)
        images.append(whole.astype(np.float16))
        image_owner += [i] * len(whole)
        several = [whole, whole[:, :, ::-1]]
        several += [np.stack([changed(frame, random) for frame in whole]) for _ in range(copies)]
        stack = np.ascontiguousarray(np.concatenate(several))[:, None]
        maps.append(front(stack))
        owner += [i] * len(stack)
        clean += [True] * len(whole) + [False] * (len(stack) - len(whole))
        if i % 20 == 19:
            log(f"cached {i + 1}/{len(found)} clips")
    return {
        "maps": np.concatenate(maps),
        "owner": np.array(owner),
        "clean": np.array(clean),
        "images": np.concatenate(images),
        "image_owner": np.array(image_owner),
    }


def changed(frame: Floats, random: np.random.Generator) -> Floats:
    """A frame as another probe, depth and maker would show it: the outline must not tell the hospital.

    Black wedges at the sides, depth cuts, small turns, sharpness, noise, tone.
    """
    side = frame.shape[0]
    affine = pictures.placement(random, side, (0.7, 1.0), 0.25, 8.0, flip=True)
    out = pictures.placed(frame, affine)
    if random.random() < 0.7:
        out = wedged(out, random)
    if random.random() < 0.4:
        depth = int(side * random.uniform(0.72, 0.98))
        out = np.asarray(cv2.resize(out[:depth], (side, side), interpolation=cv2.INTER_LINEAR), np.float32)
    if random.random() < 0.3:
        out = out.copy()
        out[int(side * random.uniform(0.8, 0.98)) :] = 0
    return pictures.toned_dark(pictures.worn(out, random), random)


def wedged(frame: Floats, random: np.random.Generator) -> Floats:
    """Black outside a random sector: the sides fall away from the top, the bottom is an arc."""
    side = frame.shape[0]
    top, wide = random.uniform(0.05, 0.45), random.uniform(0.0, 0.25)
    corners = np.array(
        [[side * top, 0], [side * (1 - top), 0], [side * (1 - wide * 0.3), side], [side * wide * 0.3, side]], np.int32
    )
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [corners], 1)
    if random.random() < 0.5:
        arc = np.zeros_like(mask)
        cv2.circle(arc, (side // 2, int(-side * 0.1)), int(side * random.uniform(1.0, 1.2)), 1, -1)
        mask &= arc
    return frame * mask.astype(np.float32)


def by_clip(values: npt.NDArray[np.floating], owner: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """Mean of frame logits ``[m, F]`` by clip ``[count, F]``: the aggregation that ships."""
    total = np.zeros((count, values.shape[1]))
    np.add.at(total, owner, values)
    return total / np.maximum(np.bincount(owner, minlength=count), 1)[:, None]
