"""Sizes that follow from fixed axes become constants; those that follow from a free one do not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from appliance.inference import shapes


def cut_to_the_shorter(axis: int) -> onnx.ModelProto:
    """Two inputs; the second is cut along ``axis`` to the length that the first has there, then both are joined."""
    values = {"which": np.int64(axis), "zero": np.zeros(1, np.int64), "axis": np.array([axis], np.int64)}
    node = helper.make_node
    nodes = [
        node("Shape", ["a"], ["shape"]),
        node("Gather", ["shape", "which"], ["length"]),
        node("Unsqueeze", ["length", "zero"], ["end"]),
        node("Slice", ["b", "zero", "end", "axis"], ["cut"]),
        node("Concat", ["a", "cut"], ["out"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "cut",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 2, 5]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, ["M", 2, 9 if axis == 2 else 5]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("axis", "operators"), [(2, ["Slice", "Concat"]), (0, None)])
def test_only_what_follows_from_fixed_axes_is_settled_and_the_result_is_the_same(
    axis: int, operators: list[str] | None
) -> None:
    model = cut_to_the_shorter(axis)
    before = [node.op_type for node in model.graph.node]
    a = np.random.default_rng(0).random((3, 2, 5), np.float32)
    b = np.random.default_rng(1).random((3, 2, 9) if axis == 2 else (4, 2, 5), np.float32)

    def output() -> np.ndarray:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"a": a, "b": b})[0]

    expected = output()
    shapes.settle(model)
    assert [node.op_type for node in model.graph.node] == (operators or before)
    np.testing.assert_array_equal(output(), expected)
    if axis == 2:
        told = {
            info.name: [size.dim_value for size in info.type.tensor_type.shape.dim] for info in model.graph.value_info
        }
        assert told["cut"][1:] == [2, 5]


@pytest.mark.parametrize("rest", [[-1], [5, 2], [10, 1]])
@pytest.mark.parametrize("copied", [1, 2])
def test_a_reshape_that_works_out_its_own_leading_axes_copies_them(rest: list[int], copied: int) -> None:
    values = {"zero": np.zeros(1, np.int64), "end": np.array([copied], np.int64), "rest": np.array(rest, np.int64)}
    if copied == 1 and rest != [-1]:
        values["rest"] = np.array([2, *rest], np.int64)
    node = helper.make_node
    nodes = [
        node("Shape", ["a"], ["shape"]),
        node("Slice", ["shape", "zero", "end", "zero"], ["kept"]),
        node("Concat", ["kept", "rest"], ["wanted"], axis=0),
        node("Reshape", ["a", "wanted"], ["out"]),
    ]
    axes = [None] * (copied + len(values["rest"]))
    graph = helper.make_graph(
        nodes,
        "flatten",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 2, "L", 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, axes)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    a = np.random.default_rng(0).random((3, 2, 5, 2), np.float32)

    def output() -> np.ndarray:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"a": a})[0]

    expected = output()
    shapes.settle(model)
    assert [one.op_type for one in model.graph.node] == ["Reshape"]
    np.testing.assert_array_equal(output(), expected)
