"""What is derived for a CPU says what ships, with no more error than quantisation itself."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from appliance.inference import derive, kernels
from appliance.inference.engine import EngineError
from appliance.inference.forms import optimise
from appliance.inference.onnx import load
from tests.layers import judge
from tests.networks import KINDS, images, quantised

SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def run(path: Path, pictures: np.ndarray) -> np.ndarray:
    return load(path).run({"image": pictures})["logits"]


@SLOW
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**16),
    method=st.sampled_from(["minmax", "percentile"]),
    unsigned=st.booleans(),
)
def test_each_layer_of_the_derived_form_is_exact_but_for_half_a_step_of_its_own(
    kind: str, seed: int, method: str, unsigned: bool
) -> None:
    """From the same inputs each activation is what float arithmetic gives, rounded to the derived form's own grid.

    The bound: rounding to a grid of step s' moves a value within its range by at most s'/2; an INT32 bias was rounded to
    steps of b = input scale × weight scale, at most b/2; float sums in another order add 1e-5 of the largest value. The
    shipped form has the bound s/2 (and s/2 more for each pair between a layer and its activation, which the derived one
    has not), and s' ≤ s: so no layer has more error than quantisation itself. How much of it reaches the end is the
    network's own matter and the same for both; for the bundles that ship it is in their golden tolerances.
    """
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        _, int8 = quantised(kind, Path(folder), seed=seed, method=method)
        patch.setattr(kernels, "suit", lambda graph: None)  # exact in integers: shown below, rewrite by rewrite
        shipped = onnx.load(int8)
        judged = list(judge(shipped, derive.derive(shipped, unsigned=unsigned), images(4, seed=seed + 1), Path(folder)))
    assert len(judged) >= 4
    for one in judged:
        assert one.error <= one.bound, one
        assert one.step <= one.shipped_step * (1 + 1e-6), one


@SLOW
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**16), pictures=st.integers(1, 4))
def test_the_ort_form_says_exactly_what_the_derived_form_says(kind: str, seed: int, pictures: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, int8 = quantised(kind, Path(folder), seed=seed)
        derived, optimised = Path(folder) / "derived.onnx", Path(folder) / "model.ort"
        derive.write(int8, derived, unsigned=True)
        optimise(derived, optimised)
        batch = images(pictures, seed=seed)
        np.testing.assert_array_equal(run(derived, batch), run(optimised, batch))


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantised_layer_becomes_an_integer_kernel(kind: str, tmp_path: Path) -> None:
    _, int8 = quantised(kind, tmp_path)
    derived, optimised = tmp_path / "derived.onnx", tmp_path / "optimised.onnx"
    derive.write(int8, derived, unsigned=True)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    ort.InferenceSession(str(derived), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(derived).graph.node
    quantised_after = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    wanted = sum(node.op_type in {"Conv", "Gemm"} and node.output[0] in quantised_after for node in nodes)
    kernels = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert kernels["QLinearConv"] + kernels["QGemm"] >= wanted
    assert wanted >= {"mobilenet": 9, "resnet": 5, "densenet": 1}[kind]


def chain(*, bias: float, weight_scale: float = 0.01) -> onnx.ModelProto:
    """image → Q/DQ → 1×1 convolution, one weight of 5 steps and a bias → Q/DQ → ReLU6 → Q/DQ → logits."""
    values = {
        "s0": np.float32(0.02),
        "s1": np.float32(0.05),
        "s2": np.float32(6 / 127),
        "z": np.int8(0),
        "w": np.full((1, 1, 1, 1), 5, np.int8),
        "ws": np.array([weight_scale], np.float32),
        "wz": np.zeros(1, np.int8),
        "b": np.array([bias], np.float32),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["image", "s0", "z"], ["q0"]),
        node("DequantizeLinear", ["q0", "s0", "z"], ["d0"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0),
        node("Conv", ["d0", "dw", "b"], ["c"]),
        node("QuantizeLinear", ["c", "s1", "z"], ["q1"]),
        node("DequantizeLinear", ["q1", "s1", "z"], ["d1"]),
        node("Clip", ["d1", "low", "high"], ["r"]),
        node("QuantizeLinear", ["r", "s2", "z"], ["q2"]),
        node("DequantizeLinear", ["q2", "s2", "z"], ["logits"]),
    ]
    shape = ["N", 1, 2, 2]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_activation_and_pair_go_and_their_quantisation_is_unsigned_with_the_same_range() -> None:
    derived = derive.derive(chain(bias=0.5), unsigned=True)
    assert [node.op_type for node in derived.graph.node] == [
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "Conv",
        "QuantizeLinear",
        "DequantizeLinear",
    ]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in derived.graph.initializer}
    first, last = derived.graph.node[0], derived.graph.node[5]
    assert (values[first.input[2]].dtype, int(values[first.input[2]])) == (np.uint8, 128)
    assert (values[last.input[2]].dtype, int(values[last.input[2]])) == (np.uint8, 0)
    assert float(values[last.input[1]]) * 255 == pytest.approx(6.0, rel=1e-6)
    assert "z" not in values


@given(pixels=st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4), bias=st.floats(-1, 8))
@settings(max_examples=60, deadline=None)
def test_a_saturation_stands_for_relu6(pixels: list[float], bias: float) -> None:
    shipped = chain(bias=bias)
    derived = derive.derive(shipped, unsigned=True)
    image = np.array(pixels, np.float32).reshape(1, 1, 2, 2)

    def output(model: onnx.ModelProto) -> np.ndarray:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"image": image})[0]

    # Half a step of the pair that went, half a step of the last quantisation, and the bias's own rounding.
    assert np.max(np.abs(output(derived) - output(shipped))) <= 0.05 / 2 + 6 / 127 / 2 + 6 / 255 / 2 + 1e-3


def layer(weights: np.ndarray, size: tuple[int, int], *, after: bool, **how: list[int]) -> onnx.ModelProto:
    """image → Q/DQ → convolution with INT8 ``weights`` per channel and a bias (→ Q/DQ, when ``after``) → logits."""
    count, channels = weights.shape[:2]
    values = {
        "s0": np.float32(0.02),
        "s1": np.float32(0.1),
        "z": np.int8(0),
        "w": weights,
        "ws": np.linspace(0.001, 0.01, count, dtype=np.float32),
        "wz": np.zeros(count, np.int8),
        "b": np.linspace(-1, 1, count, dtype=np.float32),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["image", "s0", "z"], ["q0"]),
        node("DequantizeLinear", ["q0", "s0", "z"], ["d0"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0),
        node("Conv", ["d0", "dw", "b"], ["c" if after else "logits"], kernel_shape=list(weights.shape[2:]), **how),
    ]
    if after:
        nodes.append(node("QuantizeLinear", ["c", "s1", "z"], ["q1"]))
        nodes.append(node("DequantizeLinear", ["q1", "s1", "z"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, *size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", count, *map(str, range(len(size)))])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def both(model: onnx.ModelProto, image: np.ndarray, *, unsigned: bool) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The derived form's operators and its output, and the output without the rewrites of ``kernels``."""

    def output(derived: onnx.ModelProto) -> np.ndarray:
        session = ort.InferenceSession(derived.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"image": image})[0]

    suited = derive.derive(model, unsigned=unsigned)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "suit", lambda graph: None)
        plain = derive.derive(model, unsigned=unsigned)
    return [node.op_type for node in suited.graph.node], output(suited), output(plain)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 7),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    pads=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    unsigned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_strided_first_layer_over_blocks_gives_exactly_the_same(
    kernel: int, channels: int, size: tuple[int, int], pads: list[int], unsigned: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weights = random.integers(-127, 128, (5, channels, kernel, kernel)).astype(np.int8)
    size = (2 * size[0], 2 * size[1])
    model = layer(weights, size, after=True, strides=[2, 2], pads=pads)
    image = random.normal(0, 1, (2, channels, *size)).astype(np.float32)
    kinds, suited, plain = both(model, image, unsigned=unsigned)
    assert "SpaceToDepth" in kinds
    np.testing.assert_array_equal(suited, plain)


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 6),
    channels=st.integers(1, 9),
    sides=st.lists(st.integers(3, 7), min_size=1, max_size=2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    unsigned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_float_convolution_over_gathered_neighbourhoods_gives_the_same(
    count: int,
    channels: int,
    sides: list[int],
    kernel: int,
    stride: int,
    dilation: int,
    pads: list[int],
    unsigned: bool,
    seed: int,
) -> None:
    rank = len(sides)
    random = np.random.default_rng(seed)
    ends = pads[: 2 * rank]
    reach = dilation * (kernel - 1) + 1
    sides = [max(side, reach) for side in sides]
    weights = random.integers(-127, 128, (count, channels, *[kernel] * rank)).astype(np.int8)
    how = {"strides": [stride] * rank, "dilations": [dilation] * rank, "pads": ends}
    model = layer(weights, tuple(sides), after=False, **how)  # type: ignore[arg-type]
    image = random.normal(0, 1, (2, channels, *sides)).astype(np.float32)
    kinds, suited, plain = both(model, image, unsigned=unsigned)
    assert "MatMulIntegerToFloat" in kinds or "MatMul" in kinds
    np.testing.assert_allclose(suited, plain, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 20),
    channels=st.integers(1, 20),
    sides=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    unsigned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_float_one_by_one_convolution_as_a_matrix_product_gives_the_same(
    count: int, channels: int, sides: list[int], unsigned: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weights = random.integers(-127, 128, (count, channels, *[1] * len(sides))).astype(np.int8)
    model = layer(weights, tuple(sides), after=False)  # type: ignore[arg-type]
    image = random.normal(0, 1, (2, channels, *sides)).astype(np.float32)
    kinds, suited, plain = both(model, image, unsigned=unsigned)
    assert "MatMul" in kinds
    np.testing.assert_allclose(suited, plain, atol=1e-4)


@pytest.mark.parametrize(
    "how", [{"auto_pad": "SAME_UPPER"}, {"dilations": [2, 2]}, {"strides": [2, 1]}, {"strides": [1, 1]}]
)
def test_a_layer_of_another_geometry_is_left_as_it_is(how: dict[str, list[int]]) -> None:
    weights = np.random.default_rng(0).integers(-127, 128, (3, 1, 3, 3)).astype(np.int8)
    model = layer(weights, (8, 8), after=True, **{"strides": [2, 2], **how})
    image = np.random.default_rng(1).normal(0, 1, (1, 1, 8, 8)).astype(np.float32)
    kinds, suited, plain = both(model, image, unsigned=True)
    assert "SpaceToDepth" not in kinds
    np.testing.assert_array_equal(suited, plain)


def test_a_bias_beyond_int32_widens_the_step_of_its_dead_channel() -> None:
    derived = derive.derive(chain(bias=3.0, weight_scale=1e-9), unsigned=True)
    session = ort.InferenceSession(derived.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": np.ones((1, 1, 2, 2), np.float32)})[0]
    np.testing.assert_allclose(logits, 3.0, atol=6 / 255)


def test_a_file_that_is_no_model_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(EngineError, match="install the bundle again"):
        derive.write(tmp_path / "model.onnx", tmp_path / "derived.onnx", unsigned=True)
