"""A linear reading of the untouched ImageNet net beside the fine-tuned one.

What this module keeps true: the net that is read was never trained on a medical picture, so it can't have learned a site;
only one weight for each pooled channel is fitted, on the training clips alone. Both parts are means over the same 7 × 7
places, so the activation map of the sum is the sum of the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from tools.train import lite0, quantise

Floats = npt.NDArray[np.floating]
Rows = npt.NDArray[np.bool_]
TAPS = (f"block{lite0.GATE_BLOCK}.add", "head.relu6")


def pooled(images: npt.NDArray[np.floating], folder: Path) -> npt.NDArray[np.float32]:
    """Means over the picture ``[n, channels]`` of the ImageNet net's maps ``TAPS`` for model inputs ``[n, 224, 224]``."""
    kept, graph = folder / "frozen.npy", folder / "frozen.onnx"
    if kept.exists() and len(found := np.load(kept)) == len(images):
        return np.asarray(found, np.float32)
    lite0.export(lite0.imagenet(1), graph)
    model = onnx.load(graph)
    names = [f"{tap}.mean" for tap in TAPS]
    for tap, name in zip(TAPS, names, strict=True):
        model.graph.node.append(onnx.helper.make_node("GlobalAveragePool", [tap], [name]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(model, graph)
    batches = ({"image": images[k : k + 16, None].astype(np.float32)} for k in range(0, len(images), 16))
    values = quantise.outputs(graph, batches, names)
    joined = np.concatenate([values[name].reshape(len(images), -1) for name in names], axis=1).astype(np.float32)
    np.save(kept, joined)
    return joined


def fit(
    features: npt.NDArray[np.float32],
    owner: npt.NDArray[np.int64],
    labels: Floats,
    rows: Rows,
    strength: float,
    floors: Sequence[float],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weights ``[F, channels]`` and bias ``[F]`` of logistic regressions on standardised features.

    Args:
        features: Of each frame, from ``pooled``.
        owner: The clip of each frame; a clip weighs one, both classes the same.
        labels: ``[clips, F]``, NaN where unknown.
        rows: The clips to learn from.
        strength: scikit-learn's ``C``.
        floors: Of each finding, what is added to every channel's spread, as a share of the median spread: channels that
            hardly move get less weight, which INT8 rounding of them would multiply.
    """
    from sklearn.linear_model import LogisticRegression

    weights, biases = [], []
    for column, floor in zip(labels.T, floors, strict=True):
        known = (rows & ~np.isnan(column))[owner]
        truth, each = column[owner][known], 1.0 / np.bincount(owner)[owner][known]
        for value in (0.0, 1.0):
            each[truth == value] *= 0.5 * known.sum() / each[truth == value].sum()
        mean, spread = features[known].mean(0), features[known].std(0) + 1e-3
        spread = spread + np.float32(floor) * np.median(spread)
        model = LogisticRegression(C=strength, max_iter=300)
        model.fit((features[known] - mean) / spread, truth, sample_weight=each)
        weights.append(model.coef_[0] / spread)
        biases.append(model.intercept_[0] - float(weights[-1] @ mean))
    return np.asarray(weights, np.float32), np.asarray(biases, np.float32)


def beside(
    weights: npt.NDArray[np.float32], biases: npt.NDArray[np.float32], share: Sequence[float], since: int
) -> lite0.Beside:
    """What ``lite0.export`` adds to a fine-tuned net: ``share`` of each finding's logit comes from here."""
    part = np.asarray(share, np.float32)
    return lite0.Beside(
        net=lite0.imagenet(1),
        since=since,
        own=1.0 - part,
        weight=weights * part[:, None],
        bias=biases * part,
    )
