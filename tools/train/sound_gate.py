"""The input gate of a sound model: fitted to good recordings, good ones in noise, and the made-up hard set.

Two judges, and either may refuse: trees on quality indices tell a good recording from the hard set, and a kernel machine
on the model's own features tells it from another part of the body. Apart, because a gate that learns both at once refuses
whole clinics whose stethoscope it never met.

What this module keeps true: a good recording and all that is made of it stay in one fold, and so do the recordings of one
person (or block) of another part of the body; the figures are of sounds that the gate was not fitted to, of kinds that it
never met (leave one kind out), and of clinics or devices whose sounds of another part it never met; hard rules (length,
silence, clipping, drop-outs) count as they do on the box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import Description
from appliance.reading import quality
from appliance.reading.prepared import Prepared, Sound
from appliance.reading.spectral import resample
from tools.train import kernel, sound_hard_set, splits, trees_onnx
from tools.train.sound_data import Prepare, Recording, sound
from tools.train.stethoscopes import recoloured

Doubles = npt.NDArray[np.float64]
FOLDS = 5
LEAF, SHARE = 3, 0.35
COLOUR = ("centroid", "flatness", "crossings", "crest", "kurtosis")
FEW = 20
"""Sounds that a clinic or device needs for a line of its own."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How long made-up sounds last, how many of each kind, the share of good ones that may be refused, the hard rules."""

    seconds: tuple[float, float]
    copies: int
    refused_good: float
    rules: dict[str, tuple[float, float]]
    short: tuple[float, float]
    """Seconds to which good recordings are also cut, so that the gate does not take a short capture for a bad one."""
    machine: kernel.Settings
    lead: float = 0.0
    """Logits by which the machine is more lenient than the trees: how they share the good ones that may be refused."""
    trees: int = 100
    recolour: float = 0.0
    """How far another stethoscope's response reaches, for the machine's further copies; 0: none are made."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What each judge looks at: the trees at the first ``indices`` columns, the machine at the columns ``telling``.

    ``bands`` are the columns ``[parts, bands]`` of absolute levels, if there are any.
    """

    indices: int
    telling: npt.NDArray[np.intp]
    bands: npt.NDArray[np.intp] | None = None


def layout(names: Sequence[str], width: int, bands: npt.NDArray[np.intp] | None = None) -> Layout:
    """For indices called ``names`` before the features, ``width`` columns in all; ``bands`` count from the first feature.

    The machine does without the recording's overall colour, which is the stethoscope's more than the body's.
    """
    colour = [k for k, name in enumerate(names) if name in COLOUR or name.startswith("share-")]
    shifted = None if bands is None else bands + len(names)
    return Layout(indices=len(names), telling=np.setdiff1d(np.arange(width), colour), bands=shifted)


class Other(msgspec.Struct, frozen=True, kw_only=True):
    """Recordings of another part of the body, and what the card calls them."""

    kind: str
    recordings: Sequence[Recording]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One sound: what kind it is (``good…`` or a kind of the hard set), whose it is, and what the box measures of it.

    ``family`` joins the kinds that are made of the same recordings of another part (``other``), ``source`` says with what
    device or in what clinic a real sound was recorded.
    """

    kind: str
    group: str
    good: bool
    ruled_out: bool
    indices: npt.NDArray[np.float32]
    family: str
    other: bool = False
    source: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """The threshold and the card's table: kind → {n, refused}."""

    threshold: float
    table: dict[str, dict[str, Any]]


def _case(kind: str, group: str, made: Sound, prepare: Prepare, description: Description, width: int) -> Case:
    prepared: Prepared = prepare(made, description)
    ruled_out = prepared.refusal is not None or quality.judge(prepared.quality, description).refusal is not None
    empty = np.zeros(width, np.float32)
    indices = empty if prepared.refusal else prepared.inputs["gate"]["indices"][0]
    good = kind.startswith("good")
    return Case(kind=kind, group=group, good=good, ruled_out=ruled_out, indices=indices, family=kind)


