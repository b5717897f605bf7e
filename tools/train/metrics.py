"""What the cards say of a score, on top of ``appliance.reading.metrics``: figures with intervals by patient, calibration.

What this module keeps true: the figures of training are computed by the same functions as a clinic's own evaluation; a
figure that can't be computed is ``None`` in the summary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from appliance.reading import metrics
from appliance.reading.metrics import auroc

__all__ = ["auroc", "per_thousand", "summary", "temperature", "threshold_for_sensitivity"]

Floats = npt.NDArray[np.floating]
NEAR = 0.05
"""Logits: about what INT8 rounding moves a score by."""


def summary(labels: Floats, scores: Floats, threshold: float, patients: Sequence[str]) -> dict[str, object]:
    """AUROC, sensitivity and specificity at ``threshold``, each as ``{value, low, high}``, with the counts behind them."""
    statistics = {
        "auroc": None,
        "sensitivity": metrics.sensitivity_at(threshold),
        "specificity": metrics.specificity_at(threshold),
    }
    entry: dict[str, object] = {
        "cases": len(labels),
        "positives": int(np.sum(np.asarray(labels) > 0.5)),
        "patients": len(set(patients)),
    }
    for name, statistic in statistics.items():
        found = metrics.bootstrap_by_patient(labels, scores, patients, statistic)
        figures = {"value": found.value, "low": found.low, "high": found.high}
        entry[name] = {key: None if np.isnan(value) else round(value, 4) for key, value in figures.items()}
    return entry


def per_thousand(sensitivity: float, specificity: float, prevalence: float) -> dict[str, float]:
    """Missed cases and false alarms expected among 1,000 captures at ``prevalence`` (0 to 1), rounded to a tenth."""
    found = metrics.per_thousand(sensitivity, specificity, prevalence)
    return {"prevalence": prevalence, "missed": round(found.missed, 1), "false_alarms": round(found.false_alarms, 1)}


def threshold_for_sensitivity(
    labels: Floats, scores: Floats, wanted: float, slack: float = 0.0, crowd: Floats | None = None
) -> float:
    """A threshold with at least ``wanted`` sensitivity, halfway between two neighbouring scores.

    On a case's own score, the least rounding of another engine would turn that case's decision. With ``slack`` it is, among
    those that give up to ``wanted + slack``, the one that fewest scores lie near (``NEAR``): for few cases, where one
    threshold is as good as the next but not as firm. ``crowd``: the scores counted, those of unlabelled cases too; without
    it ``scores``.
    """
    highest = metrics.threshold_for_sensitivity(labels, scores, wanted)
    lowest = metrics.threshold_for_sensitivity(labels, scores, min(1.0, wanted + slack))
    ordered = np.unique(scores)
    upper = np.flatnonzero((ordered <= highest) & (ordered >= lowest))
    upper = upper[upper > 0]
    if not upper.size:
        return highest
    middles = (ordered[upper] + ordered[upper - 1]) / 2
    if slack <= 0:
        return float(middles[-1])
    counted = np.asarray(scores if crowd is None else crowd)
    close = [int(np.sum(np.abs(counted - middle) < NEAR)) for middle in middles]
    return float(middles[len(middles) - 1 - int(np.argmin(close[::-1]))])


def temperature(labels: Floats, logits: Floats, weights: Floats | None = None) -> tuple[float, float]:
    """Temperature and bias for ``sigmoid((logit + bias) / temperature)`` by maximum likelihood (Platt 1999).

    Without ``weights`` ``[n]`` both classes weigh the same, so the probability is that at a prevalence of one half. A little
    regularisation towards (1, 0) keeps separable scores finite.
    """
    from scipy.optimize import minimize

    targets = np.where(np.asarray(labels) > 0.5, 1.0, 0.0)
    if weights is None:
        weights = np.where(targets > 0.5, 0.5 / max(targets.mean(), 1e-6), 0.5 / max(1 - targets.mean(), 1e-6))

    def loss(parameters: Floats) -> float:
        z = (np.asarray(logits) + parameters[1]) / np.exp(parameters[0])
        likelihood = np.logaddexp(0.0, z) - targets * z
        return float(np.average(likelihood, weights=weights) + 1e-3 * float(np.sum(parameters**2)))

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"maxiter": 2000})
    return float(np.exp(found.x[0])), float(found.x[1])
