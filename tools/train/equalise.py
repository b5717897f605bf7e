"""Brings the channels of a net's linear maps to one range before quantisation, so that one INT8 scale fits them all.

What this module keeps true: the graph says what it said, but for float rounding. A map that no activation follows may have
each channel divided by a factor where it is made and multiplied by it where it is read (Nagel et al. 2019, cross-layer
equalisation); maps joined by an addition share their factors. A map that anything but additions and convolutions of all
channels reads, the gate's or an output, is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from tools.train import ptq, rounding

LEAST = 0.1
"""Least share of the widest channel's range that a channel is taken to have."""

Batch = Mapping[str, npt.NDArray[np.generic]]


def write(path: Path, batches: Sequence[Batch]) -> None:
    """Equalise the float graph in ``path`` in place; ``batches``: calibration cases of training patients."""
    model = onnx.load(path)
    groups = linear_maps(model.graph)
    ranges = ptq.ranges(model, [name for group in groups for name in group], batches)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for group in groups:
        widest = np.max([ranges[name] for name in group], axis=0)
        factor = np.maximum(widest, LEAST * widest.max()) / max(float(widest.max()), 1e-6)
        for node in model.graph.node:
            if node.op_type != "Conv":
                continue
            if node.output[0] in group:
                _scale(constants[node.input[1]], 1.0 / factor[:, None, None, None])
                if len(node.input) > 2:
                    _scale(constants[node.input[2]], 1.0 / factor)
            if node.input[0] in group:
                _scale(constants[node.input[1]], factor[None, :, None, None])
    onnx.checker.check_model(model)
    onnx.save(model, path)


def linear_maps(graph: onnx.GraphProto) -> list[set[str]]:
    """The sets of maps that share their channels' factors."""
    group_of: dict[str, set[str]] = {}
    for node in graph.node:
        if node.op_type == "Add" and all(name in group_of for name in node.input):
            joined = set().union(*(group_of[name] for name in node.input), {node.output[0]})
            group_of |= dict.fromkeys(joined, joined)
        elif node.op_type == "Conv":
            group_of[node.output[0]] = {node.output[0]}
    constants = {tensor.name for tensor in graph.initializer}
    barred = {output.name for output in graph.output}
    for node in graph.node:
        dense = node.op_type == "Conv" and rounding.attributes(node).get("group", 1) == 1
        added = node.op_type == "Add" and node.output[0] in group_of and not constants & set(node.input)
        if not dense and not added:
            barred.update(node.input)
    distinct = {id(group): group for group in group_of.values()}
    read = {name for node in graph.node for name in node.input}
    return [group for group in distinct.values() if not group & barred and group & read]


def _scale(tensor: onnx.TensorProto, factor: npt.NDArray[np.floating]) -> None:
    scaled = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
