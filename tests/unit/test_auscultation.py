"""What reaches the sound models: measured alike at any gain and rate, refused rather than guessed when it is no sound."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import soxr

from appliance.inference.bundle import load
from appliance.reading import auscultation, heart_features, lung_features, sound_quality
from appliance.reading.prepared import Header, Sound
from tools.simulate import sounds

MODELS = Path(__file__).parents[2] / "models"
PREPARE = {"heart-sound": auscultation.prepare_heart, "lung-sound": auscultation.prepare_lung}
BUNDLES = [name for name in PREPARE if (MODELS / name / "bundle.toml").exists()]


def sound(samples, rate_hz=4000.0):
    return Sound(header=Header(media_type="audio/wav"), samples=np.asarray(samples, np.float32), rate_hz=rate_hz)


def prepare(name, samples, rate_hz=4000.0, **parameters):
    description = load(MODELS / name).description
    told = msgspec.structs.replace(description.preprocess, parameters=description.preprocess.parameters | parameters)
    return PREPARE[name](sound(samples, rate_hz), msgspec.structs.replace(description, preprocess=told))


def spread(rows):
    return np.abs(np.diff(np.stack(rows), axis=0))


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("gain", [0.01, 0.3])
def test_what_the_models_see_does_not_depend_on_the_gain(name, gain):
    make = sounds.heart if name == "heart-sound" else sounds.lung
    samples, _ = make(8.0, seed=4)
    loud, quiet = prepare(name, samples), prepare(name, samples * gain)
    for graph, tensors in loud.inputs.items():
        for tensor, value in tensors.items():
            np.testing.assert_allclose(value, quiet.inputs[graph][tensor], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("rate_hz", [8000, 44100])
def test_a_heart_recorded_at_another_rate_gives_nearly_the_same_features(rate_hz):
    samples, _ = sounds.heart(10.0, seed=2, noise_db=-26.0)
    other = soxr.resample(samples, 4000, rate_hz)
    first, second = (
        prepare("heart-sound", *one).inputs["trees"]["features"][0] for one in ((samples,), (other, float(rate_hz)))
    )
    difference = np.abs(first - second)
    assert np.median(difference) < 0.02
    assert np.mean(difference > 0.5) < 0.03


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize(
    ("samples", "code"),
    [
        (np.zeros(0), "too-short"),
        (np.ones(1), "too-short"),
        (np.zeros(40000), "silent"),
        (np.full(40000, 0.5), "silent"),
        (np.full(40000, np.nan), "not-numbers"),
        (np.concatenate([np.ones(20000), [np.inf], np.ones(20000)]), "not-numbers"),
        (np.full(40000, 3e38), "not-numbers"),
        (1e-5 * np.sin(np.arange(40000)), "silent"),
    ],
    ids=["empty", "one-sample", "zeros", "constant", "nan", "infinite", "huge", "below-the-noise-of-any-microphone"],
)
def test_what_is_no_sound_is_refused_with_words_from_the_bundle(name, samples, code):
    prepared = prepare(name, samples)
    assert prepared.refusal is not None
    assert prepared.refusal.code == code
    assert prepared.refusal.reason == load(MODELS / name).description.refusals[code].reason
    assert not prepared.inputs


def test_a_wrong_sample_rate_is_refused_not_divided_by():
    assert prepare("heart-sound", np.ones(4000), 0.0).refusal is not None


@pytest.mark.parametrize("beats_per_minute", [48, 60, 75, 90, 110, 125])
@pytest.mark.parametrize("murmur", ["none", "systolic", "diastolic"])
def test_a_stated_heart_rate_is_within_five_beats_of_the_true_one(beats_per_minute, murmur):
    samples, truth = sounds.heart(14.0, beats_per_minute=beats_per_minute, murmur=murmur, seed=beats_per_minute)
    stated = [one for one in prepare("heart-sound", samples).measures if one.id == "heart-rate"]
    assert all(abs(one.value - truth.rate_per_minute) <= 5 and one.unit == "/min" for one in stated)
    assert stated or murmur != "none"


@pytest.mark.parametrize("seed", range(6))
def test_no_heart_rate_is_stated_of_noise(seed):
    noise = np.random.default_rng(seed).standard_normal(48000) * 0.1
    assert [one.id for one in prepare("heart-sound", noise).measures] == ["signal-quality"]


def test_signal_quality_falls_with_noise_and_with_clipping():
    samples, _ = sounds.heart(10.0, seed=5)
    noise = np.random.default_rng(5).standard_normal(samples.size)

    def quality(wave):
        return prepare("heart-sound", wave).measures[0].value

    levels = [quality(samples + level * noise) for level in (0.0, 0.1, 1.0)]
    assert levels[0] > levels[1] > levels[2]
    assert quality(np.clip(samples * 20, -1, 1)) < levels[0]


def test_clipping_is_counted_at_any_level_and_not_seen_in_a_clean_sine():
    sine = np.sin(np.linspace(0, 600, 20000)).astype(np.float32)
    assert sound_quality.clipped_share(sine) < 0.02
    assert sound_quality.clipped_share(0.1 * np.clip(3 * sine, -1, 1)) > 0.3


def test_drop_outs_are_counted():
    wave = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    wave[2000:4000] = 0.0
    assert sound_quality.dropped_share(wave, 4000) == pytest.approx(0.25, abs=0.02)


def test_every_feature_has_a_name_and_the_names_are_distinct():
    samples, _ = sounds.lung(4.0, seed=1)
    for names, count in (
        (heart_features.FEATURES, prepare("heart-sound", samples).inputs["trees"]["features"].shape[1]),
        (lung_features.FEATURES, lung_features.features(samples[None]).shape[1]),
        (
            auscultation.HEART_INDICES,
            prepare("heart-sound", samples, gate_features=0).inputs["gate"]["indices"].shape[1],
        ),
        (sound_quality.INDICES, sound_quality.indices(samples, 4000).size),
    ):
        assert len(set(names)) == len(names) == count


@pytest.mark.parametrize("modality", ["heart-sound", "lung-sound"])
def test_a_gate_sees_the_features_where_its_bundle_asks_for_them(modality):
    samples, _ = (sounds.heart if modality == "heart-sound" else sounds.lung)(6.0, seed=1)
    plain, more = (prepare(modality, samples, **told).inputs for told in ({"gate_features": 0}, {"gate_features": 1}))
    indices = plain["gate"]["indices"][0]
    assert np.array_equal(more["gate"]["indices"][0, : indices.size], indices)
    mean = more["trees"]["features"].mean(axis=0)
    assert np.array_equal(more["gate"]["indices"][0, indices.size :], mean)


def test_cepstra_follow_the_named_features_and_leave_those_as_they_are():
    samples, _ = sounds.lung(4.0, seed=1)
    plain, more = (lung_features.features(samples[None, :10240], number) for number in (0, 20))
    assert more.shape[1] == plain.shape[1] + 60
    assert np.array_equal(more[:, : plain.shape[1]], plain)
    louder = lung_features.features(samples[None, :10240] * np.float32(7), 20)
    np.testing.assert_allclose(louder, more, atol=1e-2)


def test_windows_say_when_they_start_and_a_long_recording_is_cut_at_its_limit():
    samples, _ = sounds.heart(40.0, seed=3)
    prepared = prepare("heart-sound", samples)
    assert prepared.frames[:3] == (0.0, 1.6, 3.2)
    assert len(prepared.frames) == len(prepared.inputs["network"]["samples"])
    assert prepared.frames[-1] + 3.2 <= 30.0
