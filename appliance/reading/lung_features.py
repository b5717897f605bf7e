"""Hand-made features of lung sounds: how the breath's colour moves, tones that last (wheezes), clicks (crackles).

What this module keeps true: every feature is finite, independent of gain, and computed by this code alone in training and
on the box; all windows of a recording go through one set of array operations.

Method: a wheeze is a spectral line standing out of its neighbours for 100 ms and more, so each line's prominence is kept at
the least it has over 100 and over 200 ms. A crackle is a leap of 5 to 15 ms above the level around it, counted in
four bands (definitions after Sovijärvi et al., Eur Respir Rev 2000, 10:77). The spectrum's envelope is told by mel cepstra
(Davis & Mermelstein 1980), which a bundle may ask for: those made before do without.
"""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from appliance.reading.spectral import FLOOR, Floats, bands, power

RATE_HZ = 4000
FRAME, HOP = 256, 40
SHORT_FRAME, SHORT_HOP = 40, 20
EDGES_HZ = (60.0, 120.0, 180.0, 250.0, 330.0, 430.0, 550.0, 700.0, 880.0, 1080.0, 1320.0, 1600.0, 1950.0)
CLICK_HZ = (100.0, 300.0, 600.0, 1100.0, 1900.0)
TONE_HZ = (100.0, 250.0, 400.0, 650.0, 1200.0)
QUARTERS = 4
LASTING = (10, 20)
"""Frames of 10 ms over which a tone must last."""
TONE_LIMITS = (1.0, 1.7, 2.4)
MEL_BANDS = 24
LAG = 4
"""Frames of 10 ms over which a cepstrum's movement is measured."""
CLICK_LIMITS = (0.8, 1.4, 2.1)

Doubles = npt.NDArray[np.float64]


def features(windows: Floats, cepstra: int = 0) -> Floats:
    """The features ``[N, len(FEATURES) + 3 × cepstra]`` of windows ``[N, samples]`` at 4 kHz, at least 0.3 s each."""
    scale = np.sqrt(np.mean(windows**2, axis=1, keepdims=True)) + 1e-9
    waves = np.asarray(windows / scale, np.float32)
    spectrum = power(waves, FRAME, HOP)
    level = np.log(spectrum @ bands(RATE_HZ, FRAME, EDGES_HZ) + 1e-7)
    parts: list[npt.NDArray[np.floating]] = [
        _colour(level),
        _shape(level),
        _tones(spectrum),
        _clicks(waves),
        _whole(spectrum, level, waves),
    ]
    if cepstra:
        parts.append(_cepstra(spectrum, cepstra))
    vector = np.concatenate(parts, axis=1)
    return np.asarray(np.clip(np.nan_to_num(vector), -50.0, 50.0), np.float32)


def _colour(level: Floats) -> Doubles:
    """Per band: mean less the mean of all, spread over time, and how far the loudest tenth lies above the middle."""
    mean = np.mean(level, axis=1)
    middle, loud = np.percentile(level, [50, 90], axis=1)
    return np.concatenate([mean - np.mean(mean, axis=1, keepdims=True), np.std(level, axis=1), loud - middle], axis=1)


