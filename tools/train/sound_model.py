"""From labelled sounds to a bundle: the steps that the heart-sound and the lung-sound model share.

What this module keeps true: folds keep blocks or patients together; thresholds, calibration and figures come from held-out
INT8 scores; a bundle is not written when INT8, as shipped or as derived on x86, says something else than FP32.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import Description
from appliance.reading.prepared import Sound
from tools.train import settings as toml
from tools.train import sound_fit, sound_gate, splits
from tools.train.sound_data import Prepare, Recording, Table, load, table
from tools.train.sound_net import FrontEnd, Schedule

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run: where things lie, the configuration, the recordings and their prepared inputs."""

    data: Path
    out: Path
    work: Path
    configuration: dict[str, Any]
    settings: sound_fit.Settings
    description: Description
    prepare: Prepare
    recordings: list[Recording]
    sample: sound_fit.Sample
    used: npt.NDArray[np.bool_]
    log: Callable[[str], None]

    @property
    def sources(self) -> npt.NDArray[np.str_]:
        """Subset or device of each recording."""
        return np.array([one.source for one in self.recordings])

    @property
    def groups(self) -> npt.NDArray[np.str_]:
        """Block or patient of each recording."""
        return np.array([one.group for one in self.recordings])


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Held-out raw logits by form, ``[n, outputs]``, NaN where there is none: by fold, and by source never trained on."""

    folds: dict[str, Doubles]
    elsewhere: dict[str, Doubles]


def clock() -> Callable[[str], None]:
    """Prints lines with the seconds since the start."""
    started = time.monotonic()
    return lambda text: print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)


def settings_of(table_: dict[str, Any]) -> sound_fit.Settings:
    """The configuration's ``[training]`` with each front end's band edges spelt out."""
    fronts = []
    for front in table_["fronts"]:
        if front.get("mel"):
            low, high = (2595.0 * np.log10(1.0 + front[key] / 700.0) for key in ("from_hz", "to_hz"))
            edges = 700.0 * (10.0 ** (np.linspace(low, high, front["bands"] + 1) / 2595.0) - 1.0)
        else:
            edges = np.linspace(front["from_hz"], front["to_hz"], front["bands"] + 1)
        fronts.append(
            FrontEnd(
                frame=front["frame"],
                hop=front["hop"],
                edges_hz=tuple(float(edge) for edge in edges),
                spread=front.get("spread", 0.3),
                scale=front.get("scale", 1.0),
                skip=front.get("skip", 0),
            )
        )
    schedule = Schedule(**table_["schedule"])
    return msgspec.convert(table_ | {"fronts": fronts, "schedule": schedule}, sound_fit.Settings)


def provisional(configuration: dict[str, Any]) -> Description:
    """The bundle's description as far as preprocessing and rules need it, before anything is trained."""
    words = dict(configuration["bundle"])
    words["gate"] = dict(words["gate"]) | {"rules": configuration["gate"]["rules"]}
    words |= {"graphs": [], "findings": [], "files": {}, "golden": {"file": "golden/golden.npz", "absolute": 0.01}}
    return msgspec.convert(words, Description)


def weigher(
    labels: Sequence[str], sources: npt.NDArray[np.str_], groups: npt.NDArray[np.str_], floor: int, group_power: float
) -> Callable[[npt.NDArray[np.intp]], Doubles]:
    """Weights by which every (source, label) cell counts the same (but for cells under ``floor``).

    Within a cell a recording counts less the more its group has there, by ``group_power`` (0: not at all, 1: groups count
    the same).
    """
    cells = np.array([f"{source}/{label}" for source, label in zip(sources, labels, strict=True)])
    patients = np.char.add(np.char.add(cells, "/"), groups)

    def weigh(rows: npt.NDArray[np.intp]) -> Doubles:
        _, whose, number = np.unique(patients[rows], return_inverse=True, return_counts=True)
        each = number[whose].astype(np.float64) ** -group_power
        _, cell, size = np.unique(cells[rows], return_inverse=True, return_counts=True)
        total = np.bincount(cell, weights=each)
        share = np.minimum(1.0, size / floor)
        return np.asarray(each / total[cell] * share[cell], np.float64)

    return weigh


