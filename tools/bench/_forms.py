"""Other forms of a shipped graph to measure against: float, and quantised as U8S8 from the start.

What this module keeps true: every form has the same layers and, but for rounding, the same weights as the shipped one, so
that a ratio of times is about the form and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from appliance.config import shipped_models
from appliance.inference import golden
from appliance.inference.bundle import Bundle, BundleError, Graph, load_all

Feeds = dict[str, npt.NDArray[Any]]


def graphs(models: Path | None = None) -> Iterator[tuple[Bundle, Graph, Feeds]]:
    """Every INT8 graph of the shipped bundles, with the inputs of its first golden case, one row."""
    found = [one for one in load_all(models or shipped_models()) if not isinstance(one, BundleError)]
    if not found:
        raise SystemExit(f"{models or shipped_models()}: no bundle to measure")
    for bundle in found:
        cases = golden.cases(bundle)
        for graph in bundle.description.graphs:
            if graph.precision == "int8":
                case = next(case for case in cases if case.graph == graph.name)
                yield bundle, graph, {name: value[:1] for name, value in case.inputs.items()}


def write_float(source: Path, target: Path) -> None:
    """Write the float form of a Q/DQ graph: weights dequantised, the pairs of activations taken out."""
    model = onnx.load(source)
    graph = model.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    before = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in before:
            renamed[node.output[0]] = before[node.input[0]]
        elif node.op_type == "DequantizeLinear" and node.input[0] in values:
            graph.initializer.append(numpy_helper.from_array(_dequantised(node, values), node.output[0]))
        else:
            kept.append(node)
    _reconnect(graph, kept, renamed)
    onnx.save(model, target)


def _dequantised(node: onnx.NodeProto, values: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    quantised, scale = values[node.input[0]].astype(np.float32), values[node.input[1]]
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    shape = [1] * quantised.ndim
    if scale.size > 1:
        shape[axis] = -1
    return np.asarray(quantised * scale.reshape(shape), np.float32)


def _reconnect(graph: onnx.GraphProto, kept: list[onnx.NodeProto], renamed: dict[str, str]) -> None:
    outputs = {output.name for output in graph.output}
    # An output that a pair made keeps its name: whoever made what the pair read makes the output now.
    made_outputs = {renamed[name]: name for name in renamed if name in outputs}
    for node in kept:
        for position, name in enumerate(node.input):
            source = renamed.get(name, name)
            node.input[position] = made_outputs.get(source, source)
        for position, name in enumerate(node.output):
            node.output[position] = made_outputs.get(name, name)
    read = {name for node in kept for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensors)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    def __init__(self, batches: Sequence[Feeds]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Feeds | None:
        """The next batch."""
        return next(self._batches, None)


def write_unsigned(shipped: Path, float_form: Path, target: Path, batches: Sequence[Feeds]) -> None:
    """Quantise a float graph as ONNX Runtime's documentation advises for x86: U8 activations, S8 weights per channel.

    The layers that the shipped form has in INT8 are quantised, with the activations that follow them, and no others.
    """
    quantize_static(
        float_form,
        target,
        _Reader(batches),
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=_integer_nodes(onnx.load(shipped).graph),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _integer_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that read a dequantised tensor, and of the ReLUs and Clips that read those."""
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [
        node
        for node in graph.node
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"} and node.input and node.input[0] in dequantised
    ]
    made = {output for node in layers for output in node.output}
    after = [node for node in graph.node if node.op_type in {"Relu", "Clip"} and node.input[0] in made]
    return [node.name for node in (*layers, *after)]
