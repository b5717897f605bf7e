"""Makes a network from elsewhere into a graph that a bundle can hold: one grey image in 0…1 in, scores and maps out.

What this module keeps true: the graph says what the network said, to float rounding; nothing is trained here. Scaling of the
input goes into the graph. Where the scores come from one linear layer over averaged features, that layer is moved before the
average: the same sums, and the class-activation map (Zhou et al. 2016) becomes what the score is the mean of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

IMAGE = "image"
OPSETS = (13, 21)
"""Per-channel Q/DQ needs the first; engines on the boxes read up to the second."""
SCALING = ("import_scale", "import_shift")


class NetworkError(Exception):
    """The network can't be made into a bundle; the message says why and what to do."""


class Adapted(msgspec.Struct, frozen=True):
    """The graph, its image side in pixels, number of scores, side of the maps (0: none), and nodes to leave in float."""

    model: Any
    side: int
    scores: int
    map_side: int
    keep_float: tuple[str, ...]


def adapt(
    source: Path, name: str, output: str = "", scale: Sequence[float] = (1.0,), shift: Sequence[float] = (0.0,)
) -> Adapted:
    """Rewrite ``source``.

    Args:
        source: An ONNX file with one image input ``[N, 1 or 3, side, side]`` and scores ``[N, classes]``.
        name: Of the graph in the bundle; outputs become ``NAME-scores`` and ``NAME-map``.
        output: Which output holds the scores; may be empty when there is one.
        scale: What the image in 0…1 is multiplied by, one number or one for each channel.
        shift: What is added then.

    Raises:
        NetworkError: The file is no such network.
    """
    model = _folded(source)
    graph = model.graph
    side, channels = _input(graph, source)
    scores = _scores(graph, output, source)
    _scaled(graph, channels, scale, shift)
    head = _map_head(graph, scores, name)
    keep = [*SCALING, *head]
    del graph.output[:]
    graph.output.append(onnx.ValueInfoProto(name=f"{name}-scores"))
    if head:
        graph.output.append(onnx.ValueInfoProto(name=f"{name}-map"))
    else:
        graph.node.append(helper.make_node("Identity", [scores], [f"{name}-scores"], name="import_scores"))
    del graph.value_info[:]
    graph.name = name
    shapes = _shapes(model, side)
    for value in graph.output:
        value.CopyFrom(
            helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, ["N", *shapes[value.name][1:]])
        )
    onnx.checker.check_model(model, full_check=True)
    found = shapes[f"{name}-scores"]
    if len(found) != 2:
        raise NetworkError(f"{source}: the scores have the shape {list(found)}, not [N, classes]; name another output")
    map_side = shapes[f"{name}-map"][2] if head else 0
    return Adapted(model=model, side=side, scores=found[1], map_side=map_side, keep_float=tuple(keep))


def _folded(source: Path) -> onnx.ModelProto:
    """The network with constants and batch norms folded by onnxruntime, in standard operators only."""
    try:
        opset = next(one.version for one in onnx.load(source, load_external_data=False).opset_import if not one.domain)
    except Exception as error:
        raise NetworkError(f"{source}: can't be read as ONNX ({error}); export it again") from error
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise NetworkError(f"{source}: has opset {opset}; export it with opset_version=17")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(folded)
        try:
            ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise NetworkError(f"{source}: onnxruntime does not load it ({error}); export it again") from error
        model = onnx.load(folded)
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if foreign:
        raise NetworkError(f"{source}: holds operators of {', '.join(sorted(foreign))}; TensorRT has none of them")
    standard = [one for one in model.opset_import if not one.domain]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    return model


