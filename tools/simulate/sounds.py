"""Made-up heart and lung sounds: for demonstrations, golden inputs and tests, so that no patient's sound is needed.

What this module keeps true: a sound is a function of its description and seed; amplitudes stay within ±1; the returned
``Truth`` says what was put in (beats, breaths, crackles), so that a test can ask for it back. These sounds are plausible
to a listener and to an input gate, they are no evidence that a model finds disease.

Run ``python -m tools.simulate.sounds heart OUT.wav --seconds 15 --rate 4000 [--murmur systolic] [--seed N]`` or
``… lung OUT.wav [--crackles] [--wheeze]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Murmur = Literal["none", "systolic", "diastolic"]


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What was put in: seconds of first sounds, second sounds, inspirations and crackles; beats a minute."""

    first: tuple[float, ...] = ()
    second: tuple[float, ...] = ()
    inspirations: tuple[float, ...] = ()
    crackles: tuple[float, ...] = ()
    rate_per_minute: float = 0.0


def shaped_noise(
    random: np.random.Generator, count: int, rate_hz: int, low: float, high: float, slope: float
) -> Doubles:
    """Noise of unit RMS between ``low`` and ``high`` Hz whose amplitude falls as frequency to the power −``slope``."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    frequency = np.fft.rfftfreq(count, 1.0 / rate_hz)
    gain = np.maximum(frequency, 1.0) ** -slope
    gain /= (1.0 + (low / np.maximum(frequency, 1e-3)) ** 4) * (1.0 + (frequency / high) ** 8)
    noise = np.fft.irfft(spectrum * gain, count)
    return np.asarray(noise / (np.std(noise) + 1e-12))


def _thump(
    random: np.random.Generator, rate_hz: int, pitches: Sequence[float], decay_s: float, length_s: float
) -> Doubles:
    """One heart sound: a few damped oscillations that set in within 15 ms of each other (valves do not close at once)."""
    time = np.arange(int(length_s * rate_hz)) / rate_hz
    sound = np.zeros_like(time)
    for pitch in pitches:
        start = random.uniform(0.0, 0.015)
        since = np.maximum(time - start, 0.0)
        rise = 1.0 - np.exp(-since / 0.006)
        tone = np.sin(2 * np.pi * pitch * random.uniform(0.92, 1.08) * since + random.uniform(0.0, 0.6))
        sound += random.uniform(0.6, 1.0) * rise * np.exp(-since / (decay_s * random.uniform(0.85, 1.15))) * tone
    return np.asarray(sound / (np.max(np.abs(sound)) + 1e-9))


def _add(samples: Doubles, sound: Doubles, at: int) -> None:
    end = min(samples.size, at + sound.size)
    if 0 <= at < end:
        samples[at:end] += sound[: end - at]


def heart(
    seconds: float = 15.0,
    rate_hz: int = 4000,
    *,
    beats_per_minute: float = 72.0,
    murmur: Murmur = "none",
    murmur_level: float = 0.12,
    noise_db: float = -30.0,
    seed: int = 0,
) -> tuple[Floats, Truth]:
    """A heart sound, float32 ``[seconds × rate_hz]``, and what is in it.

    The interval between the sounds follows 0.2 s + 0.14 of the beat; beats quicken with inspiration (15 a minute, ±4 %) and
    vary at random by 1.5 %. A systolic murmur is diamond-shaped, a diastolic one decrescendo; both are noise of 120–450 Hz.
    ``noise_db`` is the level of the background below the peak of the sounds.
    """
    random = np.random.default_rng(seed)
    count = int(seconds * rate_hz)
    samples = np.zeros(count)
    hiss = shaped_noise(random, count, rate_hz, 120.0, 450.0, 0.5)
    low, high = random.uniform(0.85, 1.15), random.uniform(0.85, 1.15)
    loudness = random.uniform(0.55, 0.95)
    now, firsts, seconds_ = random.uniform(0.1, 0.5), [], []
    while now < seconds:
        breath = np.sin(2 * np.pi * now / 4.0)
        beat = 60.0 / beats_per_minute * (1.0 - 0.04 * breath) * (1.0 + 0.015 * random.standard_normal())
        systole = 0.2 + 0.14 * beat + 0.004 * random.standard_normal()
        swell = 1.0 + 0.18 * breath
        _add(
            samples,
            swell * _thump(random, rate_hz, (42.0 * low, 61.0 * low, 95.0 * low), 0.032, 0.16),
            int(now * rate_hz),
        )
        _add(
            samples,
            swell * loudness * _thump(random, rate_hz, (58.0 * high, 88.0 * high, 135.0 * high), 0.021, 0.12),
            int((now + systole) * rate_hz),
        )
        firsts.append(float(now))
        seconds_.append(float(now + systole))
        span = (now + 0.06, now + systole - 0.01) if murmur == "systolic" else (now + systole + 0.03, now + 0.85 * beat)
        if murmur != "none":
            begin, end = int(span[0] * rate_hz), min(count, int(span[1] * rate_hz))
            part = np.linspace(0.0, 1.0, max(end - begin, 0))
            shape = np.sin(np.pi * part) if murmur == "systolic" else np.exp(-2.5 * part)
            samples[begin:end] += murmur_level * shape * hiss[begin:end]
        now += beat
    rumble = shaped_noise(random, count, rate_hz, 15.0, 900.0, 1.0)
    samples += 10 ** (noise_db / 20) * 3.0 * rumble
    samples *= 0.7 / np.max(np.abs(samples))
    steps = np.diff(firsts)
    measured = 60.0 / float(np.mean(steps)) if steps.size else beats_per_minute
    return samples.astype(np.float32), Truth(
        first=tuple(firsts), second=tuple(one for one in seconds_ if one < seconds), rate_per_minute=measured
    )


def lung(
    seconds: float = 15.0,
    rate_hz: int = 4000,
    *,
    breaths_per_minute: float = 16.0,
    crackles: bool = False,
    wheeze: bool = False,
    heart_level: float = 0.15,
    seed: int = 0,
) -> tuple[Floats, Truth]:
    """A lung sound, float32 ``[seconds × rate_hz]``, and what is in it.

    Breath noise of 80–1,000 Hz swells over inspiration and less over expiration, over a faint heart. Crackles are damped
    oscillations of 5–12 ms in late inspiration; a wheeze is one tone of 200–600 Hz with two harmonics over expiration.
    """
    random = np.random.default_rng(seed)
    count = int(seconds * rate_hz)
    time = np.arange(count) / rate_hz
    top = min(1000.0, 0.45 * rate_hz)
    samples = 0.03 * shaped_noise(random, count, rate_hz, 60.0, top, 0.8)
    breathing = shaped_noise(random, count, rate_hz, 90.0, top, 0.9)
    pitch = random.uniform(200.0, 600.0)
    now, inspirations, clicks = random.uniform(0.0, 0.5), [], []
    while now < seconds:
        length = 60.0 / breaths_per_minute * random.uniform(0.9, 1.1)
        inhale, exhale = 0.38 * length, 0.42 * length
        inspirations.append(float(now))
        into = np.clip((time - now) / inhale, 0.0, 1.0)
        out = np.clip((time - now - inhale) / exhale, 0.0, 1.0)
        samples += breathing * (
            0.22 * np.sin(np.pi * into) ** 1.5 + 0.13 * np.sin(np.pi * out) ** 1.2 * (1 - 0.5 * out)
        )
        if wheeze:
            bend = pitch * (1.0 + 0.05 * np.sin(2 * np.pi * 0.7 * time))
            phase = 2 * np.pi * np.cumsum(bend) / rate_hz
            tone = np.sin(phase) + 0.35 * np.sin(2 * phase) + 0.12 * np.sin(3 * phase)
            samples += 0.3 * np.sin(np.pi * out) ** 0.7 * tone
        if crackles:
            for at in np.sort(now + inhale * random.uniform(0.45, 0.98, random.integers(5, 11))):
                width = random.uniform(0.005, 0.012)
                since = np.arange(int(4 * width * rate_hz)) / rate_hz
                click = np.exp(-since / (0.45 * width)) * np.sin(2 * np.pi * since / width * random.uniform(1.4, 2.2))
                _add(samples, random.uniform(0.6, 1.4) * click, int(at * rate_hz))
                clicks.append(float(at))
        now += length
    beats, truth = heart(seconds, rate_hz, seed=seed + 1, noise_db=-60.0)
    samples += heart_level * beats
    samples *= 0.7 / np.max(np.abs(samples))
    return samples.astype(np.float32), Truth(
        first=truth.first,
        second=truth.second,
        inspirations=tuple(inspirations),
        crackles=tuple(one for one in clicks if one < seconds),
        rate_per_minute=truth.rate_per_minute,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one sound as a 16-bit WAV file and print what is in it as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.simulate.sounds", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("kind", choices=["heart", "lung"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rate", type=int, default=4000, help="samples a second")
    parser.add_argument("--bpm", type=float, default=72.0, help="heart beats a minute")
    parser.add_argument("--murmur", choices=["none", "systolic", "diastolic"], default="none")
    parser.add_argument("--crackles", action="store_true")
    parser.add_argument("--wheeze", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if chosen.kind == "heart":
        samples, truth = heart(
            chosen.seconds, chosen.rate, beats_per_minute=chosen.bpm, murmur=chosen.murmur, seed=chosen.seed
        )
    else:
        samples, truth = lung(
            chosen.seconds, chosen.rate, crackles=chosen.crackles, wheeze=chosen.wheeze, seed=chosen.seed
        )
    import soundfile

    soundfile.write(chosen.out, samples, chosen.rate, subtype="PCM_16")
    print(msgspec.json.encode(truth).decode())


if __name__ == "__main__":
    main()
