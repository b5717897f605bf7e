"""The form a CPU's integer kernels want, made on the box from the symmetric signed form that ships.

What this module keeps true (promise 10): the derived graph says what the shipped one says, with no more error than
quantisation itself. Four rewrites, each exact but for rounding:

1. An activation of type INT8, scale s, zero point 0 becomes UINT8 with zero point 128: the same steps, other numbers. Where
   it can't be negative (it follows ReLU or ReLU6) it becomes UINT8 with zero point 0 and scale s × 127/255: the same range in
   half the step. On Arm, whose kernels multiply signed by signed, only the second, as INT8 with zero point −128.
2. ReLU and ReLU6 between a layer and such a quantisation disappear: saturation does their work. A Q/DQ pair between the
   layer and the activation goes with them.
3. A float bias becomes INT32 with scale = input scale × weight scale, which is how an integer kernel adds it.
4. The weights of a layer that stays in float, because its output is not quantised, are dequantised once and for all.

Source of the layout that ONNX Runtime fuses: onnxruntime.ai, "Quantize ONNX models", and its QDQ selectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from appliance.inference.engine import EngineError

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MOVES = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
_BIAS_LIMIT = 2.0**30
_SIGNED_TOP, _UNSIGNED_TOP = 127.0, 255.0
_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs", "Exp", "Sqrt"})
_FIRST_INPUT_DECIDES = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Reshape", "Flatten"}
    | {"Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Slice", "Expand", "DepthToSpace", "Tile", "Gather"}
)
_EVERY_INPUT_DECIDES = frozenset({"Add", "Mul", "Concat", "Max", "Min", "Sum", "Mean"})


class _Graph:
    """A graph with its wiring indexed; rewired through these methods only."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self.nodes: list[onnx.NodeProto] = list(proto.node)
        self.outputs = {output.name for output in proto.output}
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.added: list[onnx.TensorProto] = []
        self.gone: set[int] = set()
        self.maker: dict[str, onnx.NodeProto] = {}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            self.maker.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def sole_user(self, name: str) -> onnx.NodeProto | None:
        """The only reader of a tensor that is no output of the graph."""
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def pair(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear with constant scale that makes a tensor."""
        node = self.maker.get(name)
        return (
            node if node is not None and node.op_type == "DequantizeLinear" and node.input[1] in self.values else None
        )

    def rewire(self, node: onnx.NodeProto, position: int, name: str) -> None:
        """Let an input of ``node`` read another tensor."""
        self.users[node.input[position]].remove(node)
        node.input[position] = name
        self.users.setdefault(name, []).append(node)

    def remove(self, node: onnx.NodeProto) -> None:
        """Take a node out; its outputs must have no reader any more."""
        self.gone.add(id(node))
        for name in node.input:
            self.users[name].remove(node)

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Add an initializer and return its name."""
        self.added.append(numpy_helper.from_array(value, name))
        self.values[name] = value
        return name

    def write(self, proto: onnx.GraphProto) -> None:
        """Put nodes and initializers back, without those that nothing reads."""
        nodes = [node for node in self.nodes if id(node) not in self.gone]
        read = {name for node in nodes for name in node.input} | self.outputs
        nodes = [node for node in nodes if node.op_type != "Constant" or node.output[0] in read]
        tensors = [tensor for tensor in (*proto.initializer, *self.added) if tensor.name in read]
        del proto.node[:], proto.initializer[:]
        proto.node.extend(nodes)
        proto.initializer.extend(tensors)


def derive(model: onnx.ModelProto, *, unsigned: bool) -> onnx.ModelProto:
    """The CPU's form of a shipped model.

    Args:
        model: Symmetric signed Q/DQ nodes with float biases; anything else in it is left as it is.
        unsigned: For x86 (UINT8 activations); otherwise INT8 stays and only what can't be negative shifts.
    """
    derived = onnx.ModelProto()
    derived.CopyFrom(model)
    graph = _Graph(derived.graph)
    absorbed = _absorb(graph)
    _requantise(graph, absorbed, unsigned=unsigned)
    _float_layers(graph)
    _integer_biases(graph)
    graph.write(derived.graph)
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


def _symmetric(graph: _Graph) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto], float]]:
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


def _ceiling(graph: _Graph, node: onnx.NodeProto) -> float | None:
    """Where ReLU (infinity) or a ReLU-like Clip (its maximum) ends; ``None`` for any other node."""
    if node.op_type == "Relu":
        return np.inf
    if node.op_type != "Clip" or len(node.input) != 3:
        return None
    low, high = (graph.values.get(name) for name in node.input[1:])
    if low is None or high is None or low.size != 1 or high.size != 1 or float(low.reshape(())) != 0.0:
        return None
    return float(high.reshape(()))


def _absorb(graph: _Graph) -> dict[str, float]:
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


