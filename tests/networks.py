"""Small networks shaped like the ones that ship, quantised by the shipping pipeline, and bundles around them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from appliance.inference.bundle import (
    Accepts,
    Description,
    FindingSpec,
    Gate,
    Golden,
    Graph,
    OperatingPoint,
    Preprocess,
    Score,
    Tensor,
    Wording,
)
from appliance.records import Code, Modality
from tools.train.bundle_writer import GOLDEN, to_toml, write_golden
from tools.train.quantise import quantise

KINDS = ("mobilenet", "resnet", "densenet")


class Builder:
    """Adds layers with random weights of a sensible scale to a graph."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def constant(self, values: np.ndarray) -> str:
        self.count += 1
        name = f"c{self.count}"
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        self.count += 1
        name = f"{op.lower()}{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n_{name}", **attributes))
        return name

    def conv(self, x: str, channels: int, to: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        fan = kernel * kernel * channels // group
        weights = self.random.normal(0, (2 / fan) ** 0.5, (to, channels // group, kernel, kernel)).astype(np.float32)
        weights *= np.exp(self.random.normal(0, 0.5, (to, 1, 1, 1))).astype(np.float32)
        bias = self.random.normal(0, 0.2, to).astype(np.float32)
        pad = kernel // 2
        return self.add(
            "Conv",
            [x, self.constant(weights), self.constant(bias)],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=group,
        )

    def relu6(self, x: str) -> str:
        return self.add("Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))])

    def norm(self, x: str, channels: int) -> str:
        def per_channel(low: float, high: float) -> str:
            return self.constant(self.random.uniform(low, high, channels).astype(np.float32))

        parts = [per_channel(0.5, 1.5), per_channel(-0.3, 0.3), per_channel(-0.2, 0.2), per_channel(0.5, 1.5)]
        return self.add("BatchNormalization", [x, *parts])


def _mobilenet(b: Builder, x: str) -> tuple[str, int]:
    x = b.relu6(b.conv(x, 1, 8, 3, 2))
    x = b.conv(b.relu6(b.conv(x, 8, 8, 3, group=8)), 8, 8, 1)
    for _ in range(2):
        wide = b.relu6(b.conv(x, 8, 24, 1))
        deep = b.relu6(b.conv(wide, 24, 24, 3, group=24))
        x = b.add("Add", [x, b.conv(deep, 24, 8, 1)])
    return b.relu6(b.conv(x, 8, 32, 1)), 32


def _resnet(b: Builder, x: str) -> tuple[str, int]:
    x = b.add("Relu", [b.conv(x, 1, 8, 3, 2)])
    x = b.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    for _ in range(2):
        y = b.conv(b.add("Relu", [b.conv(x, 8, 8, 3)]), 8, 8, 3)
        x = b.add("Relu", [b.add("Add", [x, y])])
    return b.add("Relu", [b.conv(x, 8, 24, 3, 2)]), 24


def _densenet(b: Builder, x: str) -> tuple[str, int]:
    x, channels = b.add("Relu", [b.conv(x, 1, 8, 3, 2)]), 8
    for _ in range(3):
        y = b.conv(b.add("Relu", [b.norm(x, channels)]), channels, 4, 3)
        x, channels = b.add("Concat", [x, y], axis=1), channels + 4
    return b.add("Relu", [b.conv(x, channels, 24, 1)]), 24


def network(kind: str, *, seed: int = 0, pixels: int = 32) -> onnx.ModelProto:
    """A float classifier ``image [N, 1, pixels, pixels]`` → ``logits [N, 3]`` and its last feature map."""
    b = Builder(seed)
    features, channels = {"mobilenet": _mobilenet, "resnet": _resnet, "densenet": _densenet}[kind](b, "image")
    flat = b.add("Flatten", [b.add("GlobalAveragePool", [features])])
    weights = b.random.normal(0, (1 / channels) ** 0.5, (3, channels)).astype(np.float32)
    gemm = [flat, b.constant(weights), b.constant(b.random.normal(0, 0.2, 3).astype(np.float32))]
    b.nodes.append(helper.make_node("Gemm", gemm, ["logits"], name="n_logits", transB=1))
    shape = ["N", 1, pixels, pixels]
    graph = helper.make_graph(
        b.nodes,
        kind,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        b.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def images(count: int, *, seed: int = 7, pixels: int = 32) -> np.ndarray:
    """Smooth random pictures ``[count, 1, pixels, pixels]``, roughly of mean 0 and deviation 1."""
    random = np.random.default_rng(seed)
    coarse = random.normal(0, 1, (count, 1, pixels // 4, pixels // 4))
    return (np.kron(coarse, np.ones((4, 4))) + random.normal(0, 0.3, (count, 1, pixels, pixels))).astype(np.float32)


def quantised(kind: str, folder: Path, *, seed: int = 0, method: str = "minmax") -> tuple[Path, Path]:
    """Paths of the float form and of its shipped form: symmetric signed Q/DQ with float biases."""
    fp32, int8 = folder / f"{kind}-{seed}-fp32.onnx", folder / f"{kind}-{seed}.onnx"
    onnx.save(network(kind, seed=seed), fp32)
    quantise(fp32, int8, [{"image": picture[None]} for picture in images(16)], method=method)
    return fp32, int8


def description(bundle_id: str, version: str, graphs: Mapping[str, str], *, absolute: float = 0.3) -> Description:
    """A whole description of a made-up bundle, one finding."""
    return Description(
        format=1,
        id=bundle_id,
        version=version,
        modality=Modality.CHEST_XRAY,
        title="A made-up network",
        licence="CC0-1.0",
        intended_use="tests",
        not_for=["patients"],
        accepts=Accepts(),
        preprocess=Preprocess(kind="chest-xray/1"),
        graphs=[
            Graph(
                name=name,
                file=file,
                inputs=[Tensor(name="image", dtype="float32", shape=["N", 1, 32, 32])],
                outputs=[Tensor(name="logits", dtype="float32", shape=["N", 3])],
            )
            for name, file in graphs.items()
        ],
        findings=[
            FindingSpec(
                id="pneumonia",
                code=Code(scheme="SCT", value="233604007", meaning="Pneumonia"),
                wording=[Wording(label="opacity", advice_positive="see a doctor")],
                scores=[Score(graph=next(iter(graphs)), output="logits")],
                operating_points=[OperatingPoint(threshold=0.5, sensitivity=0.9, specificity=0.9, chosen_for="a test")],
            )
        ],
        gate=Gate(),
        refusals={},
        golden=Golden(file=GOLDEN, absolute=absolute),
        files={},
        advice_negative="none",
    )


def write_bundle(
    root: Path, model: Path, *, bundle_id: str = "made-up", version: str = "1.0.0", absolute: float = 0.3
) -> Path:
    """A bundle of one graph, ``net``, with two golden cases made by the model itself."""
    root.mkdir(parents=True)
    (root / "model.onnx").write_bytes(model.read_bytes())
    cases = {name: {"net": {"image": images(1, seed=seed)}} for seed, name in enumerate(("first", "second"))}
    write_golden(root, {"net": root / "model.onnx"}, cases)
    seal(root, description(bundle_id, version, {"net": "model.onnx"}, absolute=absolute))
    return root


def seal(root: Path, described: Description) -> None:
    """Write ``bundle.toml`` with the hashes of the files that lie in ``root``."""
    names = ["model.onnx", GOLDEN]
    hashes = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names}
    complete = msgspec.structs.replace(described, files=hashes)
    (root / "bundle.toml").write_text(to_toml(msgspec.to_builtins(complete)))
