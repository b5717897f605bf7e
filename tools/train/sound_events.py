"""Made-up crackles and wheezes laid over real breaths, so that a network learns the event and not the patient.

What this module keeps true: an event is as loud, beside the breath it is laid over, as drawn and no louder; nothing of it is
used for measuring: held-out figures come from recorded sounds alone. Shapes after Sovijärvi et al., Eur Respir Rev 2000,
10:77: a crackle is a damped oscillation of 5 to 20 ms, a wheeze a tone of 100 to 1,000 Hz that lasts 100 ms and more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
SURE = 0.95
"""Target of a finding that was laid in: the event may be drowned by the breath."""
CRACKLE_LEVEL = (1.5, 8.0)
"""Highest peak over the breath's RMS."""
WHEEZE_DB = (-14.0, 6.0)
"""RMS of the tone over the breath's RMS."""


def crackles(length: int, rate_hz: int, random: np.random.Generator) -> Doubles:
    """A volley of 3 to 15 crackles, ``[length]``, highest peak 1 (or silence when all fall outside)."""
    made = np.zeros(length)
    centre, width = int(random.integers(0, length)), random.uniform(0.1, 0.8) * rate_hz
    for _ in range(int(random.integers(3, 16))):
        at = int(centre + random.normal(0.0, width / 2))
        seconds = np.arange(int(random.uniform(0.005, 0.02) * rate_hz)) / rate_hz
        pitch = np.exp(random.uniform(np.log(150.0), np.log(1200.0)))
        slowing = random.uniform(0.85, 1.0)
        fall = seconds[-1] / random.uniform(2.0, 5.0)
        one = np.sin(2 * np.pi * pitch * seconds**slowing) * np.exp(-seconds / fall)
        if at >= 0 and at + one.size < length:
            made[at : at + one.size] += one * np.exp(random.normal(0.0, 0.4))
    peak = float(np.max(np.abs(made)))
    return made / peak if peak > 0.0 else made


def wheeze(length: int, rate_hz: int, random: np.random.Generator) -> Doubles:
    """A gliding tone with two harmonics, 0.15 to 1.2 s, ``[length]``, RMS 1 while it lasts."""
    made = np.zeros(length)
    count = int(min(length - 1, random.uniform(0.15, 1.2) * rate_hz))
    at = int(random.integers(0, length - count))
    seconds = np.arange(count) / rate_hz
    pitch, glide = np.exp(random.uniform(np.log(120.0), np.log(900.0))), random.normal(0.0, 0.15)
    phase = 2 * np.pi * pitch * (seconds + glide * seconds**2 / 2 / seconds[-1])
    tone = np.sin(phase)
    for harmonic in (2, 3):
        if harmonic * pitch < 0.475 * rate_hz:
            tone = tone + random.uniform(0.0, 0.5) * np.sin(harmonic * phase + random.uniform(0.0, 2 * np.pi))
    swell = np.hanning(count) ** random.uniform(0.3, 1.0)
    made[at : at + count] = tone * swell / (np.sqrt(np.mean(tone**2)) + 1e-9)
    return made


def added(
    samples: Floats, target: Floats, kinds: dict[str, list[float]], rate_hz: int, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """``samples`` with crackles or a wheeze, and ``target`` raised to ``SURE`` where ``kinds`` says the event counts."""
    kind = sorted(kinds)[int(random.integers(0, len(kinds)))]
    if kind == "crackles":
        level = np.exp(random.uniform(*np.log(CRACKLE_LEVEL)))
        event = crackles(samples.size, rate_hz, random)
    else:
        level = 10.0 ** (random.uniform(*WHEEZE_DB) / 20.0)
        event = wheeze(samples.size, rate_hz, random)
    louder = samples + level * float(np.std(samples)) * event
    raised = np.maximum(target, SURE * np.asarray(kinds[kind]))
    return np.asarray(louder, np.float32), np.asarray(raised, np.float32)
