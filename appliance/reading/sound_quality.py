"""Indices of a recording's quality, the same for heart and lung: what an input gate looks at.

What this module keeps true: but for ``level_db`` no index depends on the gain; all are finite for any finite recording of at
least half a second; clipping and drop-outs are counted in the samples as recorded, before any resampling hides them.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from appliance.reading.spectral import FLOOR, Floats, bands, log_mean, power

Doubles = npt.NDArray[np.float64]

FRAMES_PER_S = 100
SHARES = (0.0, 0.025, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Edges of the band shares as parts of half the sample rate."""
MODULATION_HZ = (0.15, 0.7, 3.0, 8.0, 20.0)
INDICES = (
    "crest",
    "kurtosis",
    *(f"share-{high:g}" for high in SHARES[1:]),
    "flatness",
    "tone-height",
    "tone-share",
    *(f"modulation-{high:g}Hz" for high in MODULATION_HZ[1:]),
    "loud-over-middle",
    "middle-over-quiet",
    "envelope-kurtosis",
    "transients",
    "jumps",
    "flux",
    "crossings",
    "bands-together",
    "centroid",
    "centroid-moves",
    "parts-differ",
    "longest-pause",
)


def level_db(samples: Floats) -> float:
    """RMS level after removing the mean, in dB below full scale (0 is a square wave at ±1); −200 for digital silence."""
    return float(10.0 * np.log10(np.var(samples.astype(np.float64)) + 1e-20))


def clipped_share(samples: Floats) -> float:
    """Share of samples in runs of three or more at the recording's own extreme, so that turning it down hides nothing."""
    if samples.size < 3:
        return 0.0
    total = 0
    for sign in (1.0, -1.0):
        wave = sign * samples
        limit = float(np.max(wave))
        if limit <= 0.0:
            continue
        at = wave >= limit * 0.999
        runs = at[2:] & at[1:-1] & at[:-2]
        total += int(np.count_nonzero(runs))
    return total / samples.size


def dropped_share(samples: Floats, rate_hz: float) -> float:
    """Share of 50 ms frames that are constant while the recording as a whole is not: lost packets, a loose plug."""
    length = max(2, int(0.05 * rate_hz))
    count = samples.size // length
    if count == 0:
        return 0.0
    frames = samples[: count * length].reshape(count, length)
    return float(np.mean(np.ptp(frames, axis=1) <= 0.0))


