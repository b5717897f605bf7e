"""Trees and a network on sounds: fitted to some recordings, quantised, and scored on others.

What this module keeps true: nothing of a scored recording's group is seen in training, in the teacher, or in calibration;
scores that lead to a threshold come from the INT8 graph; a finished fit is kept in the work folder, so a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.inference import derive
from appliance.reading.prepared import Sound
from appliance.reading.spectral import resample
from tools.train import kernel, quantise, sound_events, trees_onnx
from tools.train.sound_data import Table, mean_by_owner
from tools.train.sound_net import Batch, FrontEnd, Schedule, SoundNet, export, train
from tools.train.stethoscopes import recoloured

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
FORMS = ("fp32", "int8", "x86")


class Forest(msgspec.Struct, frozen=True, kw_only=True):
    """Extremely randomised trees: number, smallest leaf, share of features tried at a split."""

    trees: int
    leaf: int
    features: float


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that the configuration says about training."""

    seed: int
    folds: int
    rate_hz: int
    window_s: float
    outputs: int
    fronts: list[FrontEnd]
    layers: list[list[int]]
    forest: Forest
    schedule: Schedule
    label_share: float
    network_weight: float
    stretch: float = 0.12
    dropout: float = 0.3
    teach: bool = False
    recoloured: int = 0
    recolour: float = 0.7
    members: int = 1
    calibration: int = 160
    calibration_method: str = "minmax"
    keep_float: list[str] = []
    linear: list[float] = []
    """Share of a logistic regression on the same features beside the trees, by output; none: no such part."""
    linear_strength: float = 0.003
    machine: kernel.Settings | None = None
    """A kernel machine on the same features beside the trees of a model of one finding; none: no such part."""
    machine_share: float = 0.5
    events: float = 0.0
    """Share of the cases in a batch that get a made-up event laid over."""
    event_targets: dict[str, list[float]] = {}
    """By kind of event (``crackles``, ``wheeze``): 1 for each output that it makes positive."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What is learned from: prepared inputs, waves at the model's rate, targets ``[n, outputs]``, weights of a set of rows."""

    table: Table
    waves: list[Floats]
    targets: Floats
    weigh: Callable[[Rows], Doubles]
    bands: npt.NDArray[np.intp] | None = None
    """Columns ``[parts, bands]`` of the features that another stethoscope's response shifts, band by band."""


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """Files of one fit."""

    network_fp32: Path
    network: Path
    trees: Path


def waves(sounds: Sequence[Sound], rate_hz: int) -> list[Floats]:
    """Every sound at the model's rate with zero mean and unit RMS."""
    made = []
    for one in sounds:
        wave = resample(one, rate_hz)
        wave = wave - np.mean(wave)
        made.append(np.asarray(wave / (np.sqrt(np.mean(wave**2)) + 1e-9), np.float32))
    return made


def fit(
    sample: Sample, rows: Rows, settings: Settings, work: Path, name: str, log: Callable[[str], None], *, seed: int = 0
) -> Fit:
    """Fit trees and network to the recordings ``rows`` and write their graphs as ``work/name-*.onnx``; reuse what is there."""
    files = Fit(
        network_fp32=work / f"{name}-fp32.onnx", network=work / f"{name}-int8.onnx", trees=work / f"{name}-trees.onnx"
    )
    stamp, done = work / f"{name}.stamp", _stamp(sample, rows, settings, seed)
    if stamp.exists() and stamp.read_text() == done:
        return files
    work.mkdir(parents=True, exist_ok=True)
    table = sample.table
    feature_rows = np.flatnonzero(np.isin(table.feature_owner, rows))
    owner = table.feature_owner[feature_rows]
    weight = np.zeros(len(sample.targets))
    weight[rows] = sample.weigh(rows)
    each = weight[owner] / np.bincount(owner, minlength=len(weight))[owner]
    taught = _teacher(table.features[feature_rows], sample.targets[owner], each, settings, seed)
    copies = 1 + settings.recoloured
    forest = _forest(settings, seed, bootstrap=False, leaf=copies * settings.forest.leaf)
    shown = recoloured(
        table.features[feature_rows], sample.bands, settings.recoloured, settings.recolour, settings.seed + seed
    )
    forest.fit(shown, np.tile(_squeezed(sample.targets[owner]).T, copies).T, sample_weight=np.tile(each, copies))
    truth, weights = np.tile(sample.targets[owner].T, copies).T, np.tile(each, copies)
    trees_onnx.export(
        forest,
        files.trees,
        table.features.shape[1],
        input_name="features",
        linear=_linear(shown, truth, weights, settings),
        kernel=_kernel(shown, truth, weights, settings),
    )
    teacher = mean_by_owner(taught, owner, len(weight))
    lessons = (
        _lessons(table, feature_rows, owner, len(weight)) if settings.teach else np.zeros((len(weight), 0), np.float32)
    )
    net = _network(settings, lessons.shape[1], seed)
    draw = drawer(sample, rows, teacher, lessons, settings)
    train(net, draw, settings.schedule, settings.seed + seed, lambda text: log(f"{name}: {text}"))
    kept = export(net, round(settings.window_s * settings.rate_hz), files.network_fp32)
    _quantise(sample, rows, settings, files, kept)
    stamp.write_text(done)
    log(f"{name}: fitted to {len(rows)} recordings")
    return files