def _shape(level: Floats) -> Doubles:
    """Six double bands over four quarters of the window, less their own mean."""
    count, frames, number = level.shape
    pairs = level.reshape(count, frames, number // 2, 2).mean(axis=3)
    edges = np.linspace(0, frames, QUARTERS + 1).round().astype(int).tolist()
    parts = [pairs[:, low : max(high, low + 1)].mean(axis=1) for low, high in pairwise(edges)]
    joined = np.stack(parts, axis=2) - pairs.mean(axis=1)[:, :, None]
    return np.asarray(joined.reshape(count, -1), np.float64)


def _cepstra(spectrum: Floats, number: int) -> Floats:
    """The first ``number`` mel cepstra but the level: mean, spread over time, and spread of their movement in 40 ms."""
    level = np.log(spectrum @ bands(RATE_HZ, FRAME, _mel_edges()) + 1e-7)
    angle = np.pi / MEL_BANDS * (np.arange(MEL_BANDS) + 0.5)
    cosine = np.cos(np.outer(angle, np.arange(1, number + 1))) / MEL_BANDS
    moving = level @ cosine.astype(np.float32)
    leaps = moving[:, LAG:] - moving[:, :-LAG]
    return np.concatenate([moving.mean(axis=1), moving.std(axis=1), leaps.std(axis=1)], axis=1)


@functools.cache
def _mel_edges() -> tuple[float, ...]:
    """Edges of ``MEL_BANDS`` bands between the outermost of ``EDGES_HZ``, equally wide in mel."""
    low, high = (2595.0 * np.log10(1.0 + edge / 700.0) for edge in (EDGES_HZ[0], EDGES_HZ[-1]))
    return tuple((700.0 * (10.0 ** (np.linspace(low, high, MEL_BANDS + 1) / 2595.0) - 1.0)).tolist())


def _sliding_least(values: Floats, length: int) -> Floats:
    """The least over ``length`` neighbouring frames (axis 1), by doubling."""
    done = 1
    while done < length:
        step = min(done, length - done)
        if values.shape[1] <= step:
            break
        values = np.minimum(values[:, step:], values[:, :-step])
        done += step
    return values


def _tones(spectrum: Floats) -> Doubles:
    """Prominence of lines that last: per range and duration its peak, and the share of time above three limits."""
    width = RATE_HZ / FRAME
    low, high = int(TONE_HZ[0] / width), int(TONE_HZ[-1] / width) + 1
    near_by = 5
    level = np.log(
        spectrum[:, :, low - near_by : high + near_by + 1] + 1e-3 * np.mean(spectrum, axis=2, keepdims=True) + FLOOR
    )
    total = np.concatenate([np.zeros_like(level[:, :, :1]), np.cumsum(level, axis=2)], axis=2)
    number = level.shape[2] - 2 * near_by
    around = total[:, :, 2 * near_by + 1 :] - total[:, :, :number]
    itself = total[:, :, near_by + 2 : near_by + 2 + number] - total[:, :, near_by - 1 : near_by - 1 + number]
    prominence = level[:, :, near_by : near_by + number] - (around - itself) / (2.0 * near_by - 2.0)
    # A tone may wander by one line from frame to frame.
    near = np.maximum(prominence[:, :, 1:-1], np.maximum(prominence[:, :, 2:], prominence[:, :, :-2]))
    centres = (np.arange(near.shape[2]) + low + 1) * width
    found = []
    for frames in LASTING:
        lasting = _sliding_least(near, frames)
        best = lasting.max(axis=1)
        found += [best[:, (centres >= start) & (centres < stop)].max(axis=1) for start, stop in pairwise(TONE_HZ)]
        strongest = lasting.max(axis=2)
        found += [np.mean(strongest > limit, axis=1) for limit in TONE_LIMITS]
        found += [
            np.mean(strongest, axis=1),
            np.percentile(strongest, 90, axis=1),
            centres[np.argmax(best, axis=1)] / 1000.0,
        ]
    return np.asarray(np.stack(found, axis=1), np.float64)


def _clicks(waves: Floats) -> Doubles:
    """Leaps above the level of the 65 ms around, per band: how many a second at three limits, the highest, the tails."""
    level = np.log(power(waves, SHORT_FRAME, SHORT_HOP) @ bands(RATE_HZ, SHORT_FRAME, CLICK_HZ) + 1e-6)
    half = 6
    padded = np.pad(level, ((0, 0), (half, half), (0, 0)), mode="edge").astype(np.float64)
    total = np.concatenate([np.zeros_like(padded[:, :1]), np.cumsum(padded, axis=1)], axis=1)
    around = (total[:, 2 * half + 1 :] - total[:, : -2 * half - 1]) / (2 * half + 1)
    leap = level - around
    seconds = level.shape[1] * SHORT_HOP / RATE_HZ
    found = []
    for limit in CLICK_LIMITS:
        above = leap > limit
        found.append(np.count_nonzero(above[:, 1:] & ~above[:, :-1], axis=1) / seconds)
    spread = np.std(leap, axis=1)
    shape = np.mean(leap**3, axis=1) / (spread**3 + 1e-6)
    tails = np.mean(leap**4, axis=1) / (spread**4 + 1e-6)
    together = np.min(leap, axis=2) if leap.shape[2] > 1 else leap[:, :, 0]
    both = [np.max(together, axis=1), np.percentile(together, 98, axis=1)]
    return np.concatenate([*found, np.max(leap, axis=1), spread, shape, tails, np.stack(both, axis=1)], axis=1)


def _whole(spectrum: Floats, level: Floats, waves: Floats) -> Doubles:
    """Centroid, spread and flatness over time, zero crossings, crest and kurtosis of the waveform."""
    position = (np.arange(spectrum.shape[2]) / spectrum.shape[2]).astype(np.float32)
    total = np.sum(spectrum, axis=2) + FLOOR
    centroid = spectrum @ position / total
    flat = np.mean(level, axis=2) - np.log(np.mean(np.exp(level), axis=2))
    loudness = np.log(total)
    crossings = np.mean((waves[:, 1:] >= 0) != (waves[:, :-1] >= 0), axis=1)
    squares = waves * waves
    tails = np.log(np.mean(squares * squares, axis=1) + 1e-9)
    crest = np.log(np.max(np.abs(waves), axis=1) + 1e-9)
    stack = [
        np.mean(centroid, axis=1),
        np.std(centroid, axis=1),
        np.mean(flat, axis=1),
        np.std(flat, axis=1),
        np.std(loudness, axis=1),
        crossings,
        tails,
        crest,
    ]
    return np.asarray(np.stack(stack, axis=1), np.float64)


def _names() -> tuple[str, ...]:
    band = [f"{low:g}-{high:g}Hz" for low, high in pairwise(EDGES_HZ)]
    names = [f"{what}/{where}" for what in ("level", "spread", "loud-over-middle") for where in band]
    names += [f"quarter{part}/{2 * pair}" for pair in range(len(band) // 2) for part in range(QUARTERS)]
    for frames in LASTING:
        names += [f"tone-{10 * frames}ms/{low:g}Hz" for low in TONE_HZ[:-1]]
        names += [f"tone-{10 * frames}ms/{what}" for what in ("share1", "share2", "share3", "mean", "p90", "pitch")]
    click = [f"{low:g}Hz" for low in CLICK_HZ[:-1]]
    kinds = [*(f"clicks>{limit:g}" for limit in CLICK_LIMITS), "leap", "leap-spread", "leap-skew", "leap-tails"]
    names += [f"{what}/{where}" for what in kinds for where in click] + ["together-max", "together-p98"]
    names += [
        "centroid",
        "centroid-moves",
        "flatness",
        "flatness-moves",
        "loudness-moves",
        "crossings",
        "kurtosis",
        "crest",
    ]
    return tuple(names)


FEATURES = _names()
