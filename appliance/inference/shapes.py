"""Sizes that a graph works out at every run although they never change, worked out once.

What this module keeps true: only integers that follow from fixed axes become constants; free axes stay computed, or copied by
the Reshape itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

_PASSES = 4


def settle(model: onnx.ModelProto) -> None:
    """Replace what follows from fixed axes by constants, in place, and write the shapes that are then known.

    Exporters compute the length of one branch to cut another to it (Shape, Gather, Unsqueeze, Slice); the lengths of
    everything after such a cut are unknown until it is settled, and each cut may settle the next.
    """
    for _ in range(_PASSES):
        inferred = onnx.shape_inference.infer_shapes(model)
        model.CopyFrom(inferred)
        found = _settled(model.graph)
        if not found:
            break
        kept = [node for node in model.graph.node if node.output[0] not in found]
        del model.graph.node[:], model.graph.value_info[:]
        model.graph.node.extend(kept)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in found.items())
    _keep_axes(model.graph)


def _keep_axes(graph: onnx.GraphProto) -> None:
    """Let a Reshape that computes its tensor's own leading axes (Shape, Slice, Concat) copy them: 0 says so to it."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer} | _constants(graph)
    maker = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        parts = maker.get(node.input[1]) if node.op_type == "Reshape" else None
        if parts is None or parts.op_type != "Concat" or len(parts.input) != 2 or parts.input[1] not in known:
            continue
        kept = _leading_axes(maker, known, parts.input[0], node.input[0])
        if kept and not any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute):
            shape = np.concatenate([np.zeros(kept, np.int64), known[parts.input[1]].reshape(-1)])
            graph.initializer.append(numpy_helper.from_array(shape, f"{node.output[0]}/shape"))
            node.input[1] = f"{node.output[0]}/shape"
    _sweep(graph)


def _leading_axes(maker: dict[str, onnx.NodeProto], known: dict[str, npt.NDArray[Any]], name: str, tensor: str) -> int:
    """How many of ``tensor``'s axes, from the first, are what ``name`` holds; 0 when it is something else."""
    cut = maker.get(name)
    if cut is None or cut.op_type != "Slice" or any(one not in known for one in cut.input[1:]):
        return 0
    start, end, *rest = (known[one].reshape(-1).tolist() for one in cut.input[1:])
    whole = maker.get(cut.input[0])
    if whole is None or not _whole_shape(whole) or whole.input[0] != tensor:
        return 0
    return int(end[0]) if start == [0] and len(end) == 1 and end[0] > 0 and rest in ([], [[0]], [[0], [1]]) else 0


def _constants(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    return {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }


def _sweep(graph: onnx.GraphProto) -> None:
    """Take out nodes whose outputs nothing reads."""
    outputs = {output.name for output in graph.output}
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        kept = [node for node in graph.node if read.intersection(node.output)]
        if len(kept) == len(graph.node):
            return
        del graph.node[:]
        graph.node.extend(kept)


def _settled(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    """The outputs of nodes that are constant because axes are fixed."""
    infos = [*graph.input, *graph.value_info]
    shapes = {info.name: [axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in infos}
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer} | _constants(graph)
    lengths = {node.output[0]: shapes.get(node.input[0], []) for node in graph.node if _whole_shape(node)}
    outputs = {output.name for output in graph.output}
    found: dict[str, npt.NDArray[Any]] = {}
    for node in graph.node:
        value = _value(node, lengths, {**known, **found})
        if value is not None and node.output[0] not in outputs:
            found[node.output[0]] = value
    return found


def _whole_shape(node: onnx.NodeProto) -> bool:
    return node.op_type == "Shape" and not node.attribute


def _value(
    node: onnx.NodeProto, lengths: dict[str, list[int]], known: dict[str, npt.NDArray[Any]]
) -> npt.NDArray[Any] | None:
    if node.op_type == "Gather" and node.input[0] in lengths and node.input[1] in known:
        where, axes = known[node.input[1]], lengths[node.input[0]]
        if where.size and axes and all(axes[int(index)] > 0 for index in where.reshape(-1)):
            return np.asarray(np.array(axes, np.int64)[where], np.int64)
    if node.op_type == "Unsqueeze" and len(node.input) == 2 and all(name in known for name in node.input):
        value, axes_given = known[node.input[0]], known[node.input[1]]
        if value.dtype == np.int64 and value.size == 1:
            return value.reshape([1] * (value.ndim + axes_given.size))
    return None
