"""How good a score is: ranking, errors at a threshold, calibration, and intervals by patient.

What this module keeps true: numpy only; every interval resamples *patients*, never files, because frames and films of
one patient are twins; a figure that can't be computed (one class missing, nothing in a bin) is ``nan``, never 0 or 1.
Training, ``bedside models evaluate`` and the cards share these functions, so a figure means the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float64] | None
Statistic = Callable[[Floats, Floats, Floats], float]
"""(labels 0/1 [n], scores [n], weights [n]) to one figure."""


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A figure and its 95 % interval (or what ``level`` said); bounds are ``nan`` where resampling gave nothing."""

    value: float
    low: float
    high: float


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What a threshold does: counts (weighted sums when weights were given) and the rates made of them."""

    true_positive: float
    false_positive: float
    true_negative: float
    false_negative: float

    @property
    def sensitivity(self) -> float:
        """Share of the positives that are called positive."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of the negatives that are called negative."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def positive_predictive_value(self) -> float:
        """Share of the positive calls that are right, at the prevalence of these data."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def negative_predictive_value(self) -> float:
        """Share of the negative calls that are right, at the prevalence of these data."""
        return _ratio(self.true_negative, self.true_negative + self.false_negative)


class PerThousand(msgspec.Struct, frozen=True, kw_only=True):
    """What 1,000 people of a given prevalence would meet."""

    prevalence: float
    missed: float
    false_alarms: float


class CalibrationBin(msgspec.Struct, frozen=True, kw_only=True):
    """One bin of a calibration curve: mean of the predictions, observed share of positives, weight in it."""

    predicted: float
    observed: float
    weight: float


def auroc(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney); ``nan`` unless both classes are there.

    ``labels`` 0/1 [n], ``scores`` [n] in any monotone scale, ``weights`` [n] (how often each row counts).
    """
    y, s, w = _arrays(labels, scores, weights)
    order = np.argsort(s, kind="stable")
    return _auroc_sorted(y[order], s[order], w[order])