def indices(samples: Floats, rate_hz: int) -> Floats:
    """The indices ``[len(INDICES)]`` of ``samples`` at ``rate_hz`` (2 or 4 kHz), at least half a second, not silent."""
    wave = samples - np.mean(samples)
    wave = wave / (np.sqrt(np.mean(wave**2)) + 1e-12)
    frame = rate_hz // 20
    raw = power(np.asarray(wave, np.float32), frame, rate_hz // FRAMES_PER_S)
    envelope = np.log(np.sum(raw[:, 1:], axis=1) + 1e-6)
    vector = np.concatenate(
        [
            [np.log(np.max(np.abs(wave))), np.log(np.mean(wave.astype(np.float64) ** 4))],
            _colour(raw, rate_hz, frame),
            _tones(wave, rate_hz),
            _modulation(envelope),
            _dynamics(envelope),
            _texture(wave, raw, rate_hz, frame),
            _steadiness(envelope),
        ]
    )
    return np.asarray(np.clip(np.nan_to_num(vector), -50.0, 50.0), np.float32)


def _colour(raw: Floats, rate_hz: int, frame: int) -> Doubles:
    """Log share of each band and the flatness (log of geometric over arithmetic mean) of the whole spectrum."""
    mean = np.mean(raw, axis=0)
    edges = tuple(part * rate_hz / 2 for part in SHARES)
    energy = mean @ bands(rate_hz, frame, edges)
    share = np.log(energy / (np.sum(energy) + FLOOR) + 1e-6)
    inner = mean[1:] + 1e-9
    return np.array([*share, float(np.mean(np.log(inner)) - np.log(np.mean(inner)))])


def _tones(wave: Floats, rate_hz: int) -> Doubles:
    """Steady lines (hum, whistles) at 2 Hz resolution: the highest over its neighbours, the share of power in lines."""
    length = min(rate_hz // 2, wave.size)
    spectrum = np.mean(power(np.asarray(wave, np.float32), length, max(1, length // 2)), axis=0)
    width = 15
    padded = np.pad(spectrum, width, mode="edge")
    near = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1), axis=-1)
    ratio = spectrum / (near + 1e-4 * np.mean(spectrum) + 1e-12)
    start = max(1, round(20 * length / rate_hz))
    lines = np.where(ratio > 8.0, spectrum, 0.0)[start:]
    return np.array([np.log(np.max(ratio[start:]) + 1e-3), np.sum(lines) / (np.sum(spectrum[start:]) + 1e-12)])


def _modulation(envelope: Floats) -> Doubles:
    """Log shares of the log envelope's spectrum: breathing, beating, syllables, rattle."""
    centred = envelope - np.mean(envelope)
    spectrum = np.abs(np.fft.rfft(centred * np.hanning(centred.size))) ** 2
    frequency = np.fft.rfftfreq(centred.size, 1.0 / FRAMES_PER_S)
    total = np.sum(spectrum[frequency >= MODULATION_HZ[0]]) + 1e-9
    sums = [np.sum(spectrum[(frequency >= low) & (frequency < high)]) for low, high in pairwise(MODULATION_HZ)]
    return np.asarray(np.log(np.asarray(sums) / total + 1e-3))


def _dynamics(envelope: Floats) -> Doubles:
    """How far loud and quiet frames lie apart, how peaked, and leaps by 10 and by 5 dB within 30 ms, a second."""
    quiet, middle, loud = np.percentile(envelope, [5, 50, 95])
    centred = envelope - np.mean(envelope)
    kurtosis = np.mean(centred**4) / (np.mean(centred**2) ** 2 + 1e-9)
    leap = envelope[3:] - envelope[:-3] if envelope.size > 3 else np.zeros(1)
    seconds = envelope.size / FRAMES_PER_S

    def rises(limit: float) -> float:
        above = leap > limit
        return float(np.count_nonzero(above[1:] & ~above[:-1])) / seconds

    return np.array([loud - middle, middle - quiet, kurtosis, rises(2.3), rises(1.15)])


def _texture(wave: Floats, raw: Floats, rate_hz: int, frame: int) -> Doubles:
    """Flux, zero crossings, whether low and high bands swell together (taps do), the centroid and how it moves."""
    edges = tuple(part * rate_hz / 2 for part in (0.025, 0.1, 0.2, 0.4, 0.7, 1.0))
    level = np.log(raw @ bands(rate_hz, frame, edges) + 1e-6)
    flux = float(np.mean(np.abs(np.diff(level, axis=0)))) if len(level) > 1 else 0.0
    crossings = float(np.mean((wave[1:] >= 0) != (wave[:-1] >= 0)))
    low, high = level[:, 0] - np.mean(level[:, 0]), level[:, 3] - np.mean(level[:, 3])
    together = float(np.mean(low * high) / (np.std(low) * np.std(high) + 1e-6))
    position = np.arange(raw.shape[1]) / raw.shape[1]
    centroid = (raw @ position.astype(np.float32)) / (np.sum(raw, axis=1) + 1e-9)
    return np.array([flux, crossings, together, float(np.mean(centroid)), float(np.std(centroid))])


def _steadiness(envelope: Floats) -> Doubles:
    """How far the levels of four parts lie apart, and the longest pause (10 dB below the loud frames) in seconds."""
    parts = [log_mean(np.exp(part)) for part in np.array_split(envelope, 4) if part.size]
    quiet = envelope < np.percentile(envelope, 95) - 2.3
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(np.int8), [0]])))
    longest = float(np.max(edges[1::2] - edges[::2])) if edges.size else 0.0
    return np.array([float(np.max(parts) - np.min(parts)), longest / FRAMES_PER_S])
