"""A network's outputs to findings: summed, aggregated, calibrated, cut at the operating point of the age, put into words.

What this module keeps true: all numbers come from the bundle's description. The probability is
``sigmoid((aggregate of the summed scores + bias) / temperature)``; positive means at or above the operating point of the
patient's age. Confidence words say how far the probability lies from that point, not how good the model is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import Bundle, Description, FindingSpec, OperatingPoint, Score, Wording
from appliance.records import Finding

Outputs = Mapping[str, Mapping[str, npt.NDArray[Any]]]
"""Graph name to output name to array, first axis frames or windows."""

ASSUMED_AGE = 30.0
"""Whose words and operating point count while the age is unknown: an adult's; the reading carries a warning."""

_CLEAR = 2.0
"""Logit distance from the operating point (odds 7 times higher or lower) from which confidence is called high."""
_CLOSE = 0.5
"""Logit distance below which it is called low when the bundle names no uncertain band."""

Banded = TypeVar("Banded", OperatingPoint, Wording)


class Answer(NamedTuple):
    """A finding, whether it lies in the uncertain band, its advice when positive, and its clearest frame."""

    finding: Finding
    spec: FindingSpec
    uncertain: bool
    advice: str
    frame: int


class Overlay(NamedTuple):
    """An activation map as row-major bytes, its rows and columns, whose it is, and which row of the inputs it is of."""

    data: bytes
    shape: tuple[int, int]
    finding: str
    row: int


def answers(bundle: Bundle, outputs: Outputs, age_years: float | None) -> list[Answer]:
    """Every finding of the bundle that is answered at this age, in its order."""
    age = ASSUMED_AGE if age_years is None else age_years
    specs = [spec for spec in bundle.description.findings if spec.age_years[0] <= age < spec.age_years[1]]
    return [_answer(spec, outputs, age) for spec in specs]


def gate_probability(description: Description, outputs: Outputs) -> float | None:
    """The probability that this is a good capture of the right kind; ``None`` for a gate without scores."""
    gate = description.gate
    if not gate.scores:
        return None
    return _sigmoid(float(logits(gate.scores, outputs).mean()) + gate.bias)


def logits(scores: Sequence[Score], outputs: Outputs) -> npt.NDArray[np.float64]:
    """The summed scores of each frame or window, float64 ``[N]``.

    Terms of one row (a tree ensemble over the whole recording) count for every frame of the others; terms of different
    numbers of frames are averaged first, each by itself.
    """
    terms = [_term(score, outputs) for score in scores]
    if len({len(term) for term in terms if len(term) > 1}) > 1:
        terms = [term.mean(keepdims=True) for term in terms]
    return np.asarray(sum(terms), dtype=np.float64)


def for_age(bands: Sequence[Banded], age_years: float) -> Banded:
    """The first operating point or wording whose age band [from, to) holds the age; the nearest band when none does."""
    for band in bands:
        if band.age_years[0] <= age_years < band.age_years[1]:
            return band
    return min(bands, key=lambda band: max(band.age_years[0] - age_years, age_years - band.age_years[1]))


def strongest(found: Sequence[Answer]) -> Answer | None:
    """The positive finding that stands out most from its operating point, else the strongest negative one.

    Findings that are not experimental go first.
    """
    return max(
        found,
        key=lambda one: (
            one.finding.positive,
            not one.finding.experimental,
            _logit(one.finding.probability) - _logit(one.finding.threshold),
        ),
        default=None,
    )


def overlay(found: Sequence[Answer], outputs: Outputs) -> Overlay | None:
    """The map of the strongest finding that has one, in its clearest frame.

    Only what speaks for the finding is shown (negative activation is 0). A positive finding's peak is 255; a negative
    one's is as much weaker as its probability is below the operating point, so that no red glows over a clear film.
    """
    answer = strongest([one for one in found if one.spec.map is not None])
    if answer is None or answer.spec.map is None:
        return None
    name, channel = answer.spec.map
    maps = next((tensors[name] for tensors in outputs.values() if name in tensors), None)
    if maps is None or maps.ndim != 4 or not 0 <= channel < maps.shape[1]:
        return None
    chosen = np.asarray(maps[min(answer.frame, len(maps) - 1), channel], dtype=np.float32)
    if max(chosen.shape) > 64:
        step = -(-max(chosen.shape) // 64)
        chosen = chosen[::step, ::step]
    peak = float(chosen.max())
    if not math.isfinite(peak) or peak <= 0.0:
        return None
    finding = answer.finding
    strength = 1.0 if finding.positive else min(1.0, finding.probability / max(finding.threshold, 1e-6))
    scaled = np.clip(chosen, 0.0, None) * (255.0 * strength / peak)
    return Overlay(
        np.rint(scaled).astype(np.uint8).tobytes(), (chosen.shape[0], chosen.shape[1]), finding.id, answer.frame
    )


def _answer(spec: FindingSpec, outputs: Outputs, age: float) -> Answer:
    frames = logits(spec.scores, outputs)
    whole = float(frames.max() if spec.aggregate == "max-logit" else frames.mean())
    probability = _sigmoid((whole + spec.bias) / spec.temperature)
    point = for_age(spec.operating_points, age)
    wording = for_age(spec.wording, age)
    band = point.uncertain
    uncertain = band is not None and band[0] <= probability <= band[1]
    measured = point.sensitivity > 0.0 or point.specificity > 0.0
    finding = Finding(
        id=spec.id,
        label=wording.label,
        code=wording.code or spec.code,
        probability=probability,
        positive=probability >= point.threshold,
        threshold=point.threshold,
        sensitivity=point.sensitivity if measured else None,
        specificity=point.specificity if measured else None,
        experimental=spec.experimental,
        confidence=_confidence(probability, point, uncertain=uncertain),
    )
    return Answer(finding, spec, uncertain, wording.advice_positive, int(np.argmax(frames)))


def _confidence(probability: float, point: OperatingPoint, *, uncertain: bool) -> Literal["low", "moderate", "high"]:
    distance = abs(_logit(probability) - _logit(point.threshold))
    if uncertain or (point.uncertain is None and distance < _CLOSE):
        return "low"
    return "high" if distance >= _CLEAR else "moderate"


def _term(score: Score, outputs: Outputs) -> npt.NDArray[np.float64]:
    values = np.asarray(outputs[score.graph][score.output], dtype=np.float64)
    picked = values.reshape(-1) if values.ndim < 2 else values.reshape(-1, values.shape[-1])[:, score.index]
    if score.transform == "logit":
        clipped = np.clip(picked, 1e-6, 1 - 1e-6)
        picked = np.log(clipped / (1 - clipped))
    return np.asarray(picked * score.weight)


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))


def _logit(probability: float) -> float:
    clipped = min(max(probability, 1e-9), 1 - 1e-9)
    return math.log(clipped / (1 - clipped))
