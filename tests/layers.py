"""A derived graph judged layer by layer: each quantised tensor from the same inputs, against float arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.utils import Extractor

from tools.bench._forms import write_float


class Judged(NamedTuple):
    """One activation: the derived form's step and the shipped one's, the largest error, and the bound on it."""

    name: str
    step: float
    shipped_step: float
    error: float
    bound: float


def judge(shipped: onnx.ModelProto, derived: onnx.ModelProto, pictures: np.ndarray, folder: Path) -> Iterator[Judged]:
    """Every activation that the derived form quantises.

    What it reads (the activations quantised before it) is given to both sides as the shipped form computes it; the reference
    does in float, with the dequantised weights and the float bias, what stands between, clipped to the shipped form's range.
    """
    onnx.save(shipped, folder / "judged.onnx")
    write_float(folder / "judged.onnx", folder / "judged-float.onnx")
    reference = onnx.shape_inference.infer_shapes(onnx.load(folder / "judged-float.onnx"))
    derived = onnx.shape_inference.infer_shapes(derived)
    ships, forms = _activations(shipped), _activations(derived)
    values = _run(shipped, list(ships), {"image": pictures})
    values["image"] = pictures
    outputs = {output.name for output in reference.graph.output}
    maker = {output: node for node in derived.graph.node for output in node.output}
    for name, pair in forms.items():
        read = _read(maker, pair.input, set(forms))
        given = {one: values[one] for one in read}
        plain = {ships[one].input if one in ships else one: value for one, value in given.items()}
        got = _run(_cut(derived, read, name), [name], given)[name]
        end = name if name in outputs else ships[name].input  # ``write_float`` lets an output keep its name
        exact = _run(_cut(reference, list(plain), end), [end], plain)[end]
        low, high = (ships[name].step * edge for edge in ships[name].edges)
        wanted = np.clip(exact, low, high)
        rounding = 1e-5 * float(np.max(np.abs(exact), initial=1.0))
        bound = pair.step / 2 + _bias_step(derived, maker, pair.input, set(forms)) / 2 + rounding
        yield Judged(name, pair.step, ships[name].step, float(np.max(np.abs(got - wanted))), bound)


class _Pair(NamedTuple):
    input: str
    step: float
    zero: int
    edges: tuple[int, int]


def _activations(model: onnx.ModelProto) -> dict[str, _Pair]:
    """The Q/DQ pairs of activations by the name of what they make."""
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    quantised = {node.output[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    found = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in quantised:
            zero = values[node.input[2]]
            limits = np.iinfo(zero.dtype)
            edges = (int(limits.min), int(limits.max))
            source = quantised[node.input[0]].input[0]
            found[node.output[0]] = _Pair(source, float(values[node.input[1]]), int(zero), edges)
    return found


def _read(maker: dict[str, onnx.NodeProto], name: str, ends: set[str]) -> list[str]:
    """The quantised activations (or the input) from which ``name`` is made."""
    found, waiting, seen = [], [name], set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if one in ends or one == "image":
            found.append(one)
        elif one in maker:
            waiting += list(maker[one].input)
    return sorted(found)


def _bias_step(model: onnx.ModelProto, maker: dict[str, onnx.NodeProto], name: str, ends: set[str]) -> float:
    """The largest step of the integer biases added on the way to ``name``, all layers on it together."""
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    total, waiting, seen = 0.0, [name], set()
    while waiting:
        one = waiting.pop()
        node = maker.get(one)
        if one in seen or one in ends or node is None:
            continue
        seen.add(one)
        if node.op_type == "DequantizeLinear" and values.get(node.input[0], np.zeros(0)).dtype == np.int32:
            total += float(np.max(values[node.input[1]]))
        waiting += list(node.input)
    return total


def _cut(model: onnx.ModelProto, inputs: list[str], output: str) -> onnx.ModelProto:
    return Extractor(model).extract_model(inputs, [output])


def _run(model: onnx.ModelProto, outputs: list[str], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    there = {one.name for one in whole.graph.output}
    whole.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs if name not in there)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(outputs, given), strict=True))