def _stamp(sample: Sample, rows: Rows, settings: Settings, seed: int) -> str:
    digest = hashlib.sha256(msgspec.json.encode(settings))
    for part in (rows, sample.table.features, sample.targets, np.array([seed])):
        digest.update(np.ascontiguousarray(part).tobytes())
    for name in ("sound_fit.py", "sound_net.py", "sound_events.py", "trees_onnx.py", "kernel.py", "stethoscopes.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _forest(settings: Settings, seed: int, *, bootstrap: bool, leaf: int = 0) -> Any:
    from sklearn.ensemble import ExtraTreesRegressor

    shape = settings.forest
    return ExtraTreesRegressor(
        n_estimators=shape.trees,
        min_samples_leaf=leaf or shape.leaf,
        max_features=shape.features,
        bootstrap=bootstrap,
        oob_score=bootstrap,
        random_state=settings.seed + seed + int(bootstrap),
        n_jobs=1,
    )


def _teacher(features: Floats, targets: Floats, weights: Doubles, settings: Settings, seed: int) -> Floats:
    """Out-of-bag probabilities: what trees say of recordings that they were not grown on."""
    forest = _forest(settings, seed, bootstrap=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a few rows may be in every bag; they get their own label
        forest.fit(features, _squeezed(targets), sample_weight=weights)
    probability = np.asarray(forest.oob_prediction_, np.float32).reshape(len(features), -1)
    unseen = ~np.isfinite(probability).all(axis=1) | (probability.sum(axis=1) == 0.0)
    probability[unseen] = targets[unseen]
    return np.clip(probability, 0.0, 1.0)


def _linear(features: Floats, targets: Floats, weights: Doubles, settings: Settings) -> trees_onnx.Linear | None:
    """Logistic regressions on standardised features, each times its share."""
    if not any(settings.linear):
        return None
    from sklearn.linear_model import LogisticRegression

    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-4
    standard = np.clip((features - mean) / spread, -kernel.FAR, kernel.FAR)
    weight, bias = np.zeros((features.shape[1], targets.shape[1])), np.zeros(targets.shape[1])
    for column, share in enumerate(settings.linear):
        if share:
            model = LogisticRegression(C=settings.linear_strength, max_iter=300)
            model.fit(standard, targets[:, column], sample_weight=weights / weights.mean())
            weight[:, column], bias[column] = share * model.coef_[0], share * model.intercept_[0]
    return trees_onnx.Linear(mean=mean, spread=spread, weight=weight, bias=bias)


def _kernel(features: Floats, targets: Floats, weights: Doubles, settings: Settings) -> kernel.Kernel | None:
    """The kernel machine of a model of one finding."""
    if settings.machine is None:
        return None
    if targets.shape[1] != 1:
        raise ValueError("a kernel machine stands beside the trees of one finding only")
    return kernel.fit(features, targets[:, 0] > 0.5, weights, settings.machine, share=settings.machine_share)


def _squeezed(targets: Floats) -> Floats:
    """One column as a vector, which is how scikit-learn wants it."""
    return targets[:, 0] if targets.shape[1] == 1 else targets


def _lessons(table: Table, rows: Rows, owner: Rows, count: int) -> Floats:
    """Hand features, standardised on the training rows: what the network also learns to tell."""
    chosen = table.features[rows]
    mean, spread = chosen.mean(axis=0), chosen.std(axis=0) + 1e-3
    standard = np.clip((chosen - mean) / spread, -3.0, 3.0)
    return np.asarray(np.nan_to_num(mean_by_owner(standard, owner, count)), np.float32)


def _network(settings: Settings, teach: int, seed: int) -> SoundNet:
    import torch

    torch.manual_seed(settings.seed + seed)
    net = SoundNet(
        settings.rate_hz,
        settings.fronts,
        settings.layers,
        settings.outputs,
        dropout=settings.dropout,
        teach=teach,
        members=settings.members,
    )
    if net.plane:
        net.bodies.to(memory_format=torch.channels_last)  # a quarter faster to train
    return net


def drawer(
    sample: Sample, rows: Rows, teacher: Doubles, lessons: Floats, settings: Settings
) -> Callable[[np.random.Generator], Batch]:
    """A function that draws an augmented batch: recordings by weight, a random stretch of each, noise on half of them."""
    length = round(settings.window_s * settings.rate_hz)
    usable = rows[np.isfinite(teacher[rows]).all(axis=1)]
    weight = sample.weigh(usable)
    chance = weight / weight.sum()
    soft = settings.label_share * sample.targets + (1.0 - settings.label_share) * np.nan_to_num(teacher)

    def draw(random: np.random.Generator) -> Batch:
        chosen = usable[random.choice(usable.size, settings.schedule.batch, p=chance)]
        samples = np.stack([augmented(sample.waves[row], length, settings.stretch, random) for row in chosen])
        targets, lesson = soft[chosen].astype(np.float32), lessons[chosen].copy()
        struck = random.random(chosen.size) < settings.events if settings.events else np.zeros(chosen.size, bool)
        for case in np.flatnonzero(struck):
            samples[case], targets[case] = sound_events.added(
                samples[case], targets[case], settings.event_targets, settings.rate_hz, random
            )
            lesson[case] = np.nan
        return samples, targets, np.ones_like(targets), lesson

    return draw


def augmented(wave: Floats, length: int, stretch: float, random: np.random.Generator) -> Floats:
    """``length`` samples from a random place, up to ``stretch`` faster or slower, half with noise 10 to 40 dB below."""
    factor = float(np.exp(random.uniform(-stretch, stretch)))
    need = int(length * factor) + 2
    if wave.size < need:
        wave = np.resize(wave, need)
    begin = int(random.integers(0, wave.size - need + 1))
    part = np.interp(np.arange(length) * factor, np.arange(need), wave[begin : begin + need])
    if random.random() < 0.5:
        noise = random.standard_normal(length)
        if random.random() < 0.5:
            noise = np.cumsum(noise)
            noise -= np.convolve(noise, np.full(101, 1.0 / 101.0), mode="same")
        part = part + noise / (np.std(noise) + 1e-9) * 10 ** (-random.uniform(10.0, 40.0) / 20)
    return np.asarray(part, np.float32)


def _quantise(sample: Sample, rows: Rows, settings: Settings, files: Fit, front: list[str]) -> None:
    table = sample.table
    mine = np.flatnonzero(np.isin(table.owner, rows))
    chosen = np.random.default_rng(settings.seed).choice(mine, min(settings.calibration, mine.size), replace=False)
    batches = [{"samples": table.windows[chosen[k : k + 16]]} for k in range(0, chosen.size, 16)]
    quantise.quantise(
        files.network_fp32,
        files.network,
        batches,
        keep_float=[*front, *settings.keep_float],
        op_types=("Conv", "Gemm", "MatMul", "Add", "ReduceMean"),
        method=settings.calibration_method,
    )


def score(files: Fit, table: Table, rows: Rows, count: int, network_weight: float) -> dict[str, Doubles]:
    """Raw logits ``[count, outputs]`` of each form, NaN but for ``rows``; ``trees`` and ``network`` apart as well."""
    mine = np.flatnonzero(np.isin(table.owner, rows))
    own = np.flatnonzero(np.isin(table.feature_owner, rows))
    probability = quantise.outputs(files.trees, [{"features": table.features[own]}], ["probability"])["probability"]
    trees = mean_by_owner(np.log(probability / (1.0 - probability)), table.feature_owner[own], count)
    derived = files.network.with_suffix(".x86.onnx")
    derive.write(files.network, derived, unsigned=True)
    paths = {"fp32": files.network_fp32, "int8": files.network, "x86": derived}
    found: dict[str, Doubles] = {"trees": trees}
    for form in FORMS:
        batches = ({"samples": table.windows[mine[k : k + 64]]} for k in range(0, mine.size, 64))
        value = mean_by_owner(quantise.outputs(paths[form], batches, ["logit"])["logit"], table.owner[mine], count)
        found[f"network-{form}"] = value
        found[form] = trees + network_weight * value
    return found
