"""Steps of the sound models' training that need no data: trees in ONNX, the front end, weights, the hard set."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from tools.train import sound_events, sound_hard_set, splits, trees_onnx


def answers(forest, path, features):
    trees_onnx.export(forest, path, features.shape[1], input_name="features")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probability"], {"features": features})[0]


@pytest.mark.parametrize("targets", [1, 3])
def test_exported_trees_say_what_scikit_learn_says_even_on_a_threshold(tmp_path, targets):
    ensemble = pytest.importorskip("sklearn.ensemble")
    random = np.random.default_rng(0)
    # Few distinct values, so that many features lie exactly on a threshold or one float beside it.
    features = (random.integers(0, 7, (400, 5)) / np.float32(3.0)).astype(np.float32)
    labels = (random.random((400, targets)) < features[:, :1] / 3).astype(np.float64)
    forest = ensemble.ExtraTreesRegressor(n_estimators=20, min_samples_leaf=2, random_state=0)
    forest.fit(features, labels[:, 0] if targets == 1 else labels)
    beside = np.nextafter(features, np.float32(9.0))
    for given in (features, beside):
        expected = np.clip(forest.predict(given).reshape(len(given), -1), 0.01, 0.99)
        np.testing.assert_allclose(answers(forest, tmp_path / "trees.onnx", given), expected, atol=1e-5)


def test_a_linear_part_beside_the_trees_adds_its_logit_to_theirs(tmp_path):
    ensemble = pytest.importorskip("sklearn.ensemble")
    random = np.random.default_rng(1)
    features = random.normal(0.0, 2.0, (200, 4)).astype(np.float32)
    forest = ensemble.ExtraTreesRegressor(n_estimators=5, min_samples_leaf=9, random_state=0)
    forest.fit(features, (features[:, :2] > 0).astype(np.float64))
    mean, spread, weight, bias = features.mean(0), features.std(0), random.normal(0, 1, (4, 2)), np.array([0.3, -0.2])
    path = tmp_path / "trees.onnx"
    linear = trees_onnx.Linear(mean=mean, spread=spread, weight=weight, bias=bias)
    trees_onnx.export(forest, path, 4, input_name="features", linear=linear)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = np.concatenate([features, np.full((1, 4), 1e6, np.float32)])
    alone = np.clip(forest.predict(given), 0.01, 0.99)
    joined = np.log(alone / (1 - alone)) + np.clip((given - mean) / spread, -4, 4) @ weight + bias
    expected = 1 / (1 + np.exp(-joined))
    np.testing.assert_allclose(session.run(None, {"features": given})[0], expected, atol=1e-4)


def test_an_event_laid_over_a_breath_is_heard_and_raises_only_its_own_targets():
    breath = np.random.default_rng(0).standard_normal(10240).astype(np.float32)
    kinds = {"crackles": [1.0, 1.0, 0.0], "wheeze": [1.0, 0.0, 1.0]}
    raised = set()
    for seed in range(20):
        random = np.random.default_rng(seed)
        louder, target = sound_events.added(breath, np.full(3, 0.1, np.float32), kinds, 4000, random)
        assert np.isfinite(louder).all()
        assert not np.array_equal(louder, breath)
        raised.add(tuple(round(float(one), 2) for one in target))
    assert raised == {(0.95, 0.95, 0.1), (0.95, 0.1, 0.95)}


def test_a_made_up_wheeze_is_a_line_and_crackles_are_short():
    random = np.random.default_rng(3)
    tone, clicks = (make(10240, 4000, random) for make in (sound_events.wheeze, sound_events.crackles))
    share = np.sort(np.abs(np.fft.rfft(tone)) ** 2)[::-1]
    assert share[:200].sum() > 0.95 * share.sum()
    assert np.count_nonzero(np.abs(tone) > 0) >= 0.14 * 4000
    assert 0.0 < np.mean(np.abs(clicks) > 0) < 0.15


def test_thresholds_round_down_so_that_equality_stays_on_the_same_side():
    exact = np.array([0.1, 1 / 3, -1 / 3, 2.0, 1e-30])
    down = trees_onnx.rounded_down(exact)
    assert (down.astype(np.float64) <= exact).all()
    assert (np.nextafter(down, np.float32(np.inf)).astype(np.float64) > exact).all()


@pytest.mark.parametrize("kind", sound_hard_set.KINDS)
def test_a_made_up_sound_is_the_same_again_and_within_full_scale(kind):
    first, second = (sound_hard_set.made(kind, 3, 2.0, 4000) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.isfinite(first).all()
    assert 0.05 < np.max(np.abs(first)) <= 1.0


@pytest.mark.parametrize("kind", sound_hard_set.SPOILT)
def test_spoiling_changes_a_sound_and_stays_finite(kind):
    good = np.sin(np.arange(16000) / 9).astype(np.float32)
    bad = sound_hard_set.spoil(kind, good, 1, 4000)
    assert np.isfinite(bad).all()
    assert bad.shape != good.shape or not np.allclose(bad, good, atol=1e-3)


def test_an_unknown_way_to_spoil_is_named():
    with pytest.raises(ValueError, match="melted"):
        sound_hard_set.spoil("melted", np.ones(100, np.float32), 0, 4000)


def test_every_cell_of_source_and_label_weighs_the_same_but_for_tiny_ones():
    pytest.importorskip("torch")
    from tools.train.sound_model import weigher

    labels = ["x"] * 60 + ["y"] * 30 + ["y"] * 5
    sources = np.array(["a"] * 90 + ["b"] * 5)
    groups = np.array(["one"] * 50 + ["two"] * 10 + ["three"] * 35)
    plain, fair = (weigher(labels, sources, groups, 20, power)(np.arange(95)) for power in (0.0, 1.0))
    assert plain[:60].sum() == pytest.approx(1.0)
    assert plain[60:90].sum() == pytest.approx(1.0)
    assert plain[90:].sum() == pytest.approx(0.25)
    assert fair[:50].sum() == pytest.approx(fair[50:60].sum())


def test_the_front_end_in_the_graph_is_the_one_of_training():
    torch = pytest.importorskip("torch")
    from tools.train.sound_net import FrontEnd, LogBands

    front = FrontEnd(frame=100, hop=25, edges_hz=(25.0, 90.0, 200.0, 900.0), skip=2)
    layer = LogBands(2000, front)
    samples = torch.randn(2, 3200)
    torch.testing.assert_close(layer(samples), layer.fast(samples), atol=1e-4, rtol=1e-4)


def test_blocks_stay_together():
    groups = [f"g{k // 7}" for k in range(100)]
    fold = splits.folds(groups, ["s"] * 100, 5)
    assert all(len(set(fold[[k for k in range(100) if groups[k] == group]])) == 1 for group in set(groups))
