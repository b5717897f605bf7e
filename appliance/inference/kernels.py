"""Layers rewritten into the shape that this CPU's integer kernels are fast at; what they compute stays the same.

What this module keeps true: each rewrite is exact in integers (the last bits of float sums excepted).

- A strided first layer over one to four channels becomes a layer over 2 × 2 blocks of pixels at stride 1: kernels gather
  whole pixels, and one byte is a costly pixel. Weights outside the old kernel are zero.
- A 1 × 1 convolution whose output nothing quantises becomes a matrix product, for which there is a kernel from integers to
  float; there is none for convolutions.
- Any other convolution of fixed size whose output nothing quantises becomes a matrix product over gathered neighbourhoods: the
  bytes that each output looks at, side by side (padding is the zero point). ``MatMulIntegerToFloat`` is ONNX Runtime's own.
- Any other layer that stays in float gets its weights in float, once; onnxruntime would dequantise them at each run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from appliance.inference.wiring import Wiring

RUNTIME_DOMAIN = "com.microsoft"
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MOVES = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
_FEW_CHANNELS = 4
_MOST_GATHERED = 4 << 20
"""Bytes of neighbourhoods for one row, beyond which moving them costs more than they save."""


def suit(graph: Wiring) -> None:
    """Apply all rewrites to a graph whose activations and weights are quantised."""
    for node in list(graph.nodes):
        if id(node) in graph.gone or node.op_type not in _LAYERS:
            continue
        if quantised_after(graph, node.output[0]):
            _blocks(graph, node)
        elif not _product(graph, node) and not _gathered(graph, node):
            _float_weights(graph, node)


def quantised_after(graph: Wiring, name: str) -> bool:
    """Whether all that reads a tensor quantises it, at once or after moves that onnxruntime does on integers too."""
    readers = graph.users.get(name, [])
    return (
        bool(readers)
        and name not in graph.outputs
        and all(
            one.op_type == "QuantizeLinear" or (one.op_type in _MOVES and quantised_after(graph, one.output[0]))
            for one in readers
        )
    )


def axis(pair: onnx.NodeProto) -> int:
    """The axis along which a QuantizeLinear or DequantizeLinear has its scales."""
    return next((int(attribute.i) for attribute in pair.attribute if attribute.name == "axis"), 1)


def _blocks(graph: Wiring, conv: onnx.NodeProto) -> None:
    weights, given = graph.pair(conv.input[1]), graph.pair(conv.input[0])
    if conv.op_type != "Conv" or weights is None or given is None:
        return
    values, quantise = graph.values.get(weights.input[0]), graph.maker.get(given.input[0])
    if values is None or values.ndim != 4 or values.shape[1] > _FEW_CHANNELS or values.shape[2] != values.shape[3]:
        return
    if quantise is None or not _alone(graph, quantise, given, conv) or not graph.only_for(weights.output[0], conv):
        return
    shape = graph.shapes.get(quantise.input[0], ())
    rows, columns = shape[2:] if len(shape) == 4 else (0, 0)
    told = _geometry(conv, values.shape[2])
    if told["strides"] != [2, 2] or told["dilations"] != [1, 1] or told["group"] != [1]:
        return
    if not rows or not columns or rows % 2 or columns % 2:
        return
    kernel, top, left = values.shape[2], told["pads"][0], told["pads"][1]
    after = [_after(size, kernel, *ends) for size, ends in ((rows, told["pads"][0::2]), (columns, told["pads"][1::2]))]
    base = f"{conv.output[0]}/blocks"
    graph.rewire(weights, 0, graph.constant(base, _in_blocks(values, top, left)))
    graph.before(
        quantise, [helper.make_node("SpaceToDepth", [quantise.input[0]], [f"{base}/in"], name=base, blocksize=2)]
    )
    graph.rewire(quantise, 0, f"{base}/in")
    side = list(graph.values[base].shape[2:])
    _set(conv, kernel_shape=side, strides=[1, 1], pads=[-(-top // 2), -(-left // 2), *after])


def _in_blocks(values: npt.NDArray[Any], top: int, left: int) -> npt.NDArray[Any]:
    """Weights ``[M, C, k, k]`` over pixels at stride 2 as weights ``[M, 4 C, b, b]`` over blocks, in SpaceToDepth's order.

    Tap t of the old kernel looks at pixel 2 i + t − pad, which is pixel (t − pad) mod 2 of block i + ⌊(t − pad) / 2⌋.
    """
    count, channels, kernel, _ = values.shape
    low = [-(-pad // 2) * -1 for pad in (top, left)]
    high = [(kernel - 1 - pad) // 2 for pad in (top, left)]
    shape = (count, 2, 2, channels, high[0] - low[0] + 1, high[1] - low[1] + 1)
    blocks = np.zeros(shape, values.dtype)
    for row in range(kernel):
        for column in range(kernel):
            (block_row, in_row), (block_column, in_column) = divmod(row - top, 2), divmod(column - left, 2)
            blocks[:, in_row, in_column, :, block_row - low[0], block_column - low[1]] = values[:, :, row, column]
    return blocks.reshape(count, 4 * channels, *shape[4:])


def _after(size: int, kernel: int, before: int, after: int) -> int:
    """How many blocks of padding follow so that the output keeps its size."""
    wanted = (size + before + after - kernel) // 2 + 1
    first, last = -(-before // 2), (kernel - 1 - before) // 2
    return wanted - size // 2 - first + (last + first + 1) - 1


def _product(graph: Wiring, conv: onnx.NodeProto) -> bool:
    weights, given = graph.pair(conv.input[1]), graph.pair(conv.input[0])
    if conv.op_type != "Conv" or weights is None or given is None or given.input[0] in graph.values:
        return False
    values, scale = graph.values.get(weights.input[0]), graph.values[weights.input[1]]
    if values is None or values.dtype != np.int8 or any(side != 1 for side in values.shape[2:]):
        return False
    told = _geometry(conv, 1)
    if any(told["pads"]) or told["group"] != [1] or any(stride != 1 for stride in told["strides"]):
        return False
    if scale.size > 1 and axis(weights) != 0:
        return False
    base, last = f"{conv.output[0]}/product", values.ndim - 1
    names = [
        graph.constant(f"{base}/weights", np.ascontiguousarray(values.reshape(values.shape[:2]).T)),
        graph.constant(f"{base}/scale", scale.reshape(-1) if scale.size > 1 else scale.reshape(())),
        graph.constant(f"{base}/zero", np.zeros(scale.size if scale.size > 1 else (), np.int8)),
    ]
    there, back = [0, *range(2, last + 1), 1], [0, last, *range(1, last)]
    node = helper.make_node
    made = [
        node("Transpose", [given.input[0]], [f"{base}/moved"], name=f"{base}/move", perm=there),
        node("DequantizeLinear", [f"{base}/moved", *given.input[1:]], [f"{base}/in"], name=f"{base}/dequantise"),
        node("DequantizeLinear", names, [f"{base}/by"], name=f"{base}/by", axis=1),
        node("MatMul", [f"{base}/in", f"{base}/by"], [f"{base}/out"], name=base),
    ]
    result = f"{base}/out"
    if len(conv.input) == 3 and conv.input[2]:
        result = f"{base}/sum"
        made.append(node("Add", [f"{base}/out", conv.input[2]], [result], name=f"{base}/add"))
    made.append(node("Transpose", [result], list(conv.output), name=f"{base}/back", perm=back))
    graph.replace(conv, made)
    _sweep(graph, given, weights)
    return True


def _gathered(graph: Wiring, conv: onnx.NodeProto) -> bool:
    weights, given = graph.pair(conv.input[1]), graph.pair(conv.input[0])
    if conv.op_type != "Conv" or weights is None or given is None or given.input[0] in graph.values:
        return False
    values, scale = graph.values.get(weights.input[0]), graph.values[weights.input[1]]
    sides = graph.shapes.get(conv.input[0], ())[2:]
    if values is None or values.dtype != np.int8 or len(sides) != values.ndim - 2 or not all(sides):
        return False
    told = _geometry(conv, values.shape[2], len(sides))
    if told["group"] != [1] or min(told["pads"]) < 0 or (scale.size > 1 and axis(weights) != 0):
        return False
    if len(given.input) != 3 or graph.values[given.input[1]].size != 1 or not _constant_bias(graph, conv):
        return False
    index, padded, out = _neighbourhoods(sides, values.shape[2:], told)
    if index.size * values.shape[1] > _MOST_GATHERED:
        return False
    graph.replace(conv, _over_neighbourhoods(graph, conv, given, values, scale, (index, padded, out, told["pads"])))
    _sweep(graph, given, weights)
    return True


def _over_neighbourhoods(
    graph: Wiring,
    conv: onnx.NodeProto,
    given: onnx.NodeProto,
    values: npt.NDArray[Any],
    scale: npt.NDArray[Any],
    where: tuple[npt.NDArray[np.int32], list[int], list[int], list[int]],
) -> list[onnx.NodeProto]:
    """The nodes in the convolution's place: channels last, padded, gathered, multiplied, back."""
    index, padded, out, pads = where
    base, node, rank = f"{conv.output[0]}/gathered", helper.make_node, values.ndim - 2
    count, channels = int(values.shape[0]), int(values.shape[1])
    made: list[onnx.NodeProto] = []

    def constant(name: str, value: npt.NDArray[Any]) -> str:
        return graph.constant(f"{base}/{name}", value)

    def then(kind: str, name: str, inputs: list[str], **attributes: Any) -> str:
        made.append(node(kind, inputs, [f"{base}/{name}"], name=f"{base}/{name}", **attributes))
        return f"{base}/{name}"

    def shaped(tensor: str, name: str, *sizes: int) -> str:
        return then("Reshape", name, [tensor, constant(f"{name}/shape", np.array([-1, *sizes], np.int64))])

    tensor = then("Transpose", "moved", [given.input[0]], perm=[0, *range(2, rank + 2), 1])
    if any(pads):
        ends = np.array([0, *pads[:rank], 0, 0, *pads[rank:], 0], np.int64)
        tensor = then("Pad", "padded", [tensor, constant("pads", ends), given.input[2]])
    if rank > 1:
        tensor = shaped(tensor, "rows", int(np.prod(padded)), channels)
    tensor = then("Gather", "taken", [tensor, constant("index", index)], axis=1)
    tensor = shaped(tensor, "beside", len(index), index.shape[1] * channels)
    by = np.ascontiguousarray(values.transpose(*range(2, values.ndim), 1, 0).reshape(-1, count))
    steps = np.broadcast_to(scale.reshape(-1), (count,)).astype(np.float32)
    product = [tensor, constant("weights", by), given.input[1], constant("scale", steps), given.input[2]]
    product += [constant("zero", np.zeros(count, np.int8)), *conv.input[2:]]
    tensor = then("MatMulIntegerToFloat", "product", product, domain=RUNTIME_DOMAIN)
    if rank > 1:
        tensor = shaped(tensor, "spread", *out, count)
    back = [0, rank + 1, *range(1, rank + 1)]
    return [*made, node("Transpose", [tensor], list(conv.output), name=f"{base}/back", perm=back)]


