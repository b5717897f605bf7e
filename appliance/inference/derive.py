"""The form a CPU's integer kernels want, made on the box from the symmetric signed form that ships.

What this module keeps true (promise 10): the derived graph says what the shipped one says, with no more error than
quantisation itself. Three rewrites, each exact but for rounding, then those of ``appliance.inference.kernels``:

1. An activation of type INT8, scale s, zero point 0 becomes UINT8 with zero point 128: the same steps, other numbers. Where
   it can't be negative (it follows ReLU or ReLU6) it becomes UINT8 with zero point 0 and scale s × 127/255: the same range in
   half the step. On Arm, whose kernels multiply signed by signed, only the second, as INT8 with zero point −128.
2. ReLU and ReLU6 between a layer and such a quantisation disappear: saturation does their work. A Q/DQ pair between the
   layer and the activation goes with them.
3. A float bias becomes INT32 with scale = input scale × weight scale, which is how an integer kernel adds it.

Source of the layout that ONNX Runtime fuses: onnxruntime.ai, "Quantize ONNX models", and its QDQ selectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from appliance.inference import kernels, shapes
from appliance.inference.engine import EngineError
from appliance.inference.wiring import Wiring

_BIAS_LIMIT = 2.0**30
_SIGNED_TOP, _UNSIGNED_TOP = 127.0, 255.0
_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs", "Exp", "Sqrt"})
_FIRST_INPUT_DECIDES = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Reshape", "Flatten"}
    | {"Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Slice", "Expand", "DepthToSpace", "Tile", "Gather"}
)
_EVERY_INPUT_DECIDES = frozenset({"Add", "Mul", "Concat", "Max", "Min", "Sum", "Mean"})


def derive(model: onnx.ModelProto, *, unsigned: bool) -> onnx.ModelProto:
    """The CPU's form of a shipped model.

    Args:
        model: Symmetric signed Q/DQ nodes with float biases; anything else in it is left as it is.
        unsigned: For x86 (UINT8 activations); otherwise INT8 stays and only what can't be negative shifts.
    """
    derived = onnx.ModelProto()
    derived.CopyFrom(model)
    shapes.settle(derived)
    graph = Wiring(derived.graph)
    absorbed = _absorb(graph)
    _requantise(graph, absorbed, unsigned=unsigned)
    kernels.suit(graph)
    _integer_biases(graph)
    graph.write(derived.graph)
    if any(node.domain == kernels.RUNTIME_DOMAIN for node in derived.graph.node):
        derived.opset_import.append(helper.make_opsetid(kernels.RUNTIME_DOMAIN, 1))
    onnx.checker.check_model(derived)
    return derived


def write(source: Path, target: Path, *, unsigned: bool) -> None:
    """Derive the model in ``source`` and write it to ``target``; raises ``EngineError`` when it is not an ONNX model."""
    try:
        onnx.save(derive(onnx.load(source), unsigned=unsigned), target)
    except (onnx.checker.ValidationError, ValueError, KeyError, IndexError) as error:
        raise EngineError(f"{source}: no form for this CPU can be derived ({error})") from error
    except Exception as error:
        if type(error).__module__.startswith("google.protobuf"):
            raise EngineError(f"{source}: is not an ONNX model ({error}); install the bundle again") from error
        raise


def _symmetric(graph: Wiring) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto], float]]:
    """Every QuantizeLinear of an activation in the shipped form: the node, its DequantizeLinear readers, its scale."""
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or id(node) in graph.gone or len(node.input) != 3:
            continue
        scale, zero = graph.values.get(node.input[1]), graph.values.get(node.input[2])
        if scale is None or zero is None or scale.size != 1 or zero.dtype != np.int8 or zero.any():
            continue
        readers = graph.users.get(node.output[0], [])
        if node.output[0] in graph.outputs or any(reader.op_type != "DequantizeLinear" for reader in readers):
            continue
        yield node, list(readers), float(scale.reshape(()))


def _ceiling(graph: Wiring, node: onnx.NodeProto) -> float | None:
    """Where ReLU (infinity) or a ReLU-like Clip (its maximum) ends; ``None`` for any other node."""
    if node.op_type == "Relu":
        return np.inf
    if node.op_type != "Clip" or len(node.input) != 3:
        return None
    low, high = (graph.values.get(name) for name in node.input[1:])
    if low is None or high is None or low.size != 1 or high.size != 1 or float(low.reshape(())) != 0.0:
        return None
    return float(high.reshape(()))


def _absorb(graph: Wiring) -> dict[str, float]:
    """Remove activations that a quantisation can stand for; the outputs of those quantisations → where they saturate."""
    absorbed: dict[str, float] = {}
    for quantise, _, scale in list(_symmetric(graph)):
        source = _before_pools(graph, quantise)
        activation = graph.maker.get(source.input[0])
        ceiling = None if activation is None else _ceiling(graph, activation)
        if activation is None or ceiling is None or graph.sole_user(activation.output[0]) is not source:
            continue
        top = _SIGNED_TOP * scale
        absorbed[quantise.output[0]] = ceiling if top > ceiling * 1.001 else top
        graph.rewire(source, 0, _without_pair(graph, activation))
    return absorbed


def _before_pools(graph: Wiring, quantise: onnx.NodeProto) -> onnx.NodeProto:
    """The first of the max pools that lead to ``quantise``: a maximum and a saturation may change places."""
    node = quantise
    while True:
        before = graph.maker.get(node.input[0])
        if before is None or before.op_type != "MaxPool" or graph.sole_user(before.output[0]) is not node:
            return node
        node = before


def _without_pair(graph: Wiring, activation: onnx.NodeProto) -> str:
    """Remove ``activation``, and the Q/DQ pair before it where nothing else reads that; the tensor to read instead."""
    name = str(activation.input[0])
    graph.remove(activation)
    second = graph.maker.get(name)
    if second is None or second.op_type != "DequantizeLinear" or graph.users[name] or name in graph.outputs:
        return name
    first = graph.maker.get(second.input[0])
    if first is None or first.op_type != "QuantizeLinear" or graph.sole_user(first.output[0]) is not second:
        return name
    graph.remove(second)
    graph.remove(first)
    return str(first.input[0])


def _requantise(graph: Wiring, absorbed: dict[str, float], *, unsigned: bool) -> None:
    """Give every activation its new type, scale and zero point."""
    lowest = 0 if unsigned else -128
    kind: type[np.uint8 | np.int8] = np.uint8 if unsigned else np.int8
    activations = {id(node): (readers, scale) for node, readers, scale in _symmetric(graph)}
    positive: set[str] = {name for name, value in graph.values.items() if not np.any(value < 0)}
    for node in graph.nodes:
        if id(node) in graph.gone:
            continue
        if id(node) not in activations:
            if _stays_positive(graph, node, positive):
                positive.update(node.output)
            continue
        readers, scale = activations[id(node)]
        top = absorbed.get(node.output[0], _SIGNED_TOP * scale if node.input[0] in positive else None)
        if top is not None:
            positive.add(node.output[0])
            scale, zero = top / _UNSIGNED_TOP, lowest
        else:
            zero = 128 + lowest
        names = (
            graph.constant(f"{node.output[0]}/scale", np.array(scale, np.float32)),
            graph.constant(f"{node.output[0]}/zero", np.array(zero, kind)),
        )
        for one in (node, *readers):
            graph.rewire(one, 1, names[0])
            graph.rewire(one, 2, names[1])


def _stays_positive(graph: Wiring, node: onnx.NodeProto, positive: set[str]) -> bool:
    """Whether the node's outputs can't be negative, given the tensors that can't."""
    if node.op_type in _NEVER_NEGATIVE or _ceiling(graph, node) is not None:
        return True
    if node.op_type in _FIRST_INPUT_DECIDES or node.op_type == "DequantizeLinear":
        return node.input[0] in positive
    return node.op_type in _EVERY_INPUT_DECIDES and all(name in positive for name in node.input)


