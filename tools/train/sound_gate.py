"""The input gate of a sound model: fitted to good recordings, good ones in noise, and the made-up hard set.

What this module keeps true: a good recording and all that is made of it stay in one fold; the figures are of sounds that the
gate was not fitted to, and of kinds that it never met (leave one kind out); hard rules (length, silence, clipping,
drop-outs) count as they do on the box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import Description
from appliance.reading import quality
from appliance.reading.prepared import Prepared, Sound
from tools.train import sound_hard_set, splits, trees_onnx
from tools.train.sound_data import Prepare, Recording, sound

Doubles = npt.NDArray[np.float64]
Other = tuple[str, Sequence[Sound]]
FOLDS = 5
TREES, LEAF, SHARE = 120, 3, 0.35


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How long made-up sounds last, how many of each kind, the share of good ones that may be refused, the hard rules."""

    seconds: tuple[float, float]
    copies: int
    refused_good: float
    rules: dict[str, tuple[float, float]]
    short: tuple[float, float]
    """Seconds to which good recordings are also cut, so that the gate does not take a short capture for a bad one."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One sound: what kind it is (``good…`` or a kind of the hard set), whose it is, and what the box measures of it."""

    kind: str
    group: str
    good: bool
    ruled_out: bool
    indices: npt.NDArray[np.float32]


class Outcome(msgspec.Struct, frozen=True):
    """The threshold and the card's table: kind → {n, refused}."""

    threshold: float
    table: dict[str, dict[str, Any]]


def _case(kind: str, group: str, made: Sound, prepare: Prepare, description: Description, width: int) -> Case:
    prepared: Prepared = prepare(made, description)
    ruled_out = prepared.refusal is not None or quality.judge(prepared.quality, description).refusal is not None
    empty = np.zeros(width, np.float32)
    indices = empty if prepared.refusal else prepared.inputs["gate"]["indices"][0]
    return Case(kind=kind, group=group, good=kind.startswith("good"), ruled_out=ruled_out, indices=indices)


def cases(
    recordings: Sequence[Recording],
    other: Other | None,
    simulate: Callable[[int], Sound],
    prepare: Prepare,
    description: Description,
    settings: Settings,
    rate_hz: int,
    width: int,
    log: Callable[[str], None],
) -> list[Case]:
    """Good sounds (as they are, in noise, simulated), the hard set, and ``other``: kind and sounds of another part."""

    def one(kind: str, group: str, made: Sound) -> Case:
        return _case(kind, group, made, prepare, description, width)

    random = np.random.default_rng(0)
    found = [one("good", each.group, each.sound) for each in recordings]
    log(f"gate: {len(found)} good recordings")
    for number, each in enumerate(recordings):
        worse = sound_hard_set.still_good(each.sound.samples, number, int(each.sound.rate_hz))
        found.append(one("good, in noise at 10 to 30 dB", each.group, sound(worse, each.sound.rate_hz)))
    for number, each in enumerate(recordings):
        cut = sound_hard_set.shortened(each.sound.samples, number, int(each.sound.rate_hz), settings.short)
        if cut.size:
            found.append(one("good, cut short", each.group, sound(cut, each.sound.rate_hz)))
    found += [one("good, simulated", f"simulated {k}", simulate(k)) for k in range(settings.copies)]
    log("gate: good recordings in noise and simulated ones")
    for kind in sound_hard_set.KINDS:
        for k in range(settings.copies):
            seconds = float(np.exp(random.uniform(*np.log(settings.seconds))))
            made = sound_hard_set.made(kind, k, seconds, rate_hz)
            found.append(one(kind, f"{kind} {k}", sound(made, rate_hz)))
    for kind in sound_hard_set.SPOILT:
        for k in range(settings.copies):
            each = recordings[int(random.integers(len(recordings)))]
            spoilt = sound_hard_set.spoil(kind, each.sound.samples, k, int(each.sound.rate_hz))
            found.append(one(kind, each.group, sound(spoilt, each.sound.rate_hz)))
    if other is not None:
        found += [one(other[0], f"{other[0]} {k}", each) for k, each in enumerate(other[1])]
    log(f"gate: {len(found)} sounds in all")
    return found


def _fit(chosen: Sequence[Case]) -> Any:
    """Trees whose good and bad weigh the same, each kind as much as any other of its side."""
    from sklearn.ensemble import ExtraTreesRegressor

    kinds = [case.kind for case in chosen]
    number = {kind: kinds.count(kind) for kind in set(kinds)}
    sides = [len({case.kind for case in chosen if case.good is side}) for side in (False, True)]
    weights = [1.0 / number[case.kind] / sides[int(case.good)] for case in chosen]
    forest = ExtraTreesRegressor(
        n_estimators=TREES, min_samples_leaf=LEAF, max_features=SHARE, random_state=0, n_jobs=1
    )
    forest.fit(
        np.stack([case.indices for case in chosen]), [float(case.good) for case in chosen], sample_weight=weights
    )
    return forest


def _predict(forest: Any, chosen: Sequence[Case]) -> Doubles:
    return np.asarray(forest.predict(np.stack([case.indices for case in chosen])), np.float64)


def build(found: list[Case], settings: Settings, path: Path, log: Callable[[str], None]) -> Outcome:
    """Fit the gate, choose its threshold on held-out good recordings, measure it, and write its graph."""
    # Trees learn nothing from what the hard rules refuse anyway.
    open_ = [case for case in found if not case.ruled_out]
    fold = splits.folds([case.group for case in open_], ["good" if case.good else "bad" for case in open_], FOLDS)
    held_out = np.zeros(len(open_))
    for number in range(FOLDS):
        forest = _fit([case for case, mine in zip(open_, fold, strict=True) if mine != number])
        rows = np.flatnonzero(fold == number)
        held_out[rows] = _predict(forest, [open_[row] for row in rows])
    real = np.array([case.kind.startswith("good") and "simulated" not in case.kind for case in open_])
    ruled = sum(case.good and case.ruled_out for case in found)
    allowed = max(0.0, settings.refused_good - ruled / max(1, sum(case.good for case in found)))
    threshold = float(np.quantile(held_out[real], allowed))
    table: dict[str, dict[str, Any]] = {}
    kinds = list(dict.fromkeys(case.kind for case in found))
    refused = {id(case): case.ruled_out for case in found}
    for case, value in zip(open_, held_out, strict=True):
        refused[id(case)] = bool(value < threshold)
    for kind in kinds:
        mine = [refused[id(case)] for case in found if case.kind == kind]
        table[kind] = {"n": len(mine), "refused": float(np.mean(mine))}
    bad = [refused[id(case)] for case in found if not case.good]
    good = [refused[id(case)] for case in found if case.good and "simulated" not in case.kind]
    table["hard set, all kinds"] = {"n": len(bad), "refused": float(np.mean(bad))}
    table["good recordings, all"] = {"n": len(good), "refused": float(np.mean(good))}
    for kind in [one for one in kinds if not one.startswith("good")]:
        unmet = [case for case in found if case.kind == kind]
        rest = [case for case in open_ if case.kind != kind]
        values = _predict(_fit(rest), unmet)
        caught = [case.ruled_out or bool(value < threshold) for case, value in zip(unmet, values, strict=True)]
        table[f"{kind}, a kind the gate never met"] = {"n": len(unmet), "refused": float(np.mean(caught))}
    for name, entry in table.items():
        log(f"gate: {name}: {entry['n']} sounds, {entry['refused']:.1%} refused")
    trees_onnx.export(_fit(open_), path, open_[0].indices.size, input_name="indices", output_name="good")
    return Outcome(threshold, table)
