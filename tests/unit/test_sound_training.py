"""Steps of the sound models' training that need no data: trees in ONNX, the front end, weights, the hard set."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from tools.train import kernel, sound_events, sound_gate, sound_hard_set, splits, stethoscopes, trees_onnx


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


@pytest.mark.parametrize("weakest", [False, True])
def test_a_kernel_machine_beside_the_trees_adds_its_logit_or_may_refuse_alone(tmp_path, weakest):
    ensemble = pytest.importorskip("sklearn.ensemble")
    random = np.random.default_rng(2)
    features = random.normal(0.0, 2.0, (300, 6)).astype(np.float32)
    inside = (features[:, 2:] ** 2).sum(axis=1) < 12.0
    forest = ensemble.ExtraTreesRegressor(n_estimators=5, min_samples_leaf=9, random_state=0)
    forest.fit(features[:, :2], (features[:, 0] > 0).astype(np.float64))
    told = kernel.Settings(strength=3.0, width=0.1, rows=250)
    machine = kernel.fit(features, inside, np.ones(300), told, np.arange(2, 6), share=0.5)
    assert np.mean((kernel.logits(machine, features) > 0) == inside) > 0.9
    path = tmp_path / "trees.onnx"
    trees_onnx.export(forest, path, 6, input_name="features", kernel=machine, weakest=weakest)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = np.concatenate([features, np.full((1, 6), 1e6, np.float32)])
    alone = np.clip(forest.predict(given[:, :2]), 0.01, 0.99)
    logit, beside = np.log(alone / (1 - alone)), kernel.logits(machine, given)
    expected = 1 / (1 + np.exp(-(np.minimum(logit, beside) if weakest else logit + beside)))
    np.testing.assert_allclose(session.run(None, {"features": given})[0][:, 0], expected, atol=1e-4)


def gate_cases(random, kind, count, centre, **told):
    """Sounds of one kind, two of each group: indices around ``centre`` in the first two columns, features in the others."""
    indices = random.normal(0.0, 0.5, (count, 4)).astype(np.float32) + np.float32(centre)
    return [
        sound_gate.Case(
            kind=kind,
            group=f"{told.get('source', kind)} {k // 2}",
            good=kind.startswith("good"),
            ruled_out=False,
            indices=row,
            family=told.get("family", kind),
            other=told.get("other", False),
            source=told.get("source", ""),
        )
        for k, row in enumerate(indices)
    ]


def test_a_gate_refuses_what_is_bad_and_what_is_of_another_part_each_by_its_own_judge(tmp_path):
    pytest.importorskip("sklearn.ensemble")
    random = np.random.default_rng(4)
    found = [
        *gate_cases(random, "good", 120, [0, 0, 0, 0], source="here"),
        *gate_cases(random, "good", 60, [0, 0, 1, 0], source="there"),
        *gate_cases(random, "noise", 80, [3, 0, 0, 0]),
        *gate_cases(random, "hum", 80, [0, 3, 0, 0]),
        *gate_cases(random, "lung", 90, [0, 0, 0, 3], family="lung", other=True, source="one"),
        *gate_cases(random, "lung, cut", 90, [0, 0, 0, 4], family="lung", other=True, source="two"),
    ]
    settings = sound_gate.Settings(
        seconds=(1.0, 2.0),
        copies=1,
        refused_good=0.05,
        rules={},
        short=(1.0, 2.0),
        machine=kernel.Settings(strength=3.0, width=0.3),
    )
    shape = sound_gate.layout(["flux", "flatness"], 4)
    assert shape.telling.tolist() == [0, 2, 3]
    outcome = sound_gate.build(found, settings, shape, tmp_path / "gate.onnx", lambda _: None)
    refused = {name: entry["refused"] for name, entry in outcome.table.items()}
    assert refused["good recordings, all"] <= 0.06
    assert min(refused[kind] for kind in ("noise", "hum", "lung, all")) > 0.9
    assert refused["lung of two, none of which the gate ever met"] > 0.9
    assert "good recordings of there, none of which the gate ever met" in refused
    assert refused["lung, a kind the gate never met"] < 0.5  # nothing else tells of it, and the card says so
    session = onnxruntime.InferenceSession(tmp_path / "gate.onnx", providers=["CPUExecutionProvider"])
    good = session.run(["good"], {"indices": np.stack([case.indices for case in found])})[0][:, 0]
    assert np.mean((good > outcome.threshold) == [case.good for case in found]) > 0.93


def test_another_stethoscope_shifts_all_parts_of_the_beat_alike_and_nothing_else():
    features = np.random.default_rng(0).normal(size=(10, 9)).astype(np.float32)
    bands = np.array([[0, 1, 2], [4, 5, 6]])
    made = stethoscopes.recoloured(features, bands, 2, 0.7, 1)
    assert made.shape == (30, 9)
    assert np.array_equal(made[:10], features)
    shift = made[10:] - np.tile(features, (2, 1))
    np.testing.assert_allclose(shift[:, 0:3], shift[:, 4:7], atol=1e-5)
    assert not shift[:, [0, 3, 4, 7, 8]].any()
    assert np.abs(shift[:, 1:3]).min() > 0


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
