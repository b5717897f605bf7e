"""From a decoded heart or lung sound to the models' inputs, and the recording's quality in numbers.

What this module keeps true: training and the box run this same code. Nothing here knows a model: lengths and steps are read
from the bundle's ``preprocess.parameters``. Samples are divided by their RMS, so the gain of a stethoscope does not matter;
the level itself, clipping and drop-outs are measured before that, in the samples as recorded. What can't be measured at all
(not numbers, too short, constant) comes back as a refusal, never as an exception and never as a made-up number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import Description
from appliance.reading import heart_features, lung_features, quality, sound_quality
from appliance.reading.prepared import Prepared, Sound
from appliance.reading.spectral import Floats, resample
from appliance.records import Measure

HEART_KIND = "heart-sound/1"
LUNG_KIND = "lung-sound/1"
HEART_INDICES = (*sound_quality.INDICES, "periodicity", "systolic", "beat-height", "vary-beat")
CONVINCING = 0.45
"""Periodicity from which a heart rate is stated."""
HALF_BEAT_ECHO = 0.7
"""Autocorrelation at half the period, as a share of that at the period, from which the rate may be half the true one."""
IRREGULAR = 0.15
"""Spread of the beats, as a share of the period, from which no rate is stated."""


def prepare_heart(sound: Sound, description: Description) -> Prepared:
    """Inputs of a heart-sound bundle and the recording's quality.

    Graph ``network`` gets ``samples`` ``[windows, window_s × 2000]``, ``trees`` gets ``features`` ``[1, n]``, ``gate`` gets
    ``indices`` ``[1, n]``. ``parameters``: ``window_s``, ``step_s``, ``least_s`` and ``most_s`` (seconds; what is longer
    is cut at the end), and ``gate_features`` (not 0: the indices go on with the features, mean over the windows, which tell
    a heart from a lung; a bundle made before does without). Measures: signal quality (0 to 1) and, when the beat is
    convincing, the heart rate.
    """
    samples, measured = _take(sound, description, heart_features.RATE_HZ)
    if isinstance(samples, Prepared):
        return samples
    found = heart_features.spectra(samples)
    beats = heart_features.find_beats(found.envelope)
    vector = heart_features.features(samples, found, beats)
    spread = float(vector[heart_features.FEATURES.index("vary-beat")])
    height = float(vector[heart_features.FEATURES.index("z-S1")])
    general = sound_quality.indices(samples, heart_features.RATE_HZ)
    gate = np.concatenate([general, np.array([beats.periodicity, beats.systolic, height, spread], np.float32)])
    gate = _told_apart(gate, vector[None], description)
    measured |= {"periodicity": beats.periodicity, "beat_height": height}
    measured["signal_quality"] = heart_signal_quality(
        beats.periodicity, height, measured["clipped"], measured["dropped"]
    )
    measures = [_signal_quality(measured["signal_quality"])]
    if _rate_is_convincing(found.envelope, beats, spread):
        measures.append(Measure(id="heart-rate", label="Heart rate", value=round(beats.rate_per_minute), unit="/min"))
    windows, starts = cut(samples, heart_features.RATE_HZ, description)
    return Prepared(
        inputs={"network": {"samples": windows}, "trees": {"features": vector[None]}, "gate": {"indices": gate[None]}},
        quality=measured,
        measures=tuple(measures),
        frames=starts,
    )


def prepare_lung(sound: Sound, description: Description) -> Prepared:
    """Inputs of a lung-sound bundle and the recording's quality.

    Graph ``network`` gets ``samples`` ``[windows, window_s × 4000]``, ``trees`` gets ``features`` ``[windows, n]``, ``gate``
    gets ``indices`` ``[1, n]``. Parameters as of ``prepare_heart``, and ``cepstra``, the number of mel cepstra among the
    features (none where it is not said); a recording shorter than a window is repeated to fill it.
    """
    samples, measured = _take(sound, description, lung_features.RATE_HZ)
    if isinstance(samples, Prepared):
        return samples
    windows, starts = cut(samples, lung_features.RATE_HZ, description)
    whole = samples[None, : windows.shape[1]] if len(starts) == 1 else windows
    features = lung_features.features(whole, int(description.preprocess.parameters.get("cepstra", 0)))
    gate = sound_quality.indices(samples, lung_features.RATE_HZ)
    measured["signal_quality"] = lung_signal_quality(gate, measured["clipped"], measured["dropped"])
    gate = _told_apart(gate, features, description)
    return Prepared(
        inputs={"network": {"samples": windows}, "trees": {"features": features}, "gate": {"indices": gate[None]}},
        quality=measured,
        measures=(_signal_quality(measured["signal_quality"]),),
        frames=starts,
    )


def heart_signal_quality(periodicity: float, height: float, clipped: float, dropped: float) -> float:
    """0 to 1: how periodic and how far above the rest the beats are, less what is clipped or lost."""
    clarity = 0.6 * periodicity + 0.4 * float(np.clip(height / 2.0, 0.0, 1.0))
    return float(np.clip(clarity * _intact(clipped, dropped), 0.0, 1.0))


def lung_signal_quality(indices: Floats, clipped: float, dropped: float) -> float:
    """0 to 1: how far breathing swells above the background, less hum and what is clipped or lost."""
    names = sound_quality.INDICES
    swell = float(indices[names.index("loud-over-middle")] + indices[names.index("middle-over-quiet")])
    hum = float(indices[names.index("tone-share")])
    clarity = float(np.clip(swell / 4.0, 0.0, 1.0)) * (1.0 - 0.5 * float(np.clip(hum, 0.0, 1.0)))
    return float(np.clip(clarity * _intact(clipped, dropped), 0.0, 1.0))


def cut(samples: Floats, rate_hz: int, description: Description) -> tuple[Floats, tuple[float, ...]]:
    """Windows ``[n, window_s × rate_hz]`` of a recording and the second at which each starts; a short one is repeated.

    When the last window would leave out more than half a step, one more ends with the recording.
    """
    parameters = description.preprocess.parameters
    length = round(float(parameters["window_s"]) * rate_hz)
    step = round(float(parameters["step_s"]) * rate_hz)
    if samples.size < length:
        samples = np.resize(samples, length)
    last = samples.size - length
    starts = [*range(0, last + 1, step)]
    if last - starts[-1] > step // 2:
        starts.append(last)
    windows = np.lib.stride_tricks.sliding_window_view(samples, length)[starts]
    return np.ascontiguousarray(windows), tuple(start / rate_hz for start in starts)


def _told_apart(indices: Floats, features: Floats, description: Description) -> Floats:
    """The gate's indices, with the mean over the windows of ``features`` ``[windows, n]`` where the bundle asks for them."""
    if not description.preprocess.parameters.get("gate_features"):
        return indices
    return np.concatenate([indices, features.mean(axis=0)])


