"""Extremely randomised trees as ONNX (``ai.onnx.ml`` TreeEnsembleRegressor), deciding as scikit-learn does.

What this module keeps true: scikit-learn compares float32 features with float64 thresholds, ONNX with float32 ones; each
threshold is rounded *down* to float32, so that every float32 feature falls on the same side in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tools.train.kernel import FAR, Kernel

ML_OPSET = 3
OPSET = 17
COLUMNS = (
    *(
        f"nodes_{what}"
        for what in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    ),
    *(f"target_{what}" for what in ("treeids", "nodeids", "ids", "weights")),
)
CERTAIN = 0.01
"""Probabilities are kept this far from 0 and 1: a leaf of three cases is no proof."""


class Linear(msgspec.Struct, frozen=True, kw_only=True):
    """A linear part added to the trees' logits: ``clip((x - mean) / spread) @ weight + bias``."""

    mean: npt.NDArray[np.floating]
    spread: npt.NDArray[np.floating]
    weight: npt.NDArray[np.floating]
    bias: npt.NDArray[np.floating]


def rounded_down(thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest float32 not above each threshold."""
    single = thresholds.astype(np.float32)
    above = single.astype(np.float64) > thresholds
    single[above] = np.nextafter(single[above], np.float32(-np.inf))
    return single


def export(
    forest: Any,
    path: Path,
    features: int,
    *,
    input_name: str,
    output_name: str = "probability",
    linear: Linear | None = None,
    kernel: Kernel | None = None,
    weakest: bool = False,
) -> None:
    """Write a fitted ``ExtraTreesRegressor`` on 0/1 targets; output ``[N, targets]``, ``CERTAIN`` to 1 − ``CERTAIN``.

    With ``linear`` or ``kernel`` (one target) the output is the probability whose logit is the trees' plus the part's; with
    ``weakest`` it is the lesser of the trees' and the kernel's logit, as of a gate that either may close. ``features`` is
    the width of the input, of which the trees may look at the first columns only.
    """
    trees = [estimator.tree_ for estimator in forest.estimators_]
    targets = int(trees[0].value.shape[1])
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for number, tree in enumerate(trees):
        leaf = tree.children_left < 0
        columns["nodes_treeids"] += [number] * tree.node_count
        columns["nodes_nodeids"] += range(tree.node_count)
        columns["nodes_featureids"] += np.where(leaf, 0, tree.feature).tolist()
        columns["nodes_values"] += np.where(leaf, 0.0, rounded_down(tree.threshold)).tolist()
        columns["nodes_modes"] += ["LEAF" if one else "BRANCH_LEQ" for one in leaf]
        columns["nodes_truenodeids"] += np.where(leaf, 0, tree.children_left).tolist()
        columns["nodes_falsenodeids"] += np.where(leaf, 0, tree.children_right).tolist()
        for node in np.flatnonzero(leaf):
            for target in range(targets):
                columns["target_treeids"].append(number)
                columns["target_nodeids"].append(int(node))
                columns["target_ids"].append(target)
                columns["target_weights"].append(float(tree.value[node, target, 0]) / len(trees))
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        [input_name],
        ["sum"],
        domain="ai.onnx.ml",
        n_targets=targets,
        aggregate_function="SUM",
        post_transform="NONE",
        **columns,
    )
    beside: tuple[list[Any], dict[str, Any]] = ([], {})
    if linear is not None:
        beside = _linear(linear, input_name)
    elif kernel is not None:
        beside = _kernel(kernel, input_name)
    joined = _joined("Min" if weakest else "Add", output_name) if beside[0] else []
    clip = helper.make_node("Clip", ["sum", "lowest", "highest"], ["trees" if joined else output_name])
    constants = {"lowest": CERTAIN, "highest": 1.0 - CERTAIN, **({"one": 1.0} if joined else {}), **beside[1]}
    _save(path, [ensemble, clip, *beside[0], *joined], (input_name, features), (output_name, targets), constants)


def _nodes(steps: Sequence[tuple[str, list[str], str]]) -> list[Any]:
    return [helper.make_node(kind, taken, [given]) for kind, taken, given in steps]


def _joined(how: str, output: str) -> list[Any]:
    """From the trees' probability and the part's logit ``beside`` to the probability of both joined."""
    steps = [
        ("Sub", ["one", "trees"], "other"),
        ("Div", ["trees", "other"], "odds"),
        ("Log", ["odds"], "logit"),
        (how, ["logit", "beside"], "joined"),
        ("Sigmoid", ["joined"], output),
    ]
    return _nodes(steps)


def _linear(linear: Linear, features: str) -> tuple[list[Any], dict[str, Any]]:
    """Nodes and constants from the features to the linear part's logit."""
    steps = [
        ("Sub", [features, "mean"], "centred"),
        ("Div", ["centred", "spread"], "standard"),
        ("Clip", ["standard", "near", "far"], "cut"),
        ("MatMul", ["cut", "weight"], "product"),
        ("Add", ["product", "bias"], "beside"),
    ]
    told = {name: getattr(linear, name) for name in ("mean", "spread", "weight", "bias")}
    return _nodes(steps), told | {"near": -FAR, "far": FAR}


def _kernel(kernel: Kernel, features: str) -> tuple[list[Any], dict[str, Any]]:
    """Nodes and constants from the features to the kernel's logit, |v − x|² as |v|² + |x|² − 2 v·x."""
    steps = [
        ("Sub", ["chosen", "mean"], "centred"),
        ("Div", ["centred", "spread"], "standard"),
        ("Clip", ["standard", "near", "far"], "cut"),
        ("MatMul", ["cut", "vectors"], "products"),
        ("Mul", ["cut", "cut"], "powers"),
        ("MatMul", ["powers", "ones"], "length"),
        ("Add", ["products", "lengths"], "partly"),
        ("Add", ["partly", "length"], "squares"),
        ("Mul", ["squares", "width"], "exponent"),
        ("Exp", ["exponent"], "near_by"),
        ("MatMul", ["near_by", "weight"], "product"),
        ("Add", ["product", "bias"], "beside"),
    ]
    vectors = kernel.vectors.astype(np.float64)
    told = {
        "columns": kernel.columns,
        "mean": kernel.mean,
        "spread": kernel.spread,
        "near": -FAR,
        "far": FAR,
        "vectors": -2.0 * vectors.T,
        "ones": np.ones((vectors.shape[1], 1)),
        "lengths": (vectors**2).sum(axis=1),
        "width": -kernel.width,
        "weight": kernel.weight[:, None],
        "bias": kernel.bias,
    }
    return [helper.make_node("Gather", [features, "columns"], ["chosen"], axis=1), *_nodes(steps)], told


def _save(
    path: Path, nodes: Sequence[Any], taken: tuple[str, int], given: tuple[str, int], constants: dict[str, Any]
) -> None:
    kept = {name: np.asarray(value) for name, value in constants.items()}
    limits = [
        numpy_helper.from_array(value if value.dtype == np.int64 else value.astype(np.float32), name)
        for name, value in kept.items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "trees",
        [helper.make_tensor_value_info(taken[0], TensorProto.FLOAT, ["N", taken[1]])],
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, ["N", given[1]])],
        limits,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="bedside")
    onnx.checker.check_model(model)
    onnx.save(model, path)
