"""Trains, measures and writes the heart-sound bundle.

What this module keeps true: one command makes the bundle from the data and ``heart_sound.toml`` alone; a run that was
stopped goes on from what ``--work`` keeps.

Run ``python -m tools.train.heart_sound --data DIR --out models/heart-sound [--work DIR]``; ``DIR`` holds
``heart-sound/physionet2016`` and ``lung-sound/icbhi`` with their ``labels.csv``. About 15 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from appliance.reading import heart_features
from appliance.reading.auscultation import HEART_INDICES, prepare_heart
from appliance.reading.prepared import Sound
from tools.simulate import sounds
from tools.train import sound_gate, sound_model, sound_report
from tools.train.sound_data import joined, load, sound

CONFIGURATION = Path(__file__).with_suffix(".toml")
GOLDEN = {
    "quiet": {"seconds": 6.0, "seed": 11},
    "systolic": {"seconds": 6.0, "seed": 12, "murmur": "systolic", "beats_per_minute": 88.0},
    "diastolic": {"seconds": 6.0, "seed": 13, "murmur": "diastolic", "beats_per_minute": 64.0},
}


def simulated(seed: int) -> Sound:
    """A made-up heart of varied rate, murmur and background."""
    random = np.random.default_rng([seed, 3])
    murmur = ("none", "none", "systolic", "diastolic")[seed % 4]
    made, _ = sounds.heart(
        float(random.uniform(8.0, 16.0)),
        4000,
        beats_per_minute=float(random.uniform(50.0, 130.0)),
        murmur=murmur,  # type: ignore[arg-type]  # one of the literals above
        murmur_level=float(random.uniform(0.05, 0.25)),
        noise_db=float(random.uniform(-45.0, -22.0)),
        seed=seed,
    )
    return sound(made, 4000)


def shifted_columns() -> npt.NDArray[np.intp]:
    """Columns of the absolute levels, ``[parts of the beat, bands]``."""
    names = heart_features.FEATURES
    parts = ["S1", "S2", *(f"{rest}{k}" for rest in ("systole", "diastole") for k in range(heart_features.PARTS))]
    columns = [[k for k, name in enumerate(names) if name.split("/")[0] == part] for part in parts]
    return np.array(columns, np.intp)


def golden() -> dict[str, Sound]:
    """The made-up sounds of the golden cases."""
    return {name: sound(sounds.heart(rate_hz=2000, **told)[0], 2000) for name, told in GOLDEN.items()}  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the bundle."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        prog="python -m tools.train.heart_sound", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds heart-sound/ and lung-sound/")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--work", type=Path, default=Path(".work/heart-sound"), help="kept between runs")
    chosen = parser.parse_args(arguments)
    run = sound_model.start(CONFIGURATION, chosen.data, chosen.out, chosen.work, prepare_heart, shifted_columns())
    scores = sound_model.cross_fit(run)
    final = sound_model.final_fit(run)
    lungs = load(chosen.data / run.configuration["data"]["other"], ["patient"], "device", "recording")
    least = run.description.preprocess.parameters["least_s"]
    long_enough = [one for one in lungs if one.sound.samples.size > least * one.sound.rate_hz]
    other = sound_gate.Other(kind="lung sounds", recordings=[*long_enough, *joined(lungs)])
    width = run.sample.table.indices.shape[1]
    shape = sound_gate.layout(HEART_INDICES, width, shifted_columns())
    outcome = sound_model.gate(run, other, shape, simulated)
    run.log(sound_report.write(run, scores, final, outcome, golden()))


if __name__ == "__main__":
    main()