def start(
    configuration_file: Path,
    data: Path,
    out: Path,
    work: Path,
    prepare: Prepare,
    bands: npt.NDArray[np.intp] | None = None,
) -> Run:
    """Read the configuration and the sounds, and prepare them (cached in ``work``); ``bands``: see ``sound_fit.Sample``."""
    log = clock()
    configuration = toml.read(configuration_file)
    settings = settings_of(configuration["training"])
    description = provisional(configuration)
    told = configuration["data"]
    recordings = load(data / told["folder"], told["group"], told["source"], told.get("session", ""))
    log(f"{len(recordings)} recordings of {len({one.group for one in recordings})} groups")
    prepared = table([one.sound for one in recordings], prepare, description, work / "prepared.npz", log)
    log(f"prepared; {np.count_nonzero(prepared.refused != '')} can't be measured")
    positive = list(told["positive"].values())
    targets = np.array([[one.label in names for names in positive] for one in recordings], np.float32)
    sources = np.array([one.source for one in recordings])
    groups = np.array([one.group for one in recordings])
    weigh = weigher(
        [one.label for one in recordings], sources, groups, told.get("floor", 20), told.get("group_power", 0.0)
    )
    sample = sound_fit.Sample(
        table=prepared,
        waves=sound_fit.waves([one.sound for one in recordings], settings.rate_hz),
        targets=targets,
        weigh=weigh,
        bands=bands,
    )
    used = (prepared.refused == "") & ~np.isin(sources, told.get("never_trained", []))
    return Run(
        data=data,
        out=out,
        work=work,
        configuration=configuration,
        settings=settings,
        description=description,
        prepare=prepare,
        recordings=recordings,
        sample=sample,
        used=used,
        log=log,
    )


def cross_fit(run: Run) -> Scores:
    """Fit and score by fold, then by source left out."""
    rows = np.flatnonzero(run.used)
    fold = splits.folds(list(run.groups[rows]), list(run.sources[rows]), run.settings.folds)
    by_fold = [(f"fold{k}", rows[fold != k], rows[fold == k]) for k in range(run.settings.folds)]
    by_source = []
    for source in sorted(set(run.sources[rows])):
        mine = rows[run.sources[rows] == source]
        if mine.size >= 30 and all(
            0 < run.sample.targets[mine, k].sum() < mine.size for k in range(run.settings.outputs)
        ):
            by_source.append((f"without-{source}", rows[run.sources[rows] != source], mine))
    return Scores(folds=_held_out(run, by_fold), elsewhere=_held_out(run, by_source))


def _held_out(run: Run, parts: Sequence[tuple[str, npt.NDArray[np.intp], npt.NDArray[np.intp]]]) -> dict[str, Doubles]:
    count = len(run.recordings)
    joined: dict[str, Doubles] = {}
    for name, train, test in parts:
        files = sound_fit.fit(run.sample, train, run.settings, run.work, name, run.log)
        scored = sound_fit.score(files, run.sample.table, test, count, run.settings.network_weight)
        for form, value in scored.items():
            joined.setdefault(form, np.full((count, run.settings.outputs), np.nan))[test] = value[test]
        run.log(f"{name}: scored {test.size}")
    return joined


def final_fit(run: Run) -> sound_fit.Fit:
    """The fit that ships: on every recording used."""
    return sound_fit.fit(run.sample, np.flatnonzero(run.used), run.settings, run.work, "final", run.log)


def gate(
    run: Run,
    other: sound_gate.Other,
    shape: sound_gate.Layout,
    simulate: Callable[[int], Sound],
    more: Sequence[Recording] = (),
) -> sound_gate.Outcome:
    """The gate, fitted and measured; its graph is ``work/gate.onnx``. ``more`` are further good recordings."""
    told = msgspec.convert(run.configuration["gate"], sound_gate.Settings)
    kept, key = run.work / "gate.json", _gate_key(run)
    if kept.exists() and (found_before := msgspec.json.decode(kept.read_bytes()))["key"] == key:
        return msgspec.convert(found_before["outcome"], sound_gate.Outcome)
    width = run.sample.table.indices.shape[1]
    found = sound_gate.cases(
        [*run.recordings, *more],
        other,
        simulate,
        run.prepare,
        run.description,
        told,
        run.settings.rate_hz,
        width,
        run.log,
    )
    outcome = sound_gate.build(found, told, shape, run.work / "gate.onnx", run.log)
    kept.write_bytes(msgspec.json.encode({"key": key, "outcome": outcome}))
    return outcome


def _gate_key(run: Run) -> str:
    """Changes with the sounds, the settings and the code that the gate depends on."""
    digest = hashlib.sha256(msgspec.json.encode([run.configuration["gate"], run.description.preprocess]))
    digest.update(run.sample.table.indices.tobytes())
    folder = Path(__file__).parent
    names = ("sound_gate.py", "sound_hard_set.py", "kernel.py", "stethoscopes.py", "trees_onnx.py")
    for path in (*(folder / name for name in names), folder.parent / "simulate" / "sounds.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


__all__ = ["Run", "Scores", "Table", "cross_fit", "final_fit", "gate", "start"]
