"""Steps of the sound models' training that need no data: trees in ONNX, the front end, weights, the hard set."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from tools.train import sound_hard_set, splits, trees_onnx


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
