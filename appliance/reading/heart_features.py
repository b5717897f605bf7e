"""Hand-made features of a heart sound: where the beats lie, and how loud each part of the beat is in each band.

What this module keeps true: every feature is finite, independent of the recording's gain, and computed by this code alone
in training and on the box. ``FEATURES`` names them in order; a bundle states how many it was trained with.

Method: an envelope of 30–200 Hz at 100 frames a second, each band whitened so that rumble below the heart does not hide
it; its autocorrelation proposes a few beat periods and intervals from first to second sound; dynamic programming places
the first sounds for each proposal where the envelope is high at both sounds and low in mid-systole and mid-diastole, and
the proposal that explains the envelope best is taken. Energies relative to the two sounds *in the same band* are what
survives another stethoscope.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.reading.spectral import FLOOR, Floats, bands, power

RATE_HZ = 2000
FRAME = 100
HOP = 20
FRAMES_PER_S = RATE_HZ / HOP
EDGES_HZ = (25.0, 45.0, 80.0, 120.0, 180.0, 260.0, 380.0, 560.0, 800.0)
ENVELOPE_HZ = (30.0, 60.0, 100.0, 150.0, 200.0)
SLOW_FRAMES = 151
"""Levels are taken relative to their mean over 1.5 s, so that breathing and handling do not pass for beats."""
PERIOD_FRAMES = (33, 160)
SYSTOLE_FRAMES = (18, 50)
USUAL_PERIOD = 80.0
PROPOSALS = 3
HALVED = 0.25
"""How much a strong echo at half the period speaks against it: then it may be two beats."""
UNUSUAL = 0.5
"""How much an unusual systole, squared in units of 100 ms, speaks against a proposal."""
PARTS = 4
"""Parts into which systole and diastole are cut."""
REFINE = 6
"""Frames by which a single sound may lie off the regular beat."""

Ints = npt.NDArray[np.intp]
Doubles = npt.NDArray[np.float64]


class Beats(msgspec.Struct, frozen=True, kw_only=True):
    """The beats found, in frames of 10 ms.

    ``first`` are the first sounds; ``period`` and ``systole`` the regular intervals. ``periodicity`` is the envelope's
    normalised autocorrelation at the period (0 to 1), ``systolic`` the same at the systole (−1 to 1).
    """

    first: Ints
    period: int
    systole: int
    periodicity: float
    systolic: float

    @property
    def rate_per_minute(self) -> float:
        """Heart rate from the median distance of the first sounds."""
        steps = np.diff(self.first)
        return 60.0 * FRAMES_PER_S / float(np.median(steps) if steps.size else self.period)


class Spectra(msgspec.Struct, frozen=True, kw_only=True):
    """Power of one recording: ``band`` ``[frames, 8]`` and the standardised log envelope ``envelope`` ``[frames]``."""

    band: Floats
    envelope: Floats


def spectra(samples: Floats) -> Spectra:
    """Power in eight bands and the envelope of ``samples`` (2 kHz, at least 2 s), 100 frames a second."""
    raw = power(samples, FRAME, HOP)
    low = raw @ bands(RATE_HZ, FRAME, ENVELOPE_HZ)
    level = np.log(low + FLOOR + 1e-3 * np.mean(low, axis=0))
    level = level - _moving_mean(level, SLOW_FRAMES)
    level = level / (np.std(level, axis=0) + 1e-3)
    envelope = _moving_mean(np.mean(level, axis=1, keepdims=True), 7)[:, 0]
    envelope = np.clip((envelope - np.mean(envelope)) / (np.std(envelope) + 1e-3), -2.5, 2.5)
    return Spectra(band=raw @ bands(RATE_HZ, FRAME, EDGES_HZ), envelope=np.asarray(envelope, np.float32))


def _moving_mean(values: Floats, width: int) -> Floats:
    """The mean over ``width`` frames around each frame of ``[frames, n]``, edges reflected."""
    half = min(width // 2, len(values) - 1)
    padded = np.pad(values, ((half, half), (0, 0)), mode="reflect").astype(np.float64)
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(padded, axis=0)])
    return np.asarray((total[2 * half + 1 :] - total[: -2 * half - 1]) / (2 * half + 1), np.float32)


def autocorrelation(envelope: Floats, lags: int) -> Floats:
    """Normalised autocorrelation ``[lags]`` of the envelope, unbiased, 1 at lag 0."""
    centred = envelope - np.mean(envelope)
    size = 1 << int(2 * centred.size - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    raw = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, size)[:lags]
    overlap = centred.size - np.arange(lags)
    return np.asarray(raw / np.maximum(overlap, 1) / (raw[0] / centred.size + 1e-9), np.float32)


def find_beats(envelope: Floats) -> Beats:
    """Place the beats (see the module's method) in an envelope of at least 2 s; ``periodicity`` says how credibly."""
    correlation = autocorrelation(envelope, min(PERIOD_FRAMES[1] + 1, envelope.size // 2))
    best: tuple[float, int, int, Ints] | None = None
    for period, prior in _periods(correlation):
        systole = _systole(correlation, period)
        rest = (systole + period) // 2
        first = _place(envelope, period, systole)
        whole = first[first + rest < envelope.size]
        fit = float(
            np.mean(
                envelope[whole] + envelope[whole + systole] - envelope[whole + systole // 2] - envelope[whole + rest]
            )
            if whole.size
            else -9.0
        )
        fit += 4.0 * prior - UNUSUAL * ((systole - _usual_systole(period)) / 10.0) ** 2
        if best is None or fit > best[0]:
            best = (fit, period, systole, first)
    if best is None:
        raise ValueError("an envelope needs at least one period to choose from")
    _, period, systole, first = best
    return Beats(
        first=first,
        period=period,
        systole=systole,
        periodicity=float(np.clip(correlation[period], 0.0, 1.0)),
        systolic=float(np.clip(correlation[systole], -1.0, 1.0)),
    )


def _periods(correlation: Floats) -> list[tuple[int, float]]:
    """Up to three lags that may be the beat, with their score: a lag's value and its double's, and how usual it is."""
    lags = np.arange(PERIOD_FRAMES[0], correlation.size)
    value = correlation[lags]
    doubled = np.where(2 * lags < correlation.size, correlation[np.minimum(2 * lags, correlation.size - 1)], value)
    halved = np.where(lags >= 2 * PERIOD_FRAMES[0], np.maximum(correlation[lags // 2], 0.0), 0.0)
    score = 0.67 * value + 0.33 * doubled - HALVED * halved - 0.125 * np.log2(lags / USUAL_PERIOD) ** 2
    inner = score[1:-1]
    peaks = 1 + np.flatnonzero((inner >= score[:-2]) & (inner >= score[2:]))
    if not peaks.size:
        peaks = np.array([int(np.argmax(score))])
    chosen = peaks[np.argsort(-score[peaks], kind="stable")[:PROPOSALS]]
    return [(int(lags[index]), float(score[index])) for index in chosen]


def _systole(correlation: Floats, period: int) -> int:
    """The lag from first to second sound: a peak near what is usual at this period (0.2 s + 0.14 of the period)."""
    start = SYSTOLE_FRAMES[0]
    lags = np.arange(start, max(start + 2, min(SYSTOLE_FRAMES[1], round(0.55 * period))))
    unusual = ((lags - _usual_systole(period)) / 10.0) ** 2
    return int(lags[int(np.argmax(correlation[lags] - 0.09 * unusual))])


def _usual_systole(period: int) -> float:
    """Frames from first to second sound that are usual at this period: 0.2 s and 0.14 of the beat."""
    return 20.0 + 0.14 * period


def _place(envelope: Floats, period: int, systole: int) -> Ints:
    """First sounds (frames) by dynamic programming over beats 0.75 to 1.3 periods apart."""

    def at(offset: int) -> Floats:
        return np.pad(envelope, (0, offset))[offset:]

    reward = envelope + at(systole) - at(systole // 2) - at((systole + period) // 2)
    nearest, farthest = round(0.75 * period), round(1.3 * period)
    steps = np.arange(nearest, farthest + 1)
    cost = 12.0 * np.log(steps / period) ** 2
    count = envelope.size
    best = reward.astype(np.float64)
    before = np.full(count, -1, np.intp)
    # A beat depends only on beats at least ``nearest`` frames back, so that many frames are solved at once.
    for begin in range(nearest, count, nearest):
        here = np.arange(begin, min(begin + nearest, count))
        index = here[:, None] - steps[None, :]
        score = np.where(index >= 0, best[np.maximum(index, 0)] - cost[None, :], -1e9)
        choice = np.argmax(score, axis=1)
        gain = score[np.arange(here.size), choice]
        best[here] += np.maximum(gain, 0.0)
        before[here] = np.where(gain > 0.0, here - steps[choice], -1)
    tail = max(0, count - farthest)
    frame = tail + int(np.argmax(best[tail:]))
    beats = [frame]
    while (frame := int(before[frame])) >= 0:
        beats.append(frame)
    if len(beats) < 2:
        beats = [*range(beats[0], -1, -period)]
    return np.asarray(beats[::-1], np.intp)


class _Cycles(msgspec.Struct, frozen=True):
    """Frames of each beat's first sound, second sound and next first sound, ``[cycles]`` each."""

    first: Doubles
    second: Doubles
    following: Doubles


def _cycles(envelope: Floats, beats: Beats) -> _Cycles:
    first = _peak_near(envelope, beats.first)
    second = _peak_near(envelope, first + beats.systole)
    if first.size < 2:
        return _Cycles(first.astype(float), second.astype(float), first.astype(float) + beats.period)
    return _Cycles(first[:-1].astype(float), second[:-1].astype(float), first[1:].astype(float))


def _peak_near(envelope: Floats, centres: Ints) -> Ints:
    """For each centre the frame of the envelope's peak within ``REFINE`` frames, the nearer preferred."""
    around = np.arange(-REFINE, REFINE + 1)
    index = np.clip(centres[:, None] + around[None, :], 0, envelope.size - 1)
    choice = np.argmax(envelope[index] - 0.002 * around**2, axis=1)
    return np.asarray(index[np.arange(centres.size), choice], np.intp)


def _mean_between(total: Doubles, start: Doubles, stop: Doubles) -> Doubles:
    """Means of what ``total`` (a cumulative sum with a leading zero) sums, between fractional indices, at least one long."""
    last = len(total) - 1
    begin = np.clip(np.rint(start), 0, last - 1).astype(np.intp)
    end = np.maximum(np.clip(np.rint(stop), 1, last).astype(np.intp), begin + 1)
    length = (end - begin).astype(np.float64)
    return np.asarray((total[end] - total[begin]) / length.reshape(*length.shape, *[1] * (total.ndim - 1)), np.float64)


def _energies(level: Floats, cycles: _Cycles) -> Doubles:
    """Mean log energy ``[cycles, 2 + 2 × PARTS, bands]`` of S1, S2, the parts of systole and the parts of diastole."""
    first, second = cycles.first, cycles.second
    spans = [(first - 3, first + 7), (second - 3, second + 6)]
    for begin, end in ((first + 8, second - 4), (second + 7, cycles.following - 5)):
        length = np.maximum((end - begin) / PARTS, 1.0)
        spans += [(begin + part * length, begin + (part + 1) * length) for part in range(PARTS)]
    start = np.stack([low for low, _ in spans], axis=1)
    stop = np.stack([high for _, high in spans], axis=1)
    total = np.concatenate([np.zeros((1, level.shape[1])), np.cumsum(level, axis=0, dtype=np.float64)])
    return _mean_between(total, start, stop)


def _shapes(samples: Floats, cycles: _Cycles) -> Doubles:
    """Kurtosis and zero crossings per sample, median over beats, of S1, systole, S2 and diastole: ``[8]``."""
    wave = samples.astype(np.float64) / (np.sqrt(np.mean(samples**2)) + 1e-9)
    square = wave * wave
    crossing = np.concatenate([[0.0], (wave[1:] >= 0.0) != (wave[:-1] >= 0.0)])
    series = np.stack([wave, square, square * wave, square * square, crossing], axis=1)
    total = np.concatenate([np.zeros((1, 5)), np.cumsum(series, axis=0)])
    first, second = cycles.first, cycles.second
    spans = (
        (first - 3, first + 9),
        (first + 8, second - 2),
        (second - 3, second + 8),
        (second + 7, cycles.following - 3),
    )
    start = HOP * np.stack([low for low, _ in spans], axis=1)
    stop = np.maximum(HOP * np.stack([high for _, high in spans], axis=1), start + 2 * HOP)
    m1, m2, m3, m4, crossings = np.moveaxis(_mean_between(total, start, stop), -1, 0)
    variance = m2 - m1**2
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    kurtosis = np.clip(fourth / np.maximum(variance**2, 1e-18), 1.0, 30.0)
    return np.asarray(np.concatenate([np.median(kurtosis, axis=0), np.median(crossings, axis=0)]))


def features(samples: Floats, found: Spectra, beats: Beats) -> Floats:
    """The feature vector ``[len(FEATURES)]`` of a recording (2 kHz), float32."""
    level = np.log(found.band + FLOOR)
    cycles = _cycles(found.envelope, beats)
    energy = _energies(level, cycles)
    middle = np.median(energy, axis=0)
    loudest = float(np.max(0.5 * (middle[0] + middle[1])))
    systole, diastole = middle[2 : 2 + PARTS], middle[2 + PARTS :]
    low, high = np.percentile(energy, [20, 80], axis=0)
    between = high - low
    last = found.envelope.size - 1
    vector = np.concatenate(
        [
            (middle - loudest).ravel(),
            (systole - middle[0]).ravel(),
            (diastole - middle[1]).ravel(),
            np.mean(systole - diastole, axis=0),
            middle[0] - middle[1],
            _rhythm(cycles, beats),
            [
                float(np.mean(found.envelope[np.clip(cycles.first.astype(np.intp), 0, last)])),
                float(np.mean(found.envelope[np.clip(cycles.second.astype(np.intp), 0, last)])),
                float(np.mean(np.std(energy[:, :2], axis=0))),
                float(np.mean(np.std(energy[:, 2:], axis=0))),
            ],
            between[0],
            between[1],
            np.mean(between[2:], axis=0),
            _shapes(samples, cycles),
            np.std(level, axis=0),
        ]
    )
    return np.asarray(np.nan_to_num(vector, nan=0.0, posinf=30.0, neginf=-30.0), np.float32)


def _rhythm(cycles: _Cycles, beats: Beats) -> Doubles:
    """Intervals in seconds, their spread, and how periodic the recording is: ``[10]``."""
    beat = (cycles.following - cycles.first) / FRAMES_PER_S
    systole = (cycles.second - cycles.first) / FRAMES_PER_S
    share = systole / np.maximum(beat, 0.1)
    step = float(np.mean(np.abs(np.diff(beat)))) if beat.size > 1 else 0.0
    spreads = [float(np.std(one)) for one in (beat, systole, share, beat - systole)]
    means = [float(np.mean(one)) for one in (beat, systole, share)]
    return np.array([*means, beats.periodicity, beats.systolic, *spreads, step])


def _names() -> tuple[str, ...]:
    band = [f"{low:g}-{high:g}Hz" for low, high in pairwise(EDGES_HZ)]
    segment = ["S1", "S2", *(f"systole{k}" for k in range(PARTS)), *(f"diastole{k}" for k in range(PARTS))]
    names = [f"{part}/{where}" for part in segment for where in band]
    names += [f"{part}-relative/{where}" for part in segment[2:] for where in band]
    names += [f"{what}/{where}" for what in ("systole-diastole", "S1-S2") for where in band]
    names += ["beat", "systole", "systole-share", "periodicity", "systolic"]
    names += ["vary-beat", "vary-systole", "vary-share", "vary-diastole", "step"]
    names += ["z-S1", "z-S2", "vary-sounds", "vary-rests"]
    names += [f"{what}/{where}" for what in ("between-S1", "between-S2", "between-rests") for where in band]
    names += [f"{what}/{part}" for what in ("kurtosis", "crossings") for part in ("S1", "systole", "S2", "diastole")]
    return (*names, *(f"spread/{where}" for where in band))


FEATURES = _names()
