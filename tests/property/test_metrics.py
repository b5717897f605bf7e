"""Claims about the figures: they agree with scikit-learn, and intervals resample patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from appliance.reading import metrics


@st.composite
def scored(draw):
    n = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)))
    scores = draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))
    return np.array(labels), np.array(scores) / 12


@given(scored())
def test_auroc_is_that_of_scikit_learn_also_with_ties(data):
    y, s = data
    assert metrics.auroc(y, s) == pytest.approx(reference.roc_auc_score(y, s), abs=1e-12)


@given(scored(), st.integers(0, 2**31))
def test_weighted_auroc_is_that_of_repeated_rows(data, seed):
    y, s = data
    w = np.random.default_rng(seed).integers(0, 4, y.size)
    w[np.flatnonzero(y == 1)[0]] = w[np.flatnonzero(y == 0)[0]] = 1
    assert metrics.auroc(y, s, w) == pytest.approx(reference.roc_auc_score(np.repeat(y, w), np.repeat(s, w)), abs=1e-12)


@given(scored())
def test_roc_curve_is_that_of_scikit_learn(data):
    y, s = data
    ours = metrics.roc_curve(y, s)
    theirs = reference.roc_curve(y, s, drop_intermediate=False)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@given(scored(), st.integers(0, 12))
def test_rates_at_a_threshold_are_the_confusion_matrix(data, cut):
    y, s = data
    tn, fp, fn, tp = reference.confusion_matrix(y, s >= cut / 12, labels=[0, 1]).ravel()
    rates = metrics.rates_at(y, s, cut / 12)
    assert (rates.true_negative, rates.false_positive, rates.false_negative, rates.true_positive) == (tn, fp, fn, tp)
    assert rates.sensitivity == pytest.approx(tp / (tp + fn))
    assert rates.specificity == pytest.approx(tn / (tn + fp))
    assert metrics.sensitivity_at(cut / 12)(y, s, np.ones(y.size)) == pytest.approx(rates.sensitivity)
    assert metrics.specificity_at(cut / 12)(y, s, np.ones(y.size)) == pytest.approx(rates.specificity)


@given(scored(), st.floats(0.05, 1.0))
def test_the_threshold_for_a_sensitivity_reaches_it_and_no_higher_score_does(data, wanted):
    y, s = data
    threshold = metrics.threshold_for_sensitivity(y, s, wanted)
    assert metrics.rates_at(y, s, threshold).sensitivity >= wanted - 1e-9
    higher = s[s > threshold]
    assert not higher.size or metrics.rates_at(y, s, higher.min()).sensitivity < wanted


@given(scored(), st.floats(0.05, 1.0))
def test_the_threshold_for_a_specificity_reaches_it_and_no_lower_score_does(data, wanted):
    y, s = data
    threshold = metrics.threshold_for_specificity(y, s, wanted)
    assert metrics.rates_at(y, s, threshold).specificity >= wanted - 1e-9
    lower = s[s < threshold]
    assert not lower.size or metrics.rates_at(y, s, lower.max()).specificity < wanted


@given(scored())
def test_brier_is_that_of_scikit_learn(data):
    y, p = data
    assert metrics.brier(y, p) == pytest.approx(reference.brier_score_loss(y, p), abs=1e-12)


@given(scored())
def test_the_youden_threshold_has_the_best_balanced_accuracy(data):
    y, s = data
    best = max(reference.balanced_accuracy_score(y, s >= t) for t in s)
    chosen = metrics.balanced_accuracy_threshold(y, s)
    assert reference.balanced_accuracy_score(y, s >= chosen) == pytest.approx(best)


def test_calibration_error_is_zero_for_honest_and_large_for_boastful_probabilities():
    random = np.random.default_rng(1)
    p = random.uniform(0, 1, 40_000)
    y = (random.uniform(0, 1, p.size) < p).astype(int)
    assert metrics.expected_calibration_error(y, p) < 0.02
    boastful = np.where(p > 0.5, 0.99, 0.01)
    assert metrics.expected_calibration_error(y, boastful) == pytest.approx(0.24, abs=0.02)


def test_calibration_error_of_a_worked_example():
    assert metrics.expected_calibration_error([1, 0, 0, 0], [0.9, 0.9, 0.1, 0.1]) == pytest.approx(0.25)


def test_per_thousand_counts_people():
    seen = metrics.per_thousand(0.9, 0.8, 0.05)
    assert seen.missed == pytest.approx(5)
    assert seen.false_alarms == pytest.approx(190)


def test_a_figure_that_cannot_be_computed_is_nan_not_a_number():
    assert math.isnan(metrics.auroc([1, 1], [0.2, 0.3]))
    assert math.isnan(metrics.auroc([], []))
    assert math.isnan(metrics.rates_at([0, 0], [0.1, 0.2], 0.5).sensitivity)
    assert math.isnan(metrics.threshold_for_sensitivity([0, 0], [0.1, 0.2], 0.9))
    assert math.isnan(metrics.threshold_for_specificity([1, 1], [0.1, 0.2], 0.9))


@pytest.mark.parametrize(("labels", "scores"), [([0, 1], [0.5]), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, float("nan")])])
def test_rows_that_do_not_fit_are_an_error(labels, scores):
    with pytest.raises(ValueError):
        metrics.auroc(labels, scores)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_copies_of_a_patient_do_not_narrow_the_interval(seed):
    random = np.random.default_rng(seed)
    y = np.arange(40) % 2
    s = y + random.normal(0, 1.2, y.size)
    patients = np.arange(y.size)
    once = metrics.bootstrap_by_patient(y, s, patients, resamples=200)
    often = metrics.bootstrap_by_patient(np.tile(y, 9), np.tile(s, 9), np.tile(patients, 9), resamples=200)
    assert often == once
    assert once.low <= once.value <= once.high


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(3)
    hits = 0
    for trial in range(60):
        y = (np.arange(120) % 2).astype(int)
        s = y + random.normal(0, 1, y.size)
        interval = metrics.bootstrap_by_patient(y, s, range(y.size), resamples=200, seed=trial)
        hits += interval.low <= 0.7602 <= interval.high  # Phi(1 / sqrt 2)
    assert hits >= 51
