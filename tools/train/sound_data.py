"""The sounds to train on: labels, samples and prepared inputs, loaded once and cached.

What this module keeps true: what a model is trained on has gone through ``appliance.reading.auscultation``, the code that
runs on the box; a cache is used only for the same files, parameters and preprocessing code.
"""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile

import appliance.reading
from appliance.inference.bundle import Description
from appliance.reading.prepared import Header, Prepared, Sound

Floats = npt.NDArray[np.float32]
Prepare = Callable[[Sound, Description], Prepared]
CODE = ("spectral", "sound_quality", "heart_features", "lung_features", "auscultation")


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """One labelled file. ``group`` is what must stay together (block or patient), ``source`` the subset or device.

    ``session`` names the recording of which the file is a part, empty where files are whole recordings.
    """

    file: str
    label: str
    group: str
    source: str
    sound: Sound
    session: str = ""


class Table(msgspec.Struct, kw_only=True):
    """Prepared inputs of many recordings, rows of windows joined; ``owner`` says whose each row is."""

    windows: Floats
    owner: npt.NDArray[np.intp]
    features: Floats
    feature_owner: npt.NDArray[np.intp]
    indices: Floats
    refused: npt.NDArray[np.str_]


def sound(samples: npt.NDArray[Any], rate_hz: float) -> Sound:
    """Samples as the decoder would hand them over."""
    return Sound(header=Header(media_type="audio/flac"), samples=np.asarray(samples, np.float32), rate_hz=rate_hz)


def load(folder: Path, group: Sequence[str], source: str, session: str = "") -> list[Recording]:
    """Every row of ``folder/labels.csv``; ``group``, ``source`` and ``session`` name its columns."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    recordings = []
    for row in rows:
        samples, rate = soundfile.read(folder / row["file"], dtype="float32", always_2d=True)
        recordings.append(
            Recording(
                file=row["file"],
                label=row["label"],
                group="-".join(row[name] for name in group),
                source=row[source],
                sound=sound(samples[:, 0], rate),
                session=row[session] if session else "",
            )
        )
    return recordings


def joined(recordings: Sequence[Recording]) -> list[Recording]:
    """Each session's cycles one after the other: what a whole recording at the bedside sounds like."""
    sessions: dict[str, list[Recording]] = {}
    for one in recordings:
        sessions.setdefault(one.session, []).append(one)
    made = []
    for parts in sessions.values():
        if len(parts) > 1:
            samples = np.concatenate([part.sound.samples for part in parts])
            made.append(msgspec.structs.replace(parts[0], sound=sound(samples, parts[0].sound.rate_hz)))
    return made


def table(
    sounds: Sequence[Sound], prepare: Prepare, description: Description, cache: Path, progress: Callable[[str], None]
) -> Table:
    """Prepare every sound, or take it from ``cache`` (an ``.npz``) when nothing it depends on has changed."""
    key = _key(sounds, description)
    if cache.exists():
        with np.load(cache) as kept:
            if str(kept["key"]) == key:
                return Table(**{name: kept[name] for name in kept.files if name != "key"})
    windows, owner, features, feature_owner, indices, refused = [], [], [], [], [], []
    width = 0
    started = time.monotonic()
    for number, one in enumerate(sounds):
        prepared = prepare(one, description)
        refused.append(prepared.refusal.code if prepared.refusal else "")
        if not prepared.refusal:
            windows.append(prepared.inputs["network"]["samples"])
            features.append(prepared.inputs["trees"]["features"])
            owner += [number] * len(windows[-1])
            feature_owner += [number] * len(features[-1])
            indices.append(prepared.inputs["gate"]["indices"][0])
            width = indices[-1].size
        else:
            indices.append(np.zeros(0, np.float32))
        if (number + 1) % 400 == 0:
            progress(f"prepared {number + 1} of {len(sounds)} sounds in {time.monotonic() - started:.0f} s")
    made = Table(
        windows=np.concatenate(windows),
        owner=np.array(owner, np.intp),
        features=np.concatenate(features),
        feature_owner=np.array(feature_owner, np.intp),
        indices=np.stack([one if one.size else np.zeros(width, np.float32) for one in indices]),
        refused=np.array(refused),
    )
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(cache, allow_pickle=False, key=np.array(key), **msgspec.structs.asdict(made))
    return made


def _key(sounds: Sequence[Sound], description: Description) -> str:
    digest = hashlib.sha256(msgspec.json.encode(description.preprocess))
    folder = Path(appliance.reading.__file__).parent
    for name in CODE:
        digest.update((folder / f"{name}.py").read_bytes())
    for one in sounds:
        digest.update(f"{one.rate_hz} {one.samples.size}".encode())
        digest.update(one.samples.tobytes())
    return digest.hexdigest()


def mean_by_owner(values: npt.NDArray[Any], owner: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.float64]:
    """The mean of the rows of each owner, ``[count, …]``; NaN for one without rows."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    total = np.zeros((count, flat.shape[1]))
    np.add.at(total, owner, flat)
    number = np.bincount(owner, minlength=count)[:, None].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray((total / np.where(number > 0, number, np.nan)).reshape(count, *values.shape[1:]))