def roc_curve(
    labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> tuple[Floats, Floats, Floats]:
    """False positive rate, sensitivity and threshold [k], from the strictest threshold (``inf``) to the laxest.

    A row is called positive at a threshold when its score is equal or above.
    """
    y, s, w = _arrays(labels, scores, weights)
    order = np.argsort(-s, kind="stable")
    y, s, w = y[order], s[order], w[order]
    last = np.flatnonzero(np.append(np.diff(s) != 0, True)) if s.size else np.zeros(0, dtype=np.intp)
    positive = np.cumsum(w * y)[last]
    negative = np.cumsum(w * (1 - y))[last]
    total_positive = float((w * y).sum())
    total_negative = float((w * (1 - y)).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = np.concatenate([[0.0], positive]) / total_positive
        false_positive_rate = np.concatenate([[0.0], negative]) / total_negative
    return false_positive_rate, sensitivity, np.concatenate([[np.inf], s[last]])


def rates_at(
    labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float, weights: npt.ArrayLike | None = None
) -> Rates:
    """Counts when a score equal to or above ``threshold`` is called positive."""
    y, s, w = _arrays(labels, scores, weights)
    called = s >= threshold
    return Rates(
        true_positive=float((w * y)[called].sum()),
        false_positive=float((w * (1 - y))[called].sum()),
        true_negative=float((w * (1 - y))[~called].sum()),
        false_negative=float((w * y)[~called].sum()),
    )


def threshold_for_sensitivity(
    labels: npt.ArrayLike, scores: npt.ArrayLike, wanted: float, weights: npt.ArrayLike | None = None
) -> float:
    """The highest threshold whose sensitivity is at least ``wanted`` on these data; ``nan`` without positives."""
    _, sensitivity, thresholds = roc_curve(labels, scores, weights)
    reached = np.flatnonzero(sensitivity[1:] >= wanted - 1e-12)
    return float(thresholds[1:][reached[0]]) if reached.size else math.nan


def threshold_for_specificity(
    labels: npt.ArrayLike, scores: npt.ArrayLike, wanted: float, weights: npt.ArrayLike | None = None
) -> float:
    """The lowest threshold, among the scores, whose specificity is at least ``wanted``; ``nan`` without negatives.

    When no score reaches it, the answer is just above the highest score.
    """
    false_positive_rate, _, thresholds = roc_curve(labels, scores, weights)
    if not thresholds.size or np.isnan(false_positive_rate).any():
        return math.nan
    kept = np.flatnonzero(1 - false_positive_rate >= wanted - 1e-12)
    index = int(kept[-1])
    return float(np.nextafter(thresholds[1], np.inf)) if index == 0 else float(thresholds[index])


def balanced_accuracy_threshold(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """The threshold of the best mean of sensitivity and specificity (Youden's index); ``nan`` unless both classes."""
    false_positive_rate, sensitivity, thresholds = roc_curve(labels, scores)
    index = sensitivity[1:] - false_positive_rate[1:]
    return float(thresholds[1:][int(np.argmax(index))]) if index.size and not np.isnan(index).any() else math.nan


def expected_calibration_error(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = 10, weights: npt.ArrayLike | None = None
) -> float:
    """Mean distance of predicted and observed share over ``bins`` equal-width bins, weighted by what lies in them.

    Naeini, Cooper, Hauskrecht: Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
    """
    curve = calibration_curve(labels, probabilities, bins, weights)
    total = sum(bin_.weight for bin_ in curve)
    return _ratio(sum(bin_.weight * abs(bin_.predicted - bin_.observed) for bin_ in curve), total)


def calibration_curve(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = 10, weights: npt.ArrayLike | None = None
) -> list[CalibrationBin]:
    """The filled bins of a calibration curve, of equal width on [0, 1], in order of the prediction."""
    y, p, w = _arrays(labels, probabilities, weights)
    index = np.clip((p * bins).astype(np.intp), 0, bins - 1)
    mass = np.bincount(index, w, bins)
    predicted = np.bincount(index, w * p, bins)
    observed = np.bincount(index, w * y, bins)
    return [
        CalibrationBin(predicted=float(predicted[i] / m), observed=float(observed[i] / m), weight=float(m))
        for i, m in enumerate(mass)
        if m > 0
    ]


def brier(labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Mean squared distance of probability and outcome (Brier 1950)."""
    y, p, w = _arrays(labels, probabilities, weights)
    return _ratio(float((w * (p - y) ** 2).sum()), float(w.sum()))


def per_thousand(sensitivity: float, specificity: float, prevalence: float) -> PerThousand:
    """Missed cases and false alarms among 1,000 people of whom ``prevalence`` (0 to 1) have the finding."""
    return PerThousand(
        prevalence=prevalence,
        missed=1000 * prevalence * (1 - sensitivity),
        false_alarms=1000 * (1 - prevalence) * (1 - specificity),
    )


def sensitivity_at(threshold: float) -> Statistic:
    """A statistic for ``bootstrap_by_patient``."""
    return lambda y, s, w: _ratio(float((w * y)[s >= threshold].sum()), float((w * y).sum()))


def specificity_at(threshold: float) -> Statistic:
    """A statistic for ``bootstrap_by_patient``."""
    return lambda y, s, w: _ratio(float((w * (1 - y))[s < threshold].sum()), float((w * (1 - y)).sum()))


def bootstrap_by_patient(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    patients: Sequence[object] | npt.NDArray[np.generic],
    statistic: Statistic | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """``statistic`` (AUROC when ``None``) on the data, with its percentile bootstrap interval over patients.

    ``patients`` [n] names whose row each is. Each resample draws as many patients as there are, with replacement, and
    weighs every row by how often its patient was drawn; resamples in which the figure is ``nan`` are left out.
    Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapters 8 and 13.
    """
    y, s, w = _arrays(labels, scores, None)
    order = np.argsort(s, kind="stable")
    y, s, w = y[order], s[order], w[order]
    _, whose = np.unique(np.asarray([str(patient) for patient in patients])[order], return_inverse=True)
    if whose.size != y.size:
        raise ValueError(f"{whose.size} patients for {y.size} rows; name one patient a row")
    compute = statistic or _auroc_sorted
    value = compute(y, s, w)
    count = int(whose.max()) + 1 if whose.size else 0
    random = np.random.default_rng(seed)
    draws = [
        compute(y, s, np.bincount(random.integers(0, count, count), minlength=count)[whose].astype(np.float64))
        for _ in range(resamples if count else 0)
    ]
    valid = np.asarray([draw for draw in draws if not math.isnan(draw)])
    if valid.size < max(2, resamples // 10):
        return Interval(value=value, low=math.nan, high=math.nan)
    low, high = np.quantile(valid, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high))


def _auroc_sorted(y: Floats, s: Floats, w: Floats) -> float:
    """AUROC of rows already in ascending order of score."""
    if not y.size:
        return math.nan
    starts = np.flatnonzero(np.append(True, np.diff(s) != 0))
    positive = np.add.reduceat(w * y, starts)
    negative = np.add.reduceat(w * (1 - y), starts)
    below = np.cumsum(negative) - negative
    return _ratio(float((positive * (below + negative / 2)).sum()), float(positive.sum() * negative.sum()))


def _arrays(
    labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    y = np.asarray(labels, dtype=np.float64).ravel()
    s = np.asarray(scores, dtype=np.float64).ravel()
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if not y.size == s.size == w.size:
        raise ValueError(f"{y.size} labels, {s.size} scores, {w.size} weights; they belong together row by row")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(s).any():
        raise ValueError("a score is nan; leave out what was not read")
    return y, s, w


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan
