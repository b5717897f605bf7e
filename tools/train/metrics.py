"""Figures of merit of a binary score, with 95 % intervals from resampling patients.

What this module keeps true: the unit of resampling is the patient (or block), never the file, because files of one
patient are alike. AUROC is the Mann–Whitney statistic with ties counted half (Hanley & McNeil 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
RESAMPLES = 1000


def auroc(labels: Floats, scores: Floats) -> float:
    """Area under the ROC curve; NaN unless both classes are present. ``labels`` are 0/1, shapes ``[n]``."""
    positive = np.asarray(labels) > 0.5
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    total = float(mean_rank[inverse][positive].sum())
    return (total - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def sensitivity(labels: Floats, decisions: Floats) -> float:
    """Share of positives called positive; NaN without positives."""
    positive = np.asarray(labels) > 0.5
    return float(np.mean(np.asarray(decisions)[positive] > 0.5)) if positive.any() else float("nan")


def specificity(labels: Floats, decisions: Floats) -> float:
    """Share of negatives called negative; NaN without negatives."""
    negative = np.asarray(labels) <= 0.5
    return float(np.mean(np.asarray(decisions)[negative] <= 0.5)) if negative.any() else float("nan")


def interval(
    labels: Floats,
    scores: Floats,
    patients: Sequence[str],
    statistic: Callable[[Floats, Floats], float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of ``statistic`` over patients drawn with replacement; NaN if never defined."""
    groups: dict[str, list[int]] = {}
    for index, patient in enumerate(patients):
        groups.setdefault(patient, []).append(index)
    members = [np.asarray(group) for group in groups.values()]
    labels, scores = np.asarray(labels), np.asarray(scores)
    random = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        chosen = np.concatenate([members[i] for i in random.integers(0, len(members), len(members))])
        value = statistic(labels[chosen], scores[chosen])
        if not np.isnan(value):
            values.append(value)
    if not values:
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def calibration_error(labels: Floats, probabilities: Floats, bins: int = 10) -> float:
    """Expected calibration error over bins of equal count (Naeini 2015 with adaptive bins)."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [len(part) * abs(float(labels[part].mean() - probabilities[part].mean())) for part in parts]
    return float(sum(gaps) / len(labels))


def summary(labels: Floats, scores: Floats, threshold: float, patients: Sequence[str]) -> dict[str, object]:
    """AUROC, sensitivity and specificity at ``threshold``, each as ``{value, low, high}``, with the counts behind them."""
    decisions = (np.asarray(scores) >= threshold).astype(np.float64)
    positive = np.asarray(labels) > 0.5

    def entry(statistic: Callable[[Floats, Floats], float], values: Floats) -> dict[str, float | None]:
        low, high = interval(labels, values, patients, statistic)
        figures = {"value": statistic(labels, values), "low": low, "high": high}
        return {name: None if np.isnan(value) else round(value, 4) for name, value in figures.items()}

    return {
        "cases": len(labels),
        "positives": int(positive.sum()),
        "patients": len(set(patients)),
        "auroc": entry(auroc, scores),
        "sensitivity": entry(sensitivity, decisions),
        "specificity": entry(specificity, decisions),
    }


def per_thousand(sensitivity_: float, specificity_: float, prevalence: float) -> dict[str, float]:
    """Missed cases and false alarms expected among 1,000 captures at ``prevalence`` (0 to 1)."""
    return {
        "prevalence": prevalence,
        "missed": round(1000 * prevalence * (1 - sensitivity_), 1),
        "false_alarms": round(1000 * (1 - prevalence) * (1 - specificity_), 1),
    }


def temperature(labels: Floats, logits: Floats) -> tuple[float, float]:
    """Temperature and bias for ``sigmoid((logit + bias) / temperature)`` by maximum likelihood (Platt 1999).

    The slope is kept positive; a little regularisation towards (1, 0) keeps separable scores finite.
    """
    from scipy.optimize import minimize

    targets = np.where(np.asarray(labels) > 0.5, 1.0, 0.0)
    weights = np.where(targets > 0.5, 0.5 / max(targets.mean(), 1e-6), 0.5 / max(1 - targets.mean(), 1e-6))

    def loss(parameters: Floats) -> float:
        z = (np.asarray(logits) + parameters[1]) / np.exp(parameters[0])
        nll = np.logaddexp(0.0, z) - targets * z
        return float(np.mean(weights * nll) + 1e-3 * float(np.sum(parameters**2)))

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"maxiter": 2000})
    return float(np.exp(found.x[0])), float(found.x[1])
