"""What a microphone hears that is no heart and no lung, made up: the hard set of the sound models' input gates.

What this module keeps true: every sound is a function of the seed; each kind is varied in pitch, level, pace and colour, so
that a gate learns the kind and not one example. ``KINDS`` names them; ``spoil`` makes those that start from a good sound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from tools.simulate.sounds import shaped_noise

Doubles = npt.NDArray[np.float64]
Random = np.random.Generator


def noise(random: Random, count: int, rate_hz: int) -> Doubles:
    """Steady noise, white to brown, of some band."""
    low = random.uniform(5.0, 100.0)
    return shaped_noise(random, count, rate_hz, low, random.uniform(0.3, 1.0) * rate_hz / 2, random.uniform(0.0, 1.6))


def swelling_noise(random: Random, count: int, rate_hz: int) -> Doubles:
    """Noise that swells and fades 0.5 to 4 times a second: traffic, a fan, a sleeve."""
    time = np.arange(count) / rate_hz
    pace = random.uniform(0.5, 4.0)
    phase = 2 * np.pi * (pace * time + 0.2 * np.cumsum(random.standard_normal(count)) / np.sqrt(count))
    shape = 1.0 + random.uniform(0.5, 1.0) * np.sin(phase)
    return np.asarray(noise(random, count, rate_hz) * shape ** random.uniform(1.0, 3.0))


def speech(random: Random, count: int, rate_hz: int) -> Doubles:
    """Speech-like: voiced syllables with moving formants, fricatives and pauses, as heard through a chest piece or not."""
    samples = np.zeros(count)
    pitch = random.uniform(85.0, 260.0)
    now = random.uniform(0.0, 0.2)
    while now * rate_hz < count:
        length = random.uniform(0.08, 0.32)
        begin, size = int(now * rate_hz), int(length * rate_hz)
        time = np.arange(size) / rate_hz
        glide = pitch * (1.0 + random.uniform(-0.15, 0.15) + random.uniform(-0.3, 0.3) * time)
        phase = 2 * np.pi * np.cumsum(glide) / rate_hz
        first, second = random.uniform(280.0, 850.0), random.uniform(850.0, 2300.0)
        part = np.zeros(size)
        for harmonic in range(1, int(0.48 * rate_hz / (1.2 * pitch)) + 1):
            tone = harmonic * pitch
            gain = 1 / (1 + ((tone - first) / 90.0) ** 2) + 0.5 / (1 + ((tone - second) / 130.0) ** 2) + 0.05 / harmonic
            part += gain * np.sin(harmonic * phase + random.uniform(0, 6.3))
        part *= np.sin(np.pi * np.linspace(0, 1, size)) ** 0.6 * random.uniform(0.4, 1.0)
        end = min(count, begin + size)
        samples[begin:end] += part[: end - begin]
        if random.random() < 0.4:
            burst = shaped_noise(random, max(size // 2, 8), rate_hz, 600.0, 0.48 * rate_hz, 0.0) * 0.15
            samples[begin : min(count, begin + burst.size)] += burst[: max(0, min(count, begin + burst.size) - begin)]
        now += length + (random.uniform(0.2, 0.8) if random.random() < 0.2 else random.uniform(0.0, 0.07))
    samples /= np.std(samples) + 1e-9
    return samples + 10 ** random.uniform(-2.0, -1.0) * noise(random, count, rate_hz)


def friction(random: Random, count: int, rate_hz: int) -> Doubles:
    """A chest piece that is moved over skin or cloth: strokes of rough noise of uneven length."""
    samples = 0.05 * noise(random, count, rate_hz)
    now = random.uniform(0.0, 0.4)
    while now * rate_hz < count:
        length = random.uniform(0.08, 0.9)
        begin, size = int(now * rate_hz), max(16, int(length * rate_hz))
        rough = shaped_noise(random, size, rate_hz, random.uniform(20, 200), rate_hz / 2, random.uniform(0.2, 1.2))
        grain = np.abs(shaped_noise(random, size, rate_hz, 5.0, random.uniform(20.0, 80.0), 0.5)) ** random.uniform(
            0.5, 2
        )
        part = (
            rough * grain * np.sin(np.pi * np.linspace(0, 1, size)) ** random.uniform(0.3, 1.0) * random.uniform(0.2, 1)
        )
        end = min(count, begin + size)
        samples[begin:end] += part[: end - begin]
        now += length + random.uniform(0.02, 0.7)
    return samples


def hum(random: Random, count: int, rate_hz: int) -> Doubles:
    """Mains hum with harmonics over noise."""
    time = np.arange(count) / rate_hz
    base = float(random.choice([50.0, 60.0])) * random.uniform(0.995, 1.005)
    samples = np.zeros(count)
    for harmonic in range(1, 13):
        if harmonic * base < 0.47 * rate_hz:
            samples += (
                random.uniform(0, 1)
                / harmonic**0.7
                * np.sin(2 * np.pi * harmonic * base * time + random.uniform(0, 6.3))
            )
    samples /= np.std(samples) + 1e-9
    return samples + 10 ** random.uniform(-2.0, -0.3) * noise(random, count, rate_hz)


def tapping(random: Random, count: int, rate_hz: int) -> Doubles:
    """Fingers on the chest piece: clicks that ring, at an uneven or an even pace."""
    samples = 10 ** random.uniform(-2.5, -1.3) * noise(random, count, rate_hz)
    pace, uneven = random.uniform(0.8, 6.0), random.choice([0.05, 0.3, 0.6])
    now = random.uniform(0.0, 0.5)
    while now * rate_hz < count:
        since = np.arange(int(random.uniform(0.02, 0.1) * rate_hz)) / rate_hz
        ring = np.zeros_like(since)
        for _ in range(3):
            pitch = random.uniform(40.0, 0.4 * rate_hz)
            ring += np.sin(2 * np.pi * pitch * since + random.uniform(0, 6.3)) * random.uniform(0.2, 1.0)
        ring += 0.7 * random.standard_normal(since.size)
        ring *= np.exp(-since / random.uniform(0.003, 0.02)) * random.uniform(0.3, 1.0)
        begin = int(now * rate_hz)
        end = min(count, begin + ring.size)
        samples[begin:end] += ring[: end - begin]
        now += max(0.05, (1.0 + uneven * random.standard_normal()) / pace)
    return samples


def tones(random: Random, count: int, rate_hz: int) -> Doubles:
    """Beeps of a monitor, a ring tone, music: tones that come and go."""
    samples = 0.02 * noise(random, count, rate_hz)
    pace, now = random.uniform(0.7, 5.0), 0.0
    scale = random.uniform(110.0, 0.3 * rate_hz) * 2.0 ** (random.integers(0, 12, 6) / 12.0)
    many = random.random() < 0.6
    while now * rate_hz < count:
        since = np.arange(int(random.uniform(0.4, 1.0) / pace * rate_hz)) / rate_hz
        pitch = min(float(random.choice(scale)) if many else float(scale[0]), 0.45 * rate_hz)
        part = np.sin(2 * np.pi * pitch * since) + 0.3 * np.sin(4 * np.pi * pitch * since)
        part *= np.exp(-since * random.uniform(0.0, 6.0)) * np.minimum(1.0, since / 0.01)
        begin = int(now * rate_hz)
        end = min(count, begin + part.size)
        samples[begin:end] += part[: end - begin]
        now += 1.0 / pace
    return samples


KINDS: Mapping[str, Callable[[Random, int, int], Doubles]] = {
    "noise": noise,
    "swelling noise": swelling_noise,
    "speech-like": speech,
    "friction": friction,
    "hum": hum,
    "tapping": tapping,
    "tones": tones,
}
SPOILT = ("clipped", "buried in noise", "drop-outs", "truncated", "silence")


def made(kind: str, seed: int, seconds: float, rate_hz: int) -> npt.NDArray[np.float32]:
    """One sound of a kind, peak 0.1 to 0.95."""
    random = np.random.default_rng([seed, *kind.encode()])
    samples = KINDS[kind](random, int(seconds * rate_hz), rate_hz)
    return np.asarray(samples * random.uniform(0.1, 0.95) / (np.max(np.abs(samples)) + 1e-9), np.float32)


def spoil(kind: str, good: npt.NDArray[np.float32], seed: int, rate_hz: int) -> npt.NDArray[np.float32]:
    """A good sound made unreadable in one of the ways of ``SPOILT``."""
    random = np.random.default_rng([seed, *kind.encode()])
    wave = good.astype(np.float64) / (np.std(good) + 1e-9)
    if kind == "clipped":
        limit = np.quantile(np.abs(wave), random.uniform(0.5, 0.93))
        wave = np.clip(wave, -limit, limit) / limit * random.choice([1.0, 0.5])
    elif kind == "buried in noise":
        added = KINDS[str(random.choice(["noise", "swelling noise", "friction", "speech-like"]))](
            random, wave.size, rate_hz
        )
        wave = wave + added / (np.std(added) + 1e-9) * 10 ** (random.uniform(10.0, 20.0) / 20)
        wave *= 0.9 / np.max(np.abs(wave))
    elif kind == "drop-outs":
        wave *= 0.9 / np.max(np.abs(wave))
        for begin in range(0, wave.size, rate_hz // 2):
            wave[begin : begin + int(random.uniform(0.15, 0.4) * rate_hz)] = 0.0
    elif kind == "truncated":
        wave = 0.3 * wave[: max(1, int(random.uniform(0.02, 0.45) * rate_hz))]
    elif kind == "silence":
        wave = np.round(random.uniform(0, 1.0) * random.standard_normal(wave.size)) / 32768.0
    else:
        raise ValueError(f"{kind} is not a way to spoil a sound; known are {', '.join(SPOILT)}")
    return np.asarray(wave, np.float32)


def shortened(
    good: npt.NDArray[np.float32], seed: int, rate_hz: int, seconds: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """A part of a good sound, lasting between ``seconds``; empty when it is not longer than that itself."""
    random = np.random.default_rng([seed, 11])
    length = int(random.uniform(*seconds) * rate_hz)
    if good.size <= 1.2 * length:
        return good[:0]
    begin = int(random.integers(0, good.size - length))
    return good[begin : begin + length]


def still_good(good: npt.NDArray[np.float32], seed: int, rate_hz: int) -> npt.NDArray[np.float32]:
    """A good sound as a worse room or another stethoscope gives it: noise 10 to 30 dB below, other bandwidth, other gain."""
    random = np.random.default_rng([seed, 7])
    wave = good.astype(np.float64) / (np.std(good) + 1e-9)
    added = KINDS[str(random.choice(["noise", "noise", "swelling noise", "speech-like", "hum"]))](
        random, wave.size, rate_hz
    )
    wave = wave + added / (np.std(added) + 1e-9) * 10 ** (-random.uniform(10.0, 30.0) / 20)
    if random.random() < 0.5:
        spectrum = np.fft.rfft(wave)
        frequency = np.fft.rfftfreq(wave.size, 1.0 / rate_hz)
        top = random.uniform(0.25, 0.9) * rate_hz / 2
        spectrum *= (1.0 / (1.0 + (frequency / top) ** 4)) * (frequency / (frequency + random.uniform(5.0, 40.0)))
        wave = np.fft.irfft(spectrum, wave.size)
    return np.asarray(wave * random.uniform(0.05, 0.9) / np.max(np.abs(wave)), np.float32)