def _constant_bias(graph: Wiring, conv: onnx.NodeProto) -> bool:
    return len(conv.input) == 2 or graph.values.get(conv.input[2], np.zeros(0)).dtype == np.float32


def _neighbourhoods(
    sides: tuple[int, ...], kernel: tuple[int, ...], told: dict[str, list[int]]
) -> tuple[npt.NDArray[np.int32], list[int], list[int]]:
    """Which pixels of the padded picture (flattened) each output looks at ``[outputs, taps]``; its sides; the output's."""
    rank = len(sides)
    padded = [side + told["pads"][one] + told["pads"][one + rank] for one, side in enumerate(sides)]
    reach = [(size - 1) * told["dilations"][one] for one, size in enumerate(kernel)]
    out = [(size - reach[one] - 1) // told["strides"][one] + 1 for one, size in enumerate(padded)]
    first = np.indices(out).reshape(rank, -1, 1) * np.array(told["strides"]).reshape(-1, 1, 1)
    tap = np.indices(kernel).reshape(rank, 1, -1) * np.array(told["dilations"]).reshape(-1, 1, 1)
    return np.ravel_multi_index(tuple(first + tap), padded).astype(np.int32), padded, out


def _float_weights(graph: Wiring, layer: onnx.NodeProto) -> None:
    for position, name in enumerate(layer.input[:2]):
        weights = graph.pair(name)
        if weights is not None and weights.input[0] in graph.values and graph.only_for(name, layer):
            graph.rewire(layer, position, graph.constant(f"{name}/float", _dequantised(graph, weights)))
            _sweep(graph, weights)


def _dequantised(graph: Wiring, pair: onnx.NodeProto) -> npt.NDArray[np.float32]:
    values, scale = graph.values[pair.input[0]].astype(np.float32), graph.values[pair.input[1]]
    if len(pair.input) == 3:
        values = values - _along(graph.values[pair.input[2]].astype(np.float32), values.ndim, axis(pair))
    return np.asarray(values * _along(scale, values.ndim, axis(pair)), np.float32)


def _along(values: npt.NDArray[Any], dimensions: int, where: int) -> npt.NDArray[Any]:
    """A scalar as it is, a vector shaped so that it runs along axis ``where``."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * dimensions
    shape[where] = -1
    return values.reshape(shape)


def _alone(graph: Wiring, quantise: onnx.NodeProto, given: onnx.NodeProto, conv: onnx.NodeProto) -> bool:
    """Whether a Q/DQ pair is read by one layer only."""
    return (
        quantise.op_type == "QuantizeLinear"
        and graph.only_for(quantise.output[0], given)
        and graph.only_for(given.output[0], conv)
    )


def _sweep(graph: Wiring, *pairs: onnx.NodeProto) -> None:
    """Take out what nothing reads any more."""
    for pair in pairs:
        if not graph.users.get(pair.output[0]) and pair.output[0] not in graph.outputs:
            graph.remove(pair)


def _geometry(conv: onnx.NodeProto, kernel: int, rank: int = 2) -> dict[str, list[int]]:
    """The attributes of a convolution with ONNX's defaults; ``auto_pad`` counts as padding of −1, which nothing accepts."""
    given = {attribute.name: attribute for attribute in conv.attribute}
    told = {"strides": [1] * rank, "dilations": [1] * rank, "pads": [0] * 2 * rank}
    told |= {"group": [1], "kernel_shape": [kernel] * rank}
    for name in told:
        if name in given:
            told[name] = list(given[name].ints) or [given[name].i]
    if "auto_pad" in given and given["auto_pad"].s not in {b"", b"NOTSET"}:
        told["pads"], told["strides"] = [-1, -1, -1, -1], [-1, -1]
    return told


def _set(conv: onnx.NodeProto, **attributes: list[int]) -> None:
    kept = [attribute for attribute in conv.attribute if attribute.name not in attributes]
    del conv.attribute[:]
    conv.attribute.extend(kept)
    conv.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
