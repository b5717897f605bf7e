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

FAR = 4.0
"""Standard deviations at which a feature is cut off for the linear part."""


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
) -> None:
    """Write a fitted ``ExtraTreesRegressor`` on 0/1 targets; output ``[N, targets]``, ``CERTAIN`` to 1 − ``CERTAIN``.

    With ``linear`` the output is the probability whose logit is the trees' plus the linear part's.
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
    kept = "trees" if linear else output_name
    clip = helper.make_node("Clip", ["sum", "lowest", "highest"], [kept])
    constants = {"lowest": CERTAIN, "highest": 1.0 - CERTAIN}
    more, told = ([], {}) if linear is None else _beside(linear, input_name, kept, output_name)
    _save(path, [ensemble, clip, *more], (input_name, features), (output_name, targets), constants | told)


def _beside(linear: Linear, features: str, trees: str, output: str) -> tuple[list[Any], dict[str, Any]]:
    """Nodes and constants from features and the trees' probability to the probability of both logits' sum."""
    steps = [
        ("Sub", [features, "mean"], "centred"),
        ("Div", ["centred", "spread"], "standard"),
        ("Clip", ["standard", "near", "far"], "cut"),
        ("MatMul", ["cut", "weight"], "product"),
        ("Add", ["product", "bias"], "linear"),
        ("Sub", ["one", trees], "other"),
        ("Div", [trees, "other"], "odds"),
        ("Log", ["odds"], "logit"),
        ("Add", ["logit", "linear"], "joined"),
        ("Sigmoid", ["joined"], output),
    ]
    told = {name: getattr(linear, name) for name in ("mean", "spread", "weight", "bias")}
    nodes = [helper.make_node(kind, taken, [given]) for kind, taken, given in steps]
    return nodes, told | {"near": -FAR, "far": FAR, "one": 1.0}


def _save(
    path: Path, nodes: Sequence[Any], taken: tuple[str, int], given: tuple[str, int], constants: dict[str, Any]
) -> None:
    limits = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
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
