"""A DenseNet121 as torchxrayvision has it, with random weights: one channel of 224 × 224 in −1024…1024, 18 outputs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.networks import Builder

BLOCKS = (6, 12, 24, 16)
OUTPUTS = 18


def _norm_relu(b: Builder, x: str, channels: int) -> str:
    return b.add("Relu", [b.norm(x, channels)])


def _layer(b: Builder, x: str, channels: int, growth: int) -> str:
    narrow = b.conv(_norm_relu(b, x, channels), channels, 4 * growth, 1)
    new = b.conv(_norm_relu(b, narrow, 4 * growth), 4 * growth, growth, 3)
    return b.add("Concat", [x, new], axis=1)


def densenet121(*, growth: int = 32, batch: int | str = "N", seed: int = 0) -> onnx.ModelProto:
    """The graph as an exporter writes it; ``growth`` 32 is the real size (7 million weights), smaller ones are quicker."""
    b = Builder(seed)
    channels = 2 * growth
    near_one = b.add("Mul", ["input", b.constant(np.float32(1 / 512))])  # what trained weights would do
    x = _norm_relu(b, b.conv(near_one, 1, channels, 7, 2), channels)
    x = b.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for number, layers in enumerate(BLOCKS):
        for _ in range(layers):
            x = _layer(b, x, channels, growth)
            channels += growth
        if number < len(BLOCKS) - 1:
            x = b.conv(_norm_relu(b, x, channels), channels, channels // 2, 1)
            channels //= 2
            x = b.add("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
    pooled = b.add("GlobalAveragePool", [_norm_relu(b, x, channels)])
    flat = b.add("Flatten", [pooled], axis=1)
    weights = b.random.normal(0, 0.01 / channels**0.5, (OUTPUTS, channels)).astype(np.float32)
    gemm = [flat, b.constant(weights), b.constant(np.zeros(OUTPUTS, np.float32))]
    b.nodes.append(helper.make_node("Gemm", gemm, ["output"], name="classifier", transB=1))
    graph = helper.make_graph(
        b.nodes,
        "densenet121",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 1, 224, 224])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, OUTPUTS])],
        b.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
