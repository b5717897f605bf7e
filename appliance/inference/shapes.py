"""Sizes that a graph works out at every run although they never change, worked out once.

What this module keeps true: only integers that follow from fixed axes become constants; free axes stay computed.
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
            return
        kept = [node for node in model.graph.node if node.output[0] not in found]
        del model.graph.node[:], model.graph.value_info[:]
        model.graph.node.extend(kept)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in found.items())


def _settled(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    """The outputs of nodes that are constant because axes are fixed."""
    infos = [*graph.input, *graph.value_info]
    shapes = {info.name: [axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in infos}
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
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
