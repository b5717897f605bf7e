"""Listening along: what is told to whoever holds the stethoscope, and when it is enough."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from appliance.capture.stethoscope_judge import Heard
from appliance.console.listen_words import GUIDANCE
from appliance.reading.listening import BEATS, breath_period, find_knocks, listener
from appliance.records import Modality
from tools.simulate import sounds

Floats = npt.NDArray[np.float32]
HEART, LUNG = Modality.HEART_SOUND, Modality.LUNG_SOUND


def heard(wave: Floats, modality: Modality = HEART, rate: int = 4000, step_s: float = 0.4) -> list[Heard]:
    """What is said after each piece, until it is enough."""
    judge, said = listener(modality, rate), []
    step = round(step_s * rate)
    for first in range(0, wave.size, step):
        said.append(judge.feed(np.asarray(wave[first : first + step], np.float32)))
        if said[-1].enough:
            break
    return said


def noise(seconds: float, level: float, rate: int = 4000) -> Floats:
    return np.asarray(level * np.random.default_rng(1).standard_normal(round(seconds * rate)), np.float32)


def knocking(wave: Floats, rate: int = 4000) -> Floats:
    """A knock each second, as of a cable that hits the bed."""
    out, random = wave.copy(), np.random.default_rng(2)
    for at in range(rate, wave.size - rate // 5, rate):
        out[at : at + rate // 10] += 0.8 * random.standard_normal(rate // 10) * np.exp(-np.arange(rate // 10) / 60)
    return np.asarray(out, np.float32)


@pytest.mark.parametrize("rate", [4000, 44100, 48000])
def test_a_clean_heart_is_enough_after_some_beats_at_any_rate_of_the_device(rate: int) -> None:
    said = heard(sounds.heart(25.0, rate, beats_per_minute=72.0)[0], rate=rate)
    assert said[-1].enough
    assert said[-1].guidance == "enough"
    assert said[-1].clean >= BEATS
    assert 8.0 <= 0.4 * len(said) <= 14.0
    assert said[-1].rate_per_minute == pytest.approx(72, abs=4)


@pytest.mark.parametrize("murmur", ["systolic", "diastolic"])
def test_a_murmur_is_no_noise(murmur: sounds.Murmur) -> None:
    assert heard(sounds.heart(25.0, 4000, murmur=murmur)[0])[-1].enough


@pytest.mark.parametrize("crackles", [False, True])
def test_breathing_is_enough_after_some_breaths(*, crackles: bool) -> None:
    said = heard(sounds.lung(40.0, 4000, crackles=crackles)[0], LUNG)
    assert said[-1].enough
    assert said[-1].clean >= 3
    assert 12.0 <= 0.4 * len(said) <= 25.0


@pytest.mark.parametrize(
    ("wave", "guidance"),
    [
        (np.zeros(60000, np.float32), "no-signal"),
        (noise(15.0, 1e-4), "too-quiet"),
        (np.clip(6.0 * sounds.heart(15.0, 4000)[0], -1.0, 1.0), "too-loud"),
        (knocking(sounds.heart(15.0, 4000)[0]), "contact-noise"),
        (noise(15.0, 0.05), "searching"),
        (0.3 * np.sin(2 * np.pi * 50.0 * np.arange(60000) / 4000).astype(np.float32) + noise(15.0, 0.003), "hum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_and_never_counts_as_enough(wave: Floats, guidance: str) -> None:
    said = heard(wave)
    assert not any(one.enough for one in said)
    assert said[-1].guidance == guidance
    assert GUIDANCE[guidance].tone != "good"


def test_what_was_counted_as_clean_is_never_taken_back() -> None:
    wave = np.concatenate([sounds.heart(7.0, 4000)[0], noise(6.0, 0.3)])
    counts = [one.clean for one in heard(wave)]
    assert all(before <= after for before, after in pairwise(counts))
    assert counts[-1] > 3


def test_it_says_the_same_however_the_sound_comes_in_pieces() -> None:
    wave = sounds.heart(6.0, 4000)[0]
    assert heard(wave, step_s=0.5)[-1].clean == pytest.approx(heard(wave, step_s=0.1)[-1].clean, abs=2)


def test_knocks_are_found_where_they_are() -> None:
    wave = knocking(sounds.heart(6.0, 2000)[0], 2000)
    found = find_knocks(wave / np.std(wave), 2000, 10.0)
    assert {round(float(at)) for at in found} == {1, 2, 3, 4, 5}
    clean = sounds.heart(6.0, 2000)[0]
    assert not find_knocks(clean / np.std(clean), 2000, 10.0).size


def test_breaths_are_counted_only_where_there_are_some() -> None:
    wave, truth = sounds.lung(15.0, 4000)
    steps = np.diff(truth.inspirations)
    assert breath_period(wave / np.std(wave), 4000) == pytest.approx(float(np.median(steps)), rel=0.2)
    assert breath_period(noise(15.0, 1.0), 4000) is None