def _before_pools(graph: _Graph, quantise: onnx.NodeProto) -> onnx.NodeProto:
    """The first of the max pools that lead to ``quantise``: a maximum and a saturation may change places."""
    node = quantise
    while True:
        before = graph.maker.get(node.input[0])
        if before is None or before.op_type != "MaxPool" or graph.sole_user(before.output[0]) is not node:
            return node
        node = before


def _without_pair(graph: _Graph, activation: onnx.NodeProto) -> str:
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


def _requantise(graph: _Graph, absorbed: dict[str, float], *, unsigned: bool) -> None:
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


def _stays_positive(graph: _Graph, node: onnx.NodeProto, positive: set[str]) -> bool:
    """Whether the node's outputs can't be negative, given the tensors that can't."""
    if node.op_type in _NEVER_NEGATIVE or _ceiling(graph, node) is not None:
        return True
    if node.op_type in _FIRST_INPUT_DECIDES or node.op_type == "DequantizeLinear":
        return node.input[0] in positive
    return node.op_type in _EVERY_INPUT_DECIDES and all(name in positive for name in node.input)


def _float_layers(graph: _Graph) -> None:
    """Give layers whose output nothing quantises their weights in float; onnxruntime would dequantise them at each run."""
    for node in graph.nodes:
        if id(node) in graph.gone or node.op_type not in _LAYERS:
            continue
        if _quantised_after(graph, node.output[0]):
            continue
        for position, name in enumerate(node.input[:2]):
            weights = graph.maker.get(name)
            if weights is None or weights.op_type != "DequantizeLinear" or weights.input[0] not in graph.values:
                continue
            if graph.sole_user(name) is node:
                graph.rewire(node, position, graph.constant(f"{name}/float", _dequantised(graph, weights)))
                graph.remove(weights)


def _quantised_after(graph: _Graph, name: str) -> bool:
    """Whether all that reads a tensor quantises it, at once or after moves that onnxruntime does on integers too."""
    readers = graph.users.get(name, [])
    return (
        bool(readers)
        and name not in graph.outputs
        and all(
            one.op_type == "QuantizeLinear" or (one.op_type in _MOVES and _quantised_after(graph, one.output[0]))
            for one in readers
        )
    )


def _dequantised(graph: _Graph, pair: onnx.NodeProto) -> npt.NDArray[np.float32]:
    values, scale = graph.values[pair.input[0]].astype(np.float32), graph.values[pair.input[1]]
    if len(pair.input) == 3:
        values = values - _along(graph.values[pair.input[2]].astype(np.float32), values.ndim, _axis(pair))
    return np.asarray(values * _along(scale, values.ndim, _axis(pair)), np.float32)


def _along(values: npt.NDArray[Any], dimensions: int, axis: int) -> npt.NDArray[Any]:
    """A scalar as it is, a vector shaped so that it runs along ``axis``."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * dimensions
    shape[axis] = -1
    return values.reshape(shape)


def _axis(pair: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in pair.attribute if attribute.name == "axis"), 1)


def _integer_biases(graph: _Graph) -> None:
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
    graph: _Graph, weights: onnx.NodeProto, bias: npt.NDArray[np.float64], scale_in: float
) -> npt.NDArray[np.float64] | None:
    """Input scale × weight scale for each channel; ``None`` when the bias is no vector or does not fit INT32."""
    if bias.ndim != 1:
        return None
    scale = graph.values[weights.input[1]].astype(np.float64).reshape(-1)
    step = np.broadcast_to(scale_in * scale, bias.shape)
    if np.all(np.abs(bias) <= _BIAS_LIMIT * step):
        return step
    return _coarser_weights(graph, weights, bias, scale_in)


def _attach_bias(graph: _Graph, node: onnx.NodeProto, values: npt.NDArray[np.int32], step: npt.NDArray[Any]) -> None:
    base = f"{node.output[0]}/bias"
    names = [
        graph.constant(base, values),
        graph.constant(f"{base}/scale", step),
        graph.constant(f"{base}/zero", np.zeros(step.shape, np.int32)),
    ]
    pair = helper.make_node("DequantizeLinear", names, [f"{base}/float"], name=f"{base}/dequantise", axis=0)
    graph.nodes.insert(next(index for index, one in enumerate(graph.nodes) if one is node), pair)
    for name in names:
        graph.users.setdefault(name, []).append(pair)
    graph.maker[pair.output[0]] = pair
    graph.rewire(node, 2, pair.output[0])


def _coarser_weights(
    graph: _Graph, weights: onnx.NodeProto, bias: npt.NDArray[np.float64], scale_in: float
) -> npt.NDArray[np.float64] | None:
    """Steps in which every bias fits INT32, after the weights of a near-dead channel were requantised to match.

    A channel whose weights are that small beside its bias adds less than the bias's own rounding. ``None`` when the weights
    are shared or not per channel, so that they must stay.
    """
    scale, values = graph.values[weights.input[1]], graph.values.get(weights.input[0])
    if values is None or _axis(weights) != 0 or scale.shape != bias.shape or graph.sole_user(weights.output[0]) is None:
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
