"""Train, quantise, measure and write the bundle ``chest-xray``: ``python -m tools.train.chest_xray --data DIR --out DIR``.

What this module keeps true: every figure on the card comes from patients that the measured weights were not trained on
(folds by patient, INT8 graphs); the shipped weights are trained in the same way on all patients. What is done is kept under
``--work``, so an interrupted run goes on.
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

from tools.train import build, chest_data, chest_report, finetune, lite0, settings, splits
from tools.train.chest_data import Cache, Film

CONFIGURATION = Path(__file__).with_suffix(".toml")
Log = Callable[[str], None]
Rows = npt.NDArray[np.bool_]
EVERY = 4


class Shares(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many films of each kind a batch has.

    ``child``: of either class. ``opacity``, ``normal``, ``abnormal``: adults by the radiologists' read (``abnormal``: without
    opacity). ``likely``, ``unlikely``: unread adults, drawn by their probability of opacity and by its complement.
    """

    child: int
    opacity: int
    normal: int
    abnormal: int
    likely: int
    unlikely: int


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[training]``."""

    folds: int
    seeds: int
    copies: dict[str, int]
    batch: Shares
    calibration: int
    calibration_method: str
    keep_float: list[str]
    equal: bool
    aligning: int
    settings: finetune.Settings


def draws(
    cache: Cache, found: list[Film], targets: npt.NDArray[np.float32], rows: Rows, shares: Shares
) -> list[finetune.Draw]:
    """The shares of a batch among the copies of the films ``rows``; a kind without a film there is left out."""
    value = targets[cache.owner].astype(np.float64)

    def drawn(wanted: Callable[[Film], bool], weights: npt.NDArray[np.float64], count: int) -> list[finetune.Draw]:
        own = np.flatnonzero((rows & np.array([wanted(film) for film in found]))[cache.owner])
        return [finetune.Draw(own, weights[own], count)] if len(own) and weights[own].sum() > 0 else []

    def read_as(wanted: str, count: int) -> list[finetune.Draw]:
        return drawn(lambda film: film.read == wanted, np.ones(len(value)), count)

    def unread(film: Film) -> bool:
        return film.source == "nih" and not film.read

    return [
        *drawn(lambda film: film.source == "kermany", value, shares.child),
        *drawn(lambda film: film.source == "kermany", 1 - value, shares.child),
        *read_as(chest_data.OPACITY, shares.opacity),
        *read_as(chest_data.NORMAL, shares.normal),
        *read_as(chest_data.ABNORMAL, shares.abnormal),
        *drawn(unread, value, shares.likely),
        *drawn(unread, 1 - value, shares.unlikely),
    ]


def fitted(
    cache: Cache, found: list[Film], rows: Rows, training: Training, path: Path, log: Log, seeds: int | None = None
) -> lite0.Lite0:
    """The net trained on the films ``rows``: the mean of the weights of several seeds; kept in ``path``."""
    net = lite0.imagenet(1)
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    targets = chest_data.targets(found, rows)
    beside = chest_data.labels_beside(found)[cache.owner]
    examples = finetune.Examples(cache.maps, targets[cache.owner][:, None], cache.cells, beside)
    batch = draws(cache, found, targets, rows, training.batch)
    nets = [
        finetune.train(examples, batch, training.settings, seed, lambda s, i=seed: log(f"{path.stem} seed {i} {s}"))  # type: ignore[misc]
        for seed in range(seeds or training.seeds)
    ]
    net = finetune.soup(nets)
    torch.save(net.state_dict(), path)
    return net


def quantised(net: lite0.Lite0, cache: Cache, found: list[Film], rows: Rows, training: Training, path: Path) -> None:
    """Write the forms of ``net`` to ``path`` and beside it, calibrated on clean films of ``rows``, half of each source."""
    random = np.random.default_rng(5)
    chosen = [
        random.choice(own, min(training.calibration // 2, len(own)), replace=False)
        for source in sorted({film.source for film in found})
        if len(own := np.flatnonzero(rows & np.array([film.source == source for film in found])))
    ]
    films = cache.images[np.concatenate(chosen)]
    build.forms(
        net, path, films, method=training.calibration_method, keep_float=training.keep_float, equal=training.equal
    )
    build.align(path, films[:: max(1, len(films) // training.aligning)])


def held_out(cache: Cache, found: list[Film], training: Training, work: Path, log: Log) -> dict[str, npt.NDArray[Any]]:
    """Scores of every film by the fold that was not trained on its patient.

    ``fp32``; ``int8`` in the form that runs on x86; ``shipped``, the INT8 graph as it ships, slow on x86 and hence on every
    adult and one child in ``EVERY`` (NaN elsewhere); ``cam`` maps of the same; ``fold``.
    """
    strata = [film.source + (film.read or film.label) for film in found]
    fold = splits.folds([film.patient for film in found], strata, training.folds)
    n, side = len(found), chest_data.CELLS
    result: dict[str, npt.NDArray[Any]] = {name: np.zeros(n, np.float32) for name in ("fp32", "int8")}
    result |= {"fold": fold, "shipped": np.full(n, np.nan, np.float32), "cam": np.zeros((n, side, side), np.float32)}
    adult = np.array([film.source == "nih" for film in found])
    for number in range(training.folds):
        rows, away = fold != number, np.flatnonzero(fold == number)
        few = away[adult[away] | (np.arange(len(away)) % EVERY == 0)]
        path = work / f"chest-fold{number}.onnx"
        stored = path.with_suffix(".npz")
        if not stored.exists():
            net = fitted(cache, found, rows, training, path.with_suffix(".pt"), log)
            quantised(net, cache, found, rows, training, path)
            log(f"fold {number} quantised")
            shipped = build.scored(path, cache.images[few], ["logits", "cam"])
            np.savez(
                stored,
                fp32=build.scored(path.with_suffix(".fp32.onnx"), cache.images[away], ["logits"])["logits"][:, 0],
                int8=build.scored(path.with_suffix(".x86.onnx"), cache.images[away], ["logits"])["logits"][:, 0],
                shipped=shipped["logits"][:, 0],
                cam=shipped["cam"][:, 0],
            )
            log(f"fold {number} scored")
        with np.load(stored) as part:
            for name in ("fp32", "int8"):
                result[name][away] = part[name]
            for name in ("shipped", "cam"):
                result[name][few] = part[name]
    return result


def other_site(
    cache: Cache, found: list[Film], training: Training, work: Path, log: Log
) -> dict[str, npt.NDArray[Any]]:
    """INT8 scores of every film by a net that never saw its source (leave one source out)."""
    scores = np.zeros(len(found), np.float32)
    for source in sorted({film.source for film in found}):
        away = np.array([film.source == source for film in found])
        path = work / f"chest-without-{source}.onnx"
        if not path.with_suffix(".npz").exists():
            net = fitted(cache, found, ~away, training, path.with_suffix(".pt"), log, seeds=1)
            quantised(net, cache, found, ~away, training, path)
            np.savez(
                path.with_suffix(".npz"),
                int8=build.scored(path.with_suffix(".x86.onnx"), cache.images[away], ["logits"])["logits"][:, 0],
            )
        with np.load(path.with_suffix(".npz")) as part:
            scores[away] = part["int8"]
    return {"int8": scores}


def main() -> None:
    """Read the arguments, run the steps, print what was reached."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds chest-xray/kermany and chest-xray/nih"
    )
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--work", type=Path, default=Path(".work/chest-xray"), help="where finished steps are kept")
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
    found = chest_data.films(arguments.data)
    cache = chest_data.cache(found, arguments.work, training.settings.since, training.copies, log)
    measured = held_out(cache, found, training, arguments.work, log)
    elsewhere = other_site(cache, found, training, arguments.work, log)
    everything = np.ones(len(found), bool)
    path = arguments.work / "chest-all.onnx"
    if not path.exists():
        net = fitted(cache, found, everything, training, path.with_suffix(".pt"), log)
        quantised(net, cache, found, everything, training, path)
    log("trained; writing the bundle")
    run = chest_report.Run(arguments.data, arguments.work, arguments.out, found, cache, measured, elsewhere, path)
    print(chest_report.write(run, configuration, log))


if __name__ == "__main__":
    main()
