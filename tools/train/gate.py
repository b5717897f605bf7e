"""The trained input gate: a logistic on features of the same pass, and the distance from the training features.

What this module keeps true: the gate is fitted to what the shipped INT8 graph puts out, and is measured on patients and on
kinds of wrong input that its measured copy was not fitted to. The distance may only warn: it grows on every new hospital.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.floating]
HIDDEN = 24
MOST = 6000
"""Good captures that one fit looks at."""


class Fitted(msgspec.Struct, frozen=True):
    """A small net ``relu(x·first + first_bias)·second + second_bias``, and whitening of good features for the distance."""

    first: Floats
    first_bias: Floats
    second: Floats
    second_bias: Floats
    mean: Floats
    whiten: Floats

    def logit(self, features: Floats) -> Floats:
        """Logit ``[n]`` of "a good capture" for features ``[n, d]``."""
        hidden = np.maximum(features @ self.first + self.first_bias, 0)
        return (hidden @ self.second + self.second_bias)[:, 0]


def fit(good: Floats, bad: Floats, bad_kinds: npt.NDArray[np.str_], seed: int = 0) -> Fitted:
    """Fit to features ``[n, d]`` of good captures and of wrong ones, every kind of wrong input weighing the same."""
    from sklearn.neural_network import MLPClassifier

    random = np.random.default_rng(seed)
    kinds = sorted(set(bad_kinds))
    right = good[random.permutation(len(good))[:MOST]]  # more copies of the same films add time, not knowledge
    each = max(1, round(1.5 * len(right) / len(kinds)))
    drawn = np.concatenate([random.choice(np.flatnonzero(bad_kinds == kind), each) for kind in kinds])
    features = np.concatenate([right, bad[drawn]]).astype(np.float32)
    labels = np.concatenate([np.ones(len(right)), np.zeros(len(drawn))])
    centre, spread = features.mean(0), features.std(0) + 1e-3
    net = MLPClassifier((HIDDEN,), alpha=0.3, learning_rate_init=4e-3, max_iter=20, batch_size=128, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fixed number of passes is what is wanted, not convergence
        net.fit((features - centre) / spread, labels)
    first = net.coefs_[0] / spread[:, None]
    values, vectors = np.linalg.eigh(np.cov(good.T))
    kept = values > values.max() * 1e-3
    return Fitted(
        first=first.astype(np.float32),
        first_bias=(net.intercepts_[0] - (centre / spread) @ net.coefs_[0]).astype(np.float32),
        second=net.coefs_[1].astype(np.float32),
        second_bias=net.intercepts_[1].astype(np.float32),
        mean=good.mean(0).astype(np.float32),
        whiten=(vectors[:, kept] / np.sqrt(values[kept] * kept.sum())).astype(np.float32),
    )


def distance(fitted: Fitted, features: Floats) -> Floats:
    """Mahalanobis distance by the root of the dimension: about 1 for captures like those trained on."""
    return np.sqrt(np.square((features - fitted.mean) @ fitted.whiten).sum(1))


def attach(model: Path, fitted: Fitted) -> None:
    """Replace the graph's output ``features`` by ``gate`` ``[N, 1]`` (logit) and ``distance`` ``[N, 1]``, in float."""
    loaded = onnx.load(model)
    graph = loaded.graph
    constants = {
        "gate.first": fitted.first,
        "gate.first_bias": fitted.first_bias,
        "gate.second": fitted.second,
        "gate.second_bias": fitted.second_bias,
        "gate.mean": fitted.mean,
        "gate.whiten": fitted.whiten,
        "gate.axes": np.array([1], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in constants.items())
    graph.node.extend(
        [
            helper.make_node("Gemm", ["features", "gate.first", "gate.first_bias"], ["gate.hidden"], "gate.hidden"),
            helper.make_node("Relu", ["gate.hidden"], ["gate.active"], "gate.active"),
            helper.make_node("Gemm", ["gate.active", "gate.second", "gate.second_bias"], ["gate"], "gate"),
            helper.make_node("Sub", ["features", "gate.mean"], ["gate.centred"], "gate.centred"),
            helper.make_node("MatMul", ["gate.centred", "gate.whiten"], ["gate.white"], "gate.white"),
            helper.make_node("Mul", ["gate.white", "gate.white"], ["gate.square"], "gate.square"),
            helper.make_node("ReduceSum", ["gate.square", "gate.axes"], ["gate.sum"], "gate.sum", keepdims=1),
            helper.make_node("Sqrt", ["gate.sum"], ["distance"], "distance"),
        ]
    )
    kept = [output for output in graph.output if output.name != "features"]
    del graph.output[:]
    graph.output.extend(kept)
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("gate", "distance")
    )
    onnx.checker.check_model(loaded)
    onnx.save(loaded, model)


def refused(logits: Floats, threshold: float) -> float:
    """Share of captures refused at a probability ``threshold``."""
    return float(np.mean(1 / (1 + np.exp(-logits)) < threshold))


def choose_threshold(good: Floats, share: float) -> float:
    """The probability below which ``share`` of good captures (held-out logits) fall."""
    return float(1 / (1 + np.exp(-np.quantile(good, share))))


def measured(
    good: Floats, patients: npt.NDArray[np.int64], bad: Floats, kinds: npt.NDArray[np.str_], rows: npt.NDArray[np.int64]
) -> tuple[Floats, Floats, Mapping[str, Floats]]:
    """Held-out logits of good and of bad captures by fold of patients, and of each kind when that kind was left out.

    Args:
        good: Features of good captures ``[n, d]``.
        patients: Fold of each good capture.
        bad: Features of wrong captures ``[m, d]``.
        kinds: Kind of each wrong capture.
        rows: Fold of each wrong capture (that of the patient it was made of).
    """
    good_logits, bad_logits = np.zeros(len(good)), np.zeros(len(bad))
    for fold in sorted(set(patients)):
        there, away = patients == fold, rows == fold
        fitted = fit(good[~there], bad[~away], kinds[~away])
        good_logits[there] = fitted.logit(good[there])
        bad_logits[away] = fitted.logit(bad[away])
    unseen = {
        kind: fit(good, bad[kinds != kind], kinds[kinds != kind]).logit(bad[kinds == kind]) for kind in set(kinds)
    }
    return good_logits, bad_logits, unseen