def _integer_biases(graph: Wiring) -> None:
    """Turn float biases of layers whose input and weights are quantised into INT32 behind a DequantizeLinear."""
    layers = [node for node in graph.nodes if id(node) not in graph.gone and node.op_type in {"Conv", "Gemm"}]
    for node in layers:
        if len(node.input) != 3 or node.input[2] not in graph.values or not _plain(node):
            continue
        given, weights = graph.pair(node.input[0]), graph.pair(node.input[1])
        if given is None or weights is None or graph.values[given.input[1]].size != 1:
            continue
        bias = graph.values[node.input[2]].astype(np.float64)
        scale_in = float(graph.values[given.input[1]].reshape(()))
        step = _bias_step(graph, weights, bias, scale_in)
        if step is not None:
            _attach_bias(graph, node, np.rint(bias / step).astype(np.int32), step.astype(np.float32))


def _bias_step(
    graph: Wiring, weights: onnx.NodeProto, bias: npt.NDArray[np.float64], scale_in: float
) -> npt.NDArray[np.float64] | None:
    """Input scale × weight scale for each channel; ``None`` when the bias is no vector or does not fit INT32."""
    if bias.ndim != 1:
        return None
    scale = graph.values[weights.input[1]].astype(np.float64).reshape(-1)
    step = np.broadcast_to(scale_in * scale, bias.shape)
    if np.all(np.abs(bias) <= _BIAS_LIMIT * step):
        return step
    return _coarser_weights(graph, weights, bias, scale_in)


