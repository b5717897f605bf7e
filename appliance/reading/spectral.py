"""Short-time spectra of sounds: the one place where samples become power over time and frequency.

What this module keeps true: everything is float32 and numpy's own FFT (no import that costs a start), a frame is the same
number of samples wherever it is used, and a spectrum is proportional to the square of the input, so that callers decide
about level.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from appliance.reading.prepared import Sound

Floats = npt.NDArray[np.float32]

FLOOR = np.float32(1e-10)
"""Added to power before a logarithm: 100 dB below a full-scale sine; quieter than any stethoscope's own noise."""


def resample(sound: Sound, rate_hz: int) -> Floats:
    """The samples at ``rate_hz``, float32 ``[n]``; the band above half the lower of the two rates is gone (soxr, MQ)."""
    if round(sound.rate_hz) == rate_hz:
        return sound.samples
    import soxr

    return np.asarray(soxr.resample(sound.samples, sound.rate_hz, rate_hz, quality="MQ"), dtype=np.float32)


@functools.cache
def hann(length: int) -> Floats:
    """A periodic Hann window of ``length`` samples, scaled so that a full-scale sine's power sums to about 1/2."""
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / length)
    window *= np.sqrt(2.0 / (length * np.sum(window**2)))
    return np.asarray(window, dtype=np.float32)


def power(samples: Floats, length: int, hop: int) -> Floats:
    """The power spectrum of each frame, ``[frames, length // 2 + 1]``; frame ``k`` starts at sample ``k × hop``."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, length, axis=-1)[..., ::hop, :]
    spectrum = np.fft.rfft(frames * hann(length), axis=-1)
    return np.asarray(spectrum.real**2 + spectrum.imag**2, dtype=np.float32)


@functools.cache
def bands(rate_hz: int, length: int, edges: tuple[float, ...]) -> Floats:
    """A matrix ``[bins, bands]`` that sums power between neighbouring ``edges`` (Hz), bins at an edge shared by overlap."""
    width = rate_hz / length
    centres = np.arange(length // 2 + 1) * width
    low, high = np.asarray(edges[:-1]), np.asarray(edges[1:])
    left = np.maximum(centres[:, None] - width / 2, low[None, :])
    right = np.minimum(centres[:, None] + width / 2, high[None, :])
    return np.asarray(np.clip((right - left) / width, 0.0, 1.0), dtype=np.float32)


def log_mean(values: Floats, axis: int | tuple[int, ...] | None = None) -> Floats:
    """The natural logarithm of the mean power, floored."""
    return np.asarray(np.log(np.mean(values, axis=axis) + FLOOR), dtype=np.float32)
