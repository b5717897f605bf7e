"""Trains, measures and writes the lung-sound bundle.

What this module keeps true: one command makes the bundle from the data and ``lung_sound.toml`` alone; a run that was
stopped goes on from what ``--work`` keeps.

Run ``python -m tools.train.lung_sound --data DIR --out models/lung-sound [--work DIR]``; ``DIR`` holds
``lung-sound/icbhi`` and ``heart-sound/physionet2016`` with their ``labels.csv``. About 15 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from appliance.reading import sound_quality
from appliance.reading.auscultation import prepare_lung
from appliance.reading.prepared import Sound
from tools.simulate import sounds
from tools.train import sound_gate, sound_model, sound_report
from tools.train.sound_data import joined, load, sound

CONFIGURATION = Path(__file__).with_suffix(".toml")
GOLDEN = {
    "clear": {"seconds": 5.0, "seed": 21},
    "crackles": {"seconds": 5.0, "seed": 22, "crackles": True},
    "wheeze": {"seconds": 5.0, "seed": 23, "wheeze": True},
}


def simulated(seed: int) -> Sound:
    """A made-up lung of varied pace, with and without crackles and wheeze."""
    random = np.random.default_rng([seed, 5])
    made, _ = sounds.lung(
        float(random.uniform(3.0, 16.0)),
        4000,
        breaths_per_minute=float(random.uniform(12.0, 35.0)),
        crackles=bool(seed % 3 == 1),
        wheeze=bool(seed % 4 == 1),
        heart_level=float(random.uniform(0.0, 0.4)),
        seed=seed,
    )
    return sound(made, 4000)


def golden() -> dict[str, Sound]:
    """The made-up sounds of the golden cases."""
    return {name: sound(sounds.lung(rate_hz=4000, **told)[0], 4000) for name, told in GOLDEN.items()}  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the bundle."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        prog="python -m tools.train.lung_sound", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lung-sound/")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--work", type=Path, default=Path(".work/lung-sound"), help="kept between runs")
    chosen = parser.parse_args(arguments)
    run = sound_model.start(CONFIGURATION, chosen.data, chosen.out, chosen.work, prepare_lung)
    scores = sound_model.cross_fit(run)
    final = sound_model.final_fit(run)
    hearts = load(chosen.data / run.configuration["data"]["other"], ["block"], "subset")
    other = sound_gate.Other(kind="heart sounds", recordings=hearts)
    shape = sound_gate.layout(sound_quality.INDICES, run.sample.table.indices.shape[1])
    outcome = sound_model.gate(run, other, shape, simulated, joined(run.recordings))
    run.log(sound_report.write(run, scores, final, outcome, golden()))


if __name__ == "__main__":
    main()