def cases(
    recordings: Sequence[Recording],
    other: Other,
    simulate: Callable[[int], Sound],
    prepare: Prepare,
    description: Description,
    settings: Settings,
    rate_hz: int,
    width: int,
    log: Callable[[str], None],
) -> list[Case]:
    """Good sounds (as they are, in noise, simulated), the hard set, and ``other``: kind and sounds of another part."""

    def one(kind: str, group: str, made: Sound, source: str = "") -> Case:
        return msgspec.structs.replace(_case(kind, group, made, prepare, description, width), source=source)

    random = np.random.default_rng(0)
    found = [one("good", each.group, each.sound, each.source) for each in recordings]
    log(f"gate: {len(found)} good recordings")
    for number, each in enumerate(recordings):
        worse = sound_hard_set.still_good(each.sound.samples, number, int(each.sound.rate_hz))
        found.append(one("good, in noise at 10 to 30 dB", each.group, sound(worse, each.sound.rate_hz), each.source))
    for number, each in enumerate(recordings):
        cut = sound_hard_set.shortened(each.sound.samples, number, int(each.sound.rate_hz), settings.short)
        if cut.size:
            found.append(one("good, cut short", each.group, sound(cut, each.sound.rate_hz), each.source))
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
    found += _elsewhere(other, one, settings, rate_hz)
    log(f"gate: {len(found)} sounds in all")
    return found


def _elsewhere(
    other: Other, one: Callable[[str, str, Sound], Case], settings: Settings, rate_hz: int
) -> Iterator[Case]:
    """Each recording of another part as it is, as a worse room or another stethoscope gives it, and cut short."""
    for number, each in enumerate(other.recordings):
        samples = resample(each.sound, rate_hz)
        forms = {
            other.kind: samples,
            f"{other.kind}, in noise at 10 to 30 dB": sound_hard_set.still_good(samples, number, rate_hz),
            f"{other.kind}, cut short": sound_hard_set.shortened(samples, number, rate_hz, settings.short),
        }
        for kind, form in forms.items():
            if form.size:
                case = one(kind, each.group, sound(form, rate_hz))
                yield msgspec.structs.replace(case, family=other.kind, other=True, source=each.source)


class Judges(msgspec.Struct, frozen=True, kw_only=True):
    """The fitted trees and the fitted machine (none where no sound of another part was to be had)."""

    forest: Any
    machine: kernel.Kernel | None

    def predict(self, chosen: Sequence[Case]) -> Doubles:
        """The probability of a good recording: the lesser of both judges'."""
        indices = np.stack([case.indices for case in chosen])
        certain = trees_onnx.CERTAIN
        trees = np.clip(self.forest.predict(indices[:, : self.forest.n_features_in_]), certain, 1.0 - certain)
        logit = np.log(trees / (1.0 - trees))
        if self.machine is not None:
            logit = np.minimum(logit, kernel.logits(self.machine, indices))
        return np.asarray(1.0 / (1.0 + np.exp(-logit)), np.float64)


def _forest(chosen: Sequence[Case], settings: Settings, shape: Layout) -> Any:
    """Trees whose good and bad weigh the same, each kind as much as any other of its side."""
    from sklearn.ensemble import ExtraTreesRegressor

    mine = [case for case in chosen if not case.other]
    kinds = [case.kind for case in mine]
    number = {kind: kinds.count(kind) for kind in set(kinds)}
    sides = [len({case.kind for case in mine if case.good is side}) for side in (False, True)]
    weights = [1.0 / number[case.kind] / sides[int(case.good)] for case in mine]
    forest = ExtraTreesRegressor(
        n_estimators=settings.trees, min_samples_leaf=LEAF, max_features=SHARE, random_state=0, n_jobs=1
    )
    indices = np.stack([case.indices[: shape.indices] for case in mine])
    forest.fit(indices, [float(case.good) for case in mine], sample_weight=weights)
    return forest


def _machine(chosen: Sequence[Case], settings: Settings, shape: Layout) -> kernel.Kernel | None:
    """A kernel machine on good recordings and another part's; many of one kind and source count less each."""
    mine = [case for case in chosen if case.good or case.other]
    good = np.array([case.good for case in mine])
    if good.all():
        return None
    cells = [f"{case.source}/{case.kind}" for case in mine]
    number = {cell: cells.count(cell) for cell in set(cells)}
    weights = np.array([number[cell] ** -0.5 for cell in cells])
    weights /= np.where(good, weights[good].sum(), weights[~good].sum())
    indices = np.stack([case.indices for case in mine])
    copies = 1 if settings.recolour and shape.bands is not None else 0
    shown = recoloured(indices, shape.bands, copies, settings.recolour, 0)
    times = 1 + copies
    machine = kernel.fit(shown, np.tile(good, times), np.tile(weights, times), settings.machine, shape.telling)
    return msgspec.structs.replace(machine, bias=machine.bias + settings.lead)


