"""Train, quantise, measure and write ``lung-ultrasound``: ``python -m tools.train.lung_ultrasound --data DIR --out DIR``.

What this module keeps true: every figure on the card comes from patients (or a hospital) that the measured weights were not
trained on; clips whose licence forbids it are never trained on. What is done is kept under ``--work``, so an interrupted run
goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from tools.train import build, finetune, frozen, lite0, lung_data, lung_report, settings, splits
from tools.train.lung_data import FINDINGS, Cache, Clip

CONFIGURATION = Path(__file__).with_suffix(".toml")
Log = Callable[[str], None]
Rows = npt.NDArray[np.bool_]


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[training]``."""

    folds: int
    seeds: int
    copies: int
    batch: dict[str, int]
    calibration: int
    calibration_method: str
    keep_float: list[str]
    frozen: dict[str, float]
    frozen_strength: float
    frozen_floor: dict[str, float]
    settings: finetune.Settings


def draws(cache: Cache, targets: npt.NDArray[np.float32], rows: Rows, batch: dict[str, int]) -> list[finetune.Draw]:
    """Shares of a batch from the clips ``rows``: healthy, abnormal, and more of each finding; a clip weighs one."""
    weights = 1.0 / np.bincount(cache.owner)[cache.owner]
    parts = []
    for name, count in batch.items():
        column = targets[:, 0 if name == "normal" else FINDINGS.index(name)]
        wanted = column < 0.5 if name == "normal" else column > 0.5
        chosen = np.flatnonzero(rows[cache.owner] & wanted)
        if len(chosen):
            parts.append(finetune.Draw(chosen, weights[chosen], count))
    return parts


def fitted(cache: Cache, found: list[Clip], rows: Rows, training: Training, path: Path, log: Log) -> lite0.Lite0:
    """The net trained on the clips ``rows``: the mean of the weights of several seeds; kept in ``path``."""
    if path.exists():
        net = lite0.imagenet(len(FINDINGS))
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    targets = np.array([clip.labels for clip in found], np.float32)[cache.owner]
    examples = finetune.Examples(cache.maps, targets)
    batch = draws(cache, targets, rows, training.batch)
    nets = []
    for seed in range(training.seeds):
        nets.append(finetune.train(examples, batch, training.settings, seed, lambda _: None))
        log(f"{path.stem} seed {seed} trained")
    net = finetune.soup(nets)
    torch.save(net.state_dict(), path)
    return net


def quantised(net: lite0.Lite0, cache: Cache, found: list[Clip], rows: Rows, training: Training, path: Path) -> None:
    """Write the forms of ``net`` with the frozen net beside it, calibrated on frames of ``rows``, clips weighing the same."""
    features = frozen.pooled(cache.images, path.parent)
    labels = np.array([clip.labels for clip in found])
    floors = [training.frozen_floor[name] for name in FINDINGS]
    weights, biases = frozen.fit(features, cache.image_owner, labels, rows, training.frozen_strength, floors)
    share = [training.frozen[name] for name in FINDINGS]
    beside = frozen.beside(weights, biases, share, training.settings.since)
    random = np.random.default_rng(5)
    own = np.flatnonzero(rows[cache.image_owner])
    chances = 1.0 / np.bincount(cache.image_owner)[cache.image_owner[own]]
    chosen = random.choice(own, min(training.calibration, len(own)), replace=False, p=chances / chances.sum())
    frames = cache.images[chosen]
    build.forms(net, path, frames, method=training.calibration_method, keep_float=training.keep_float, beside=beside)
    build.align(path, frames)


def scored(cache: Cache, found: list[Clip], train: Rows, wanted: Rows, training: Training, path: Path, log: Log) -> Any:
    """Clip logits ``[clips, F]`` of ``wanted`` by a net trained on ``train``: FP32, INT8 as shipped, INT8 on x86."""
    stored = path.with_suffix(".npz")
    if not stored.exists():
        net = fitted(cache, found, train, training, path.with_suffix(".pt"), log)
        quantised(net, cache, found, train, training, path)
        frames = wanted[cache.image_owner]
        result: dict[str, Any] = {}
        for name, file in (("fp32", ".fp32.onnx"), ("int8", ".onnx"), ("x86", ".x86.onnx")):
            logits = build.scored(path.with_suffix(file), cache.images[frames], ["logits"])["logits"]
            result[name] = lung_data.by_clip(logits, cache.image_owner[frames], len(found))
        np.savez(stored, **result)
        log(f"{path.stem} scored")
    with np.load(stored) as part:
        return {name: part[name] for name in part.files}


def held_out(cache: Cache, found: list[Clip], training: Training, work: Path, log: Log) -> dict[str, npt.NDArray[Any]]:
    """Logits of every clip by the fold that was not trained on its patient, and the fold."""
    allowed = np.array([clip.trainable for clip in found])
    fold = splits.folds([c.patient for c in found], [c.site + c.group for c in found], training.folds)
    result: dict[str, npt.NDArray[Any]] = {
        name: np.zeros((len(found), len(FINDINGS))) for name in ("fp32", "int8", "x86")
    }
    for number in range(training.folds):
        away = fold == number
        part = scored(cache, found, allowed & ~away, away, training, work / f"lung-fold{number}.onnx", log)
        for name, values in result.items():
            values[away] = part[name][away]
    return result | {"fold": fold}


def main() -> None:
    """Read the arguments, run the steps, print what was reached."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lung-ultrasound/pocus")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument(
        "--work", type=Path, default=Path(".work/lung-ultrasound"), help="where finished steps are kept"
    )
    arguments = parser.parse_args()
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - begun:6.0f} s  {text}", flush=True)

    configuration = settings.read(CONFIGURATION)
    training = msgspec.convert(configuration["training"], Training)
    found = lung_data.clips(arguments.data)
    front = finetune.front_session(arguments.work, training.settings.since)
    cache = lung_data.cache(found, arguments.work, training.settings.since, training.copies, front, log)
    measured = held_out(cache, found, training, arguments.work, log)
    allowed = np.array([clip.trainable for clip in found])
    hospital = np.array([clip.site == lung_report.HOSPITAL for clip in found])
    path = arguments.work / "lung-without-hospital.onnx"
    elsewhere = scored(cache, found, allowed & ~hospital, hospital, training, path, log)
    path = arguments.work / "lung-all.onnx"
    if not path.exists():
        net = fitted(cache, found, allowed, training, path.with_suffix(".pt"), log)
        quantised(net, cache, found, allowed, training, path)
    log("trained; writing the bundle")
    run = lung_report.Run(arguments.data, arguments.work, arguments.out, found, cache, measured, elsewhere, path)
    print(lung_report.write(run, configuration, log))


if __name__ == "__main__":
    main()