def _input(graph: onnx.GraphProto, source: Path) -> tuple[int, int]:
    """The side in pixels and the channels of the one image input."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1:
        raise NetworkError(f"{source}: has {len(inputs)} inputs; one image is wanted, bind the others before exporting")
    tensor = inputs[0].type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[2] != shape[3] or not isinstance(shape[2], int):
        raise NetworkError(f"{source}: takes {shape}, not [N, 1 or 3, side, side]; fix the side when exporting")
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise NetworkError(f"{source}: takes no float32; export it in float32, it is quantised here")
    if isinstance(shape[0], int) and shape[0] > 0:
        raise NetworkError(
            f"{source}: its first axis is fixed to {shape[0]}; export it free (dynamic_axes={{'input': {{0: 'N'}}}})"
        )
    for node in graph.node:
        node.input[:] = ["import_image" if name == inputs[0].name else name for name in node.input]
    inputs[0].CopyFrom(helper.make_tensor_value_info(IMAGE, onnx.TensorProto.FLOAT, ["N", 1, shape[2], shape[2]]))
    return int(shape[2]), int(shape[1])


def _scores(graph: onnx.GraphProto, wanted: str, source: Path) -> str:
    names = [value.name for value in graph.output]
    if wanted in names:
        return wanted
    if wanted or len(names) != 1:
        raise NetworkError(f"{source}: offers {', '.join(names)}; name the one with the scores as import.output")
    return names[0]


def _scaled(graph: onnx.GraphProto, channels: int, scale: Sequence[float], shift: Sequence[float]) -> None:
    """Put ``image × scale + shift`` before the network, the grey channel repeated for networks that want colours."""
    nodes, x = [], IMAGE
    if channels == 3:
        nodes.append(helper.make_node("Concat", [x] * 3, ["import_colours"], name="import_colours", axis=1))
        x = "import_colours"
    for name, op, values in (("import_scale", "Mul", scale), ("import_shift", "Add", shift)):
        if len(values) not in (1, channels):
            raise NetworkError(f"{name} has {len(values)} numbers for {channels} channels; give one, or one for each")
        constant = np.array(values, np.float32).reshape(1, -1, 1, 1)
        graph.initializer.append(numpy_helper.from_array(constant, f"{name}_by"))
        made = "import_image" if op == "Add" else f"{name}_out"
        nodes.append(helper.make_node(op, [x, f"{name}_by"], [made], name=name))
        x = made
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _map_head(graph: onnx.GraphProto, scores: str, name: str) -> tuple[str, ...]:
    """Move the last linear layer before the average; the names of the new nodes, none where the head is another."""
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    linear = made_by.get(scores)
    if linear is None or linear.op_type != "Gemm" or linear.input[1] not in constants:
        return ()
    attributes = {one.name: helper.get_attribute_value(one) for one in linear.attribute}
    if attributes.get("transA") or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return ()
    pooled = linear.input[0]
    flat = made_by.get(pooled)
    if flat is not None and flat.op_type in {"Flatten", "Reshape", "Squeeze"}:
        pooled = flat.input[0]
    average = made_by.get(pooled)
    if average is None or not _is_average(average, constants):
        return ()
    weights = constants[linear.input[1]]
    weights = weights if attributes.get("transB") else weights.T
    bias = constants.get(linear.input[2]) if len(linear.input) > 2 else np.zeros(len(weights), np.float32)
    if bias is None:
        return ()
    _append_head(graph, average.input[0], weights, bias, name)
    _prune(graph, {f"{name}-scores", f"{name}-map"})
    return ("import_map", "import_scores")


def _is_average(node: onnx.NodeProto, constants: dict[str, npt.NDArray[Any]]) -> bool:
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type != "ReduceMean":
        return False
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    axes = attributes.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in constants:
        axes = constants[node.input[1]].tolist()
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


def _append_head(
    graph: onnx.GraphProto, features: str, weights: npt.NDArray[Any], bias: npt.NDArray[Any], name: str
) -> None:
    graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32)[:, :, None, None], "import_map_by"))
    graph.initializer.append(numpy_helper.from_array(np.ravel(bias).astype(np.float32), "import_scores_by"))
    graph.node.extend(
        [
            helper.make_node(
                "Conv", [features, "import_map_by"], [f"{name}-map"], name="import_map", kernel_shape=[1, 1]
            ),
            helper.make_node("GlobalAveragePool", [f"{name}-map"], ["import_mean"], name="import_mean"),
            helper.make_node("Flatten", ["import_mean"], ["import_flat"], name="import_flat", axis=1),
            helper.make_node("Add", ["import_flat", "import_scores_by"], [f"{name}-scores"], name="import_scores"),
        ]
    )


def _prune(graph: onnx.GraphProto, outputs: set[str]) -> None:
    """Drop the nodes and constants that no output needs."""
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _shapes(model: onnx.ModelProto, side: int) -> dict[str, tuple[int, ...]]:
    """The shape of each output for two images, found by running them."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    running = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in model.graph.output]
    found = running.run(names, {IMAGE: np.zeros((2, 1, side, side), np.float32)})
    return {name: value.shape for name, value in zip(names, found, strict=True)}