def _fit(chosen: Sequence[Case], settings: Settings, shape: Layout) -> Judges:
    return Judges(forest=_forest(chosen, settings, shape), machine=_machine(chosen, settings, shape))


def build(found: list[Case], settings: Settings, shape: Layout, path: Path, log: Callable[[str], None]) -> Outcome:
    """Fit the gate, choose its threshold on held-out good recordings, measure it, and write its graph."""
    # Trees learn nothing from what the hard rules refuse anyway.
    open_ = [case for case in found if not case.ruled_out]
    fold = splits.folds([case.group for case in open_], ["good" if case.good else "bad" for case in open_], FOLDS)
    held_out = np.zeros(len(open_))
    for number in range(FOLDS):
        judges = _fit([case for case, mine in zip(open_, fold, strict=True) if mine != number], settings, shape)
        rows = np.flatnonzero(fold == number)
        held_out[rows] = judges.predict([open_[row] for row in rows])
    real = np.array([case.kind.startswith("good") and "simulated" not in case.kind for case in open_])
    ruled = sum(case.good and case.ruled_out for case in found)
    allowed = max(0.0, settings.refused_good - ruled / max(1, sum(case.good for case in found)))
    threshold = float(np.quantile(held_out[real], allowed))
    refused = {id(case): case.ruled_out for case in found}
    refused |= {id(case): bool(value < threshold) for case, value in zip(open_, held_out, strict=True)}
    whole = _fit(open_, settings, shape)
    table = _met(found, refused) | _never_met(found, open_, threshold, whole, settings, shape)
    for name, entry in table.items():
        log(f"gate: {name}: {entry['n']} sounds, {entry['refused']:.1%} refused")
    trees_onnx.export(
        whole.forest,
        path,
        open_[0].indices.size,
        input_name="indices",
        output_name="good",
        kernel=whole.machine,
        weakest=True,
    )
    return Outcome(threshold, table)


def _met(found: Sequence[Case], refused: Mapping[int, bool]) -> dict[str, dict[str, Any]]:
    """How many of each kind are refused, held out."""
    parts: dict[str, list[Case]] = {}
    for case in found:
        parts.setdefault(case.kind, []).append(case)
    parts["hard set, all kinds"] = [case for case in found if not case.good and not case.other]
    parts |= {f"{case.family}, all": [one for one in found if one.other] for case in found if case.other}
    parts["good recordings, all"] = [case for case in found if case.good and "simulated" not in case.kind]
    return {
        name: {"n": len(mine), "refused": float(np.mean([refused[id(case)] for case in mine]))}
        for name, mine in parts.items()
    }


def _never_met(
    found: Sequence[Case], open_: Sequence[Case], threshold: float, whole: Judges, settings: Settings, shape: Layout
) -> dict[str, dict[str, Any]]:
    """How many are refused by a gate fitted without any of their kind, or without any of their clinic or device."""
    left_out: dict[str, list[Case]] = {}
    for case in found:
        if not case.good:
            left_out.setdefault(f"{case.family}, a kind the gate never met", []).append(case)
        if case.source:
            family = case.family if case.other else "good recordings"
            left_out.setdefault(f"{family} of {case.source}, none of which the gate ever met", []).append(case)
    table = {}
    for title, unmet in left_out.items():
        if len(unmet) < FEW:
            continue
        without = {id(case) for case in unmet}
        rest = [case for case in open_ if id(case) not in without]
        # The trees learn nothing from another part's sounds, the machine nothing from the hard set.
        forest = whole.forest if unmet[0].other else _forest(rest, settings, shape)
        machine = _machine(rest, settings, shape) if unmet[0].other or unmet[0].good else whole.machine
        values = Judges(forest=forest, machine=machine).predict(unmet)
        caught = [case.ruled_out or bool(value < threshold) for case, value in zip(unmet, values, strict=True)]
        table[title] = {"n": len(unmet), "refused": float(np.mean(caught))}
    return table
