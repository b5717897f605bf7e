"""Trains, measures and writes the lung-sound bundle.

What this module keeps true: one command makes the bundle from the data and ``lung_sound.toml`` alone; a run that was
stopped goes on from what ``--work`` keeps.

Run ``python -m tools.train.lung_sound --data DIR --out models/lung-sound [--work DIR]``; ``DIR`` holds
``lung-sound/icbhi`` with its ``labels.csv``. About 15 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from appliance.reading.auscultation import prepare_lung
from appliance.reading.prepared import Sound
from tools.simulate import sounds
from tools.train import sound_model, sound_report
from tools.train.sound_data import Recording, sound

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


def joined(recordings: Sequence[Recording]) -> list[Recording]:
    """Each session's cycles one after the other: what a whole recording at the bedside sounds like to the gate."""
    sessions: dict[str, list[Recording]] = {}
    for one in recordings:
        sessions.setdefault(one.session, []).append(one)
    made = []
    for parts in sessions.values():
        if len(parts) > 1:
            samples = np.concatenate([part.sound.samples for part in parts])
            made.append(msgspec.structs.replace(parts[0], sound=sound(samples, parts[0].sound.rate_hz)))
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the bundle."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        prog="python -m tools.train.lung_sound", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lung-sound/")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--work", type=Path, default=Path("work/lung-sound"), help="kept between runs")
    chosen = parser.parse_args(arguments)
    run = sound_model.start(CONFIGURATION, chosen.data, chosen.out, chosen.work, prepare_lung)
    scores = sound_model.cross_fit(run)
    final = sound_model.final_fit(run)
    outcome = sound_model.gate(run, None, simulated, joined(run.recordings))
    run.log(sound_report.write(run, scores, final, outcome, golden()))


if __name__ == "__main__":
    main()