def _attach_bias(graph: Wiring, node: onnx.NodeProto, values: npt.NDArray[np.int32], step: npt.NDArray[Any]) -> None:
    base = f"{node.output[0]}/bias"
    names = [
        graph.constant(base, values),
        graph.constant(f"{base}/scale", step),
        graph.constant(f"{base}/zero", np.zeros(step.shape, np.int32)),
    ]
    pair = helper.make_node("DequantizeLinear", names, [f"{base}/float"], name=f"{base}/dequantise", axis=0)
    graph.before(node, [pair])
    graph.rewire(node, 2, pair.output[0])


def _coarser_weights(
    graph: Wiring, weights: onnx.NodeProto, bias: npt.NDArray[np.float64], scale_in: float
) -> npt.NDArray[np.float64] | None:
    """Steps in which every bias fits INT32, after the weights of a near-dead channel were requantised to match.

    A channel whose weights are that small beside its bias adds less than the bias's own rounding. ``None`` when the weights
    are shared or not per channel, so that they must stay.
    """
    scale, values = graph.values[weights.input[1]], graph.values.get(weights.input[0])
    if (
        values is None
        or kernels.axis(weights) != 0
        or scale.shape != bias.shape
        or graph.sole_user(weights.output[0]) is None
    ):
        return None
    wide = np.maximum(scale.astype(np.float64), np.abs(bias) / (_BIAS_LIMIT * scale_in))
    wide = np.where(wide > scale, np.nextafter(wide.astype(np.float32), np.float32(np.inf)), scale).astype(np.float64)
    shape = (-1,) + (1,) * (values.ndim - 1)
    narrowed = np.rint(values * (scale / wide).reshape(shape)).astype(values.dtype)
    base = f"{weights.output[0]}/wide"
    graph.rewire(weights, 0, graph.constant(base, narrowed))
    graph.rewire(weights, 1, graph.constant(f"{base}/scale", wide.astype(np.float32)))
    return np.asarray(wide * scale_in, np.float64)


def _plain(node: onnx.NodeProto) -> bool:
    """Whether the layer adds its bias as it is: a Gemm may scale it."""
    return all(attribute.f == 1.0 for attribute in node.attribute if attribute.name in {"alpha", "beta"})
