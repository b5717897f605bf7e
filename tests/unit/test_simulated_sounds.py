"""Made-up sounds: what was put in can be found, the same seed gives the same sound, the command writes what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from tools.simulate import sounds


@pytest.mark.parametrize("make", [sounds.heart, sounds.lung])
def test_the_same_seed_gives_the_same_sound_and_another_one_does_not(make):
    first, second, other = make(3.0, seed=1)[0], make(3.0, seed=1)[0], make(3.0, seed=2)[0]
    assert first.dtype == np.float32
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert np.max(np.abs(first)) <= 1.0


def test_the_sounds_are_where_the_truth_says():
    samples, truth = sounds.heart(10.0, 4000, noise_db=-50.0, seed=3)

    def energy(at):
        return float(np.mean(samples[int(at * 4000) : int((at + 0.08) * 4000)] ** 2))

    rest = [energy(one + 0.45) for one in truth.first[:-1]]
    for heard in (truth.first[:-1], truth.second[:-1]):
        assert np.median([energy(one) for one in heard]) > 20 * np.median(rest)


def test_a_systolic_murmur_fills_systole_and_not_diastole():
    clean, truth = sounds.heart(10.0, 4000, seed=3)
    murmur, _ = sounds.heart(10.0, 4000, seed=3, murmur="systolic", murmur_level=0.2)

    def added(offset):
        at = [int((one + offset) * 4000) for one in truth.first[:-1]]
        return np.mean([np.var(murmur[one : one + 400]) / np.var(clean[one : one + 400]) for one in at])

    assert added(0.14) > 3 * added(0.55)


def test_crackles_are_leaps_and_a_wheeze_is_a_line():
    from appliance.reading import lung_features

    names = lung_features.FEATURES
    plain, crackles, wheeze = (
        np.mean(lung_features.features(sounds.lung(10.24, seed=5, **told)[0].reshape(4, -1)), axis=0)
        for told in ({}, {"crackles": True}, {"wheeze": True})
    )
    click = names.index("clicks>2.1/300Hz")
    tone = names.index("tone-100ms/share3")
    assert crackles[click] > plain[click]
    assert wheeze[tone] > plain[tone] + 0.1


def test_the_command_writes_a_wav_and_says_what_is_in_it(tmp_path, capsys):
    out = tmp_path / "heart.wav"
    sounds.main(["heart", str(out), "--seconds", "5", "--rate", "2000", "--murmur", "systolic", "--seed", "4"])
    samples, rate = soundfile.read(out)
    assert (rate, len(samples)) == (2000, 10000)
    truth = json.loads(capsys.readouterr().out)
    assert truth["rate_per_minute"] == pytest.approx(72, abs=4)
    sounds.main(["lung", str(tmp_path / "lung.wav"), "--seconds", "4", "--crackles", "--wheeze"])
    assert json.loads(capsys.readouterr().out)["crackles"]
