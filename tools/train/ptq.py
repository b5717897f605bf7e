"""What makes post-training INT8 answer as the float net does: least-error scales, careful rounding, no mean shift.

What this module keeps true: only numbers of the Q/DQ graph change (scales, weights, float biases), never its nodes; all
is estimated on calibration cases, which are training patients'. Sources: scales of least squared error as in Banner et al.
2019; bias correction as in Nagel et al. 2019 (empirical form, layer by layer).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from tools.train import rounding

Batch = Mapping[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.floating]
KEPT = 4000
"""Values kept of a tensor and batch to choose its scale by."""
CANDIDATES = np.linspace(0.35, 1.0, 27)
TOP = 127.0


def refine_scales(float_graph: Path, model: onnx.ModelProto, batches: Sequence[Batch]) -> None:
    """Set every activation scale of ``model`` to the one of least squared error on ``batches``."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    quantised = {
        node.input[0]: node.input[1]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[1] in values
    }
    samples = _samples(float_graph, sorted(quantised), batches)
    for name, scale_name in quantised.items():
        if name in samples and numpy_helper.to_array(values[scale_name]).size == 1:
            best = _best_scale(samples[name])
            values[scale_name].CopyFrom(numpy_helper.from_array(np.array(best, np.float32), scale_name))


def _best_scale(sample: Floats) -> float:
    top = max(float(np.abs(sample).max()), 1e-6)
    errors = []
    for share in CANDIDATES:
        scale = top * share / TOP
        errors.append(float(np.mean((np.clip(np.round(sample / scale), -TOP, TOP) * scale - sample) ** 2)))
    return float(top * CANDIDATES[int(np.argmin(errors))] / TOP)


def _samples(graph: Path, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Floats]:
    """Random values of the named tensors of a float graph, with the largest of every batch among them."""
    running, offered = _watching(onnx.load(graph), names)
    random = np.random.default_rng(0)
    parts: dict[str, list[Floats]] = {name: [] for name in offered}
    for batch in batches:
        fed = {name: value for name, value in batch.items() if name in offered}
        found = dict(zip(offered, running.run(list(offered), dict(batch)), strict=True)) | fed
        for name, value in found.items():
            flat = np.asarray(value, np.float32).ravel()
            kept = flat[random.integers(0, flat.size, min(KEPT, flat.size))]
            parts[name].append(np.append(kept, flat[np.argmax(np.abs(flat))]))
    return {name: np.concatenate(several) for name, several in parts.items() if several}


def ranges(model: onnx.ModelProto, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Floats]:
    """Largest magnitude of each channel of the named tensors of a float graph."""
    running, offered = _watching(model, names)
    found: dict[str, Floats] = {}
    for batch in batches:
        for name, value in zip(offered, running.run(list(offered), dict(batch)), strict=True):
            top = np.abs(value).max(axis=tuple(axis for axis in range(value.ndim) if axis != 1))
            found[name] = np.maximum(found.get(name, top), top)
    return found


def correct(float_graph: Path, model: onnx.ModelProto, batch: Batch) -> None:
    """Round weights by their effect and shift float biases so that each layer says what the float graph's says.

    The graph is run node by node, each layer with those before it already corrected: two biases corrected at once would be
    corrected twice for one shift. ``float_graph``: the graph that ``model`` was quantised from, whose layers have the same
    output names. ``batch``: some dozens of calibration cases at once.
    """
    source = onnx.load(float_graph)
    floats = {tensor.name: tensor for tensor in source.graph.initializer}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    layers = {
        node.output[0]: constants[node.input[2]]
        for node in model.graph.node
        if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2 and node.input[2] in constants
    }
    wanted = _means(source, list(layers), batch)
    readers = Counter(name for node in model.graph.node for name in node.input)
    live: dict[str, npt.NDArray[Any]] = {name: np.asarray(value) for name, value in batch.items()}
    for node in model.graph.node:
        if node.output[0] in layers:
            live |= _weights(node, made_by.get(node.input[1]), constants, floats, live)
        fed = {
            name: live[name] if name in live else numpy_helper.to_array(constants[name]) for name in node.input if name
        }
        live |= _single(node, fed, model)
        name = node.output[0]
        if name in layers and name in wanted:
            shift = (wanted[name] - _by_channel(live[name])).astype(np.float32)
            tensor = layers[name]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + shift, tensor.name))
            live[name] = live[name] + shift.reshape(1, -1, *[1] * (live[name].ndim - 2))
        for used in fed:
            readers[used] -= 1
            if readers[used] <= 0:
                live.pop(used, None)


def _weights(
    node: onnx.NodeProto,
    stored: onnx.NodeProto | None,
    constants: Mapping[str, onnx.TensorProto],
    floats: Mapping[str, onnx.TensorProto],
    live: Mapping[str, npt.NDArray[Any]],
) -> dict[str, npt.NDArray[Any]]:
    """Round the weights of ``node`` anew where ``rounding`` can; the dequantised weights by name, or nothing."""
    if stored is None or stored.op_type != "DequantizeLinear" or stored.input[0] not in constants:
        return {}
    name = stored.input[0].removesuffix("_quantized")
    if name not in floats or node.input[0] not in live:
        return {}
    scale = numpy_helper.to_array(constants[stored.input[1]])
    whole = rounding.rounded(numpy_helper.to_array(floats[name]), scale, live[node.input[0]], node)
    if whole is None:
        return {}
    constants[stored.input[0]].CopyFrom(numpy_helper.from_array(whole, stored.input[0]))
    return {node.input[1]: (whole * scale.reshape(-1, *[1] * (whole.ndim - 1))).astype(np.float32)}


def _single(
    node: onnx.NodeProto, fed: dict[str, npt.NDArray[Any]], model: onnx.ModelProto
) -> dict[str, npt.NDArray[Any]]:
    """The outputs of one node by name."""
    typed = onnx.helper.np_dtype_to_tensor_dtype
    names = [name for name in node.output if name]
    inputs = [onnx.helper.make_tensor_value_info(name, typed(value.dtype), value.shape) for name, value in fed.items()]
    graph = onnx.helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=name) for name in names])
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return dict(zip(names, _session(alone).run(names, fed), strict=True))


def _by_channel(value: npt.NDArray[Any]) -> Floats:
    """Mean over all axes but the second."""
    return np.asarray(np.mean(value, axis=tuple(a for a in range(value.ndim) if a != 1), dtype=np.float64))


def _means(model: onnx.ModelProto, names: Sequence[str], batch: Batch) -> dict[str, Floats]:
    """Mean by channel of the named tensors of a graph, eight cases at a time."""
    running, offered = _watching(model, names)
    size = len(next(iter(batch.values())))
    sums: dict[str, Any] = dict.fromkeys(offered, 0.0)
    for start in range(0, size, 8):
        part = {name: value[start : start + 8] for name, value in batch.items()}
        share = len(next(iter(part.values()))) / size
        for name, value in zip(offered, running.run(list(offered), part), strict=True):
            sums[name] = sums[name] + _by_channel(value) * share
    return sums


def _watching(model: onnx.ModelProto, names: Sequence[str]) -> tuple[ort.InferenceSession, list[str]]:
    """A session of ``model`` that also puts out those of ``names`` that it makes."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    made = {output for node in watched.graph.node for output in node.output}
    offered = [name for name in dict.fromkeys(names) if name in made]
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in offered)
    return _session(watched), offered


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