def _take(sound: Sound, description: Description, rate_hz: int) -> tuple[Floats | Prepared, dict[str, float]]:
    """The recording at ``rate_hz`` with unit RMS and what was measured of it as recorded, or the refusal in its place."""
    parameters = description.preprocess.parameters
    raw = sound.samples[: int(float(parameters["most_s"]) * sound.rate_hz)]
    if not sound.rate_hz > 0.0 or raw.size < max(16, float(parameters["least_s"]) * sound.rate_hz):
        return _refused("too-short", description, {}), {}
    if not np.isfinite(raw).all() or float(np.max(np.abs(raw))) > 1e6:
        return _refused("not-numbers", description, {}), {}
    measured = {
        "seconds": raw.size / sound.rate_hz,
        "level_db": sound_quality.level_db(raw),
        "clipped": sound_quality.clipped_share(raw),
        "dropped": sound_quality.dropped_share(raw, sound.rate_hz),
    }
    if measured["level_db"] < float(parameters["silent_db"]):
        return _refused("silent", description, measured), measured
    samples = resample(Sound(header=sound.header, samples=raw, rate_hz=sound.rate_hz), rate_hz)
    samples = samples - np.mean(samples)
    effective = float(np.sqrt(np.mean(samples**2)))
    if effective < 1e-7:
        return _refused("silent", description, measured), measured
    return np.asarray(samples / effective, np.float32), measured


def _refused(code: str, description: Description, measured: dict[str, float]) -> Prepared:
    inputs: dict[str, dict[str, npt.NDArray[Any]]] = {}
    return Prepared(inputs=inputs, quality=measured, refusal=quality.words_for(code, description.refusals))


def _signal_quality(value: float) -> Measure:
    return Measure(id="signal-quality", label="Signal quality", value=round(value, 2), unit="1")


def _intact(clipped: float, dropped: float) -> float:
    return max(0.0, 1.0 - 10.0 * clipped) * max(0.0, 1.0 - dropped)


def _rate_is_convincing(envelope: Floats, beats: heart_features.Beats, spread_s: float) -> bool:
    """Whether the beat is periodic, regular, seen often enough, and not likely to be two beats taken for one."""
    if beats.periodicity < CONVINCING or beats.first.size < 4:
        return False
    period_s = beats.period / heart_features.FRAMES_PER_S
    if spread_s > IRREGULAR * period_s:
        return False
    half = beats.period // 2
    if half < heart_features.PERIOD_FRAMES[0]:
        return True
    echo = heart_features.autocorrelation(envelope, half + 1)[half]
    return bool(echo < HALF_BEAT_ECHO * beats.periodicity)
