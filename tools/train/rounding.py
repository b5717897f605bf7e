"""Rounding of a layer's weights to INT8 so that its output, not each weight, is nearest to the float layer's.

What this module keeps true: scales stay as they are; each weight still lies on its channel's INT8 grid. The error of every
rounded input channel is carried on to those not yet rounded, weighted by how the inputs go together on calibration cases
(Frantar et al. 2022, GPTQ; after LeCun 1990, Hassibi 1993, Optimal Brain Surgeon).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Floats = npt.NDArray[np.floating]
Whole = npt.NDArray[np.int8]
TOP = 127
DAMPING = 0.01
SAMPLES = 6000
POSITIONS = 600


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def rounded(weight: Floats, scale: Floats, inputs: Floats, node: onnx.NodeProto) -> Whole | None:
    """INT8 weights of a pointwise or 2-D depthwise convolution; ``None`` for any other layer.

    Args:
        weight: Float weights ``[out, in / groups, k, k]``.
        scale: One scale for each output channel.
        inputs: What the layer really gets, quantised before ``[N, in, H, W]``.
        node: The convolution.
    """
    if node.op_type != "Conv" or weight.ndim != 4 or scale.size != weight.shape[0]:
        return None
    group = attributes(node).get("group", 1)
    if group == 1 and weight.shape[2:] == (1, 1):
        moments = _pixels(inputs)[None]
        flat = weight.reshape(1, weight.shape[0], -1)
        return _carried(flat, scale[None], moments)[0].reshape(weight.shape)
    if group == weight.shape[0] and weight.shape[1] == 1:
        flat = weight.reshape(group, 1, -1)
        return _carried(flat, scale[:, None], _patches(inputs, node))[:, 0].reshape(weight.shape)
    return None


def _pixels(inputs: Floats) -> Floats:
    """Second moments ``[in, in]`` of the channels over random pixels."""
    rows = np.moveaxis(inputs, 1, -1).reshape(-1, inputs.shape[1])
    chosen = rows[np.random.default_rng(0).integers(0, len(rows), SAMPLES)].astype(np.float64)
    return np.asarray(chosen.T @ chosen / len(chosen))


def _patches(inputs: Floats, node: onnx.NodeProto) -> Floats:
    """Second moments ``[channels, k·k, k·k]`` of the windows that a depthwise kernel sees."""
    found = attributes(node)
    top, left, bottom, right = found.get("pads", [0, 0, 0, 0])
    kernel, strides = tuple(found["kernel_shape"]), found.get("strides", [1, 1])
    padded = np.pad(inputs, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))[:, :, :: strides[0], :: strides[1]]
    cases, _, rows, columns = windows.shape[:4]
    random = np.random.default_rng(0)
    case, row, column = (random.integers(0, size, POSITIONS) for size in (cases, rows, columns))
    chosen = windows[case, :, row, column].reshape(POSITIONS, inputs.shape[1], -1).transpose(1, 0, 2).astype(np.float64)
    return np.asarray(chosen.transpose(0, 2, 1) @ chosen / POSITIONS)


def _carried(weight: Floats, scale: Floats, moments: Floats) -> Whole:
    """Round ``weight`` ``[B, out, in]`` column by column with ``scale`` ``[B, out]`` and ``moments`` ``[B, in, in]``."""
    size = weight.shape[2]
    level = np.maximum(np.trace(moments, axis1=1, axis2=2) / size, 1e-9)
    damped = moments + (DAMPING * level)[:, None, None] * np.eye(size)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    left = weight.astype(np.float64).copy()
    whole = np.zeros(weight.shape, np.int8)
    for column in range(size):
        grid = np.clip(np.round(left[:, :, column] / scale), -TOP, TOP)
        whole[:, :, column] = grid
        error = (left[:, :, column] - grid * scale) / factor[:, column, column, None]
        left[:, :, column + 1 :] -= error[:, :, None] * factor[:, None, column, column + 1 :]
    return whole
