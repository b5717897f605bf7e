"""Small convolutional networks over log bands, with the front end in the graph, and their distillation from trees.

What this module keeps true: the graph takes samples, so training and the box compute the same spectrum (promise 10); the
front end stays in float, only the network behind it is quantised; seeds are fixed, so a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from appliance.reading.spectral import bands, hann

Floats = npt.NDArray[np.float32]


class FrontEnd(msgspec.Struct, frozen=True, kw_only=True):
    """One log-band channel: frame and hop in samples, band edges in Hz; ``spread``: divide by (sd + this), 0 for a constant."""

    frame: int
    hop: int
    edges_hz: tuple[float, ...]
    spread: float = 0.3
    scale: float = 1.0


class LogBands(nn.Module):
    """Samples ``[N, samples]`` → ``[N, bands, frames]``: DFT as a convolution, band sums, logarithm, minus the mean over time."""

    def __init__(self, rate_hz: int, front: FrontEnd) -> None:
        super().__init__()
        turn = 2.0 * np.pi * np.outer(np.arange(front.frame // 2 + 1), np.arange(front.frame)) / front.frame
        kernels = np.concatenate([np.cos(turn), np.sin(turn)]) * hann(front.frame)
        matrix = bands(rate_hz, front.frame, front.edges_hz)
        used = np.flatnonzero(matrix.sum(axis=1) > 0)
        rows = np.concatenate([used, used + front.frame // 2 + 1])
        self.dft = nn.Conv1d(1, rows.size, front.frame, stride=front.hop, bias=False)
        self.sums = nn.Conv1d(rows.size, matrix.shape[1], 1, bias=False)
        self.dft.weight.data = torch.tensor(kernels[rows], dtype=torch.float32)[:, None, :]
        self.sums.weight.data = torch.tensor(np.concatenate([matrix[used]] * 2).T, dtype=torch.float32)[:, :, None]
        for parameter in self.parameters():
            parameter.requires_grad = False
        self.spread, self.scale = front.spread, front.scale

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Standardised log bands."""
        spectrum = self.dft(samples.unsqueeze(1))
        level = torch.log(self.sums(spectrum * spectrum) + 1e-7)
        centred = level - level.mean(dim=2, keepdim=True)
        if self.spread <= 0.0:
            return centred * self.scale
        deviation = torch.sqrt((centred * centred).mean(dim=2, keepdim=True) + 1e-6)
        return centred / (deviation + self.spread) * self.scale


def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution over time, batch norm, ReLU."""
    convolution = nn.Conv1d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())


class TimeNet(nn.Module):
    """Bands as channels, convolutions over time, mean over time, linear: samples ``[N, samples]`` → logits ``[N, outputs]``.

    ``teach`` outputs more: targets (hand features) that only training uses.
    """

    def __init__(
        self,
        rate_hz: int,
        fronts: Sequence[FrontEnd],
        layers: Sequence[Sequence[int]],
        outputs: int,
        dropout: float = 0.3,
        teach: int = 0,
    ) -> None:
        super().__init__()
        self.fronts = nn.ModuleList(LogBands(rate_hz, front) for front in fronts)
        channels = sum(len(front.edges_hz) - 1 for front in fronts)
        blocks = []
        for width, kernel, stride in layers:
            blocks.append(block(channels, width, kernel, stride))
            channels = width
        self.body = nn.Sequential(*blocks)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(channels, outputs)
        self.teach = nn.Linear(channels, teach) if teach else None

    def spectrum(self, samples: torch.Tensor) -> torch.Tensor:
        """All front ends, joined along the bands; the shortest number of frames counts."""
        parts = [front(samples) for front in self.fronts]
        frames = min(part.shape[2] for part in parts)
        return torch.cat([part[:, :, :frames] for part in parts], dim=1)

    def pooled(self, spectrum: torch.Tensor) -> torch.Tensor:
        """The mean of the last feature maps over time, ``[N, channels]``."""
        return self.body(spectrum).mean(dim=2)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.pooled(self.spectrum(samples)))
        return logits


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """How a network is trained."""

    steps: int
    batch: int
    rate: float
    weight_decay: float
    teach_weight: float = 0.5
    mask_bands: int = 6
    mask_frames: int = 30


Batch = tuple[Floats, Floats, Floats, Floats]
"""Samples ``[N, samples]``, soft targets ``[N, outputs]``, weights ``[N, outputs]``, lessons ``[N, teach]`` (may be empty)."""


def train(
    net: TimeNet,
    draw: Callable[[np.random.Generator], Batch],
    schedule: Schedule,
    seed: int,
    progress: Callable[[str], None],
) -> None:
    """Train in place with AdamW and one cycle of the learning rate; ``draw`` makes an augmented batch."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.rate, weight_decay=schedule.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, schedule.rate, total_steps=schedule.steps)
    net.train()
    for step in range(schedule.steps):
        samples, targets, weights, lessons = (torch.from_numpy(part) for part in draw(random))
        with torch.no_grad():
            spectrum = _mask(net.spectrum(samples), schedule, random)
        pooled = net.drop(net.pooled(spectrum))
        loss = nn.functional.binary_cross_entropy_with_logits(net.head(pooled), targets, weight=weights)
        if net.teach is not None:
            loss = loss + schedule.teach_weight * nn.functional.smooth_l1_loss(net.teach(pooled), lessons)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        cycle.step()
        if (step + 1) % 100 == 0:
            progress(f"step {step + 1}/{schedule.steps} loss {loss.item():.3f}")
    net.eval()


def _mask(spectrum: torch.Tensor, schedule: Schedule, random: np.random.Generator) -> torch.Tensor:
    """SpecAugment: one stripe of bands and one of frames set to the mean (0), per case."""
    count, channels, frames = spectrum.shape
    for row in range(count):
        width = int(random.integers(0, schedule.mask_bands + 1))
        begin = int(random.integers(0, channels - width + 1))
        spectrum[row, begin : begin + width] = 0.0
        width = int(random.integers(0, schedule.mask_frames + 1))
        begin = int(random.integers(0, max(1, frames - width)))
        spectrum[row, :, begin : begin + width] = 0.0
    return spectrum


def logits(net: TimeNet, windows: Floats) -> Floats:
    """The network's logits ``[N, outputs]`` for windows ``[N, samples]``."""
    with torch.no_grad():
        parts = [net(torch.from_numpy(windows[begin : begin + 256])).numpy() for begin in range(0, len(windows), 256)]
    return np.concatenate(parts)


def export(net: TimeNet, samples: int, path: Path, output: str = "logit") -> list[str]:
    """Write the float graph to ``path`` (input ``samples`` ``[N, samples]``); returns the nodes that must stay in float."""
    import onnx

    net.eval()
    net.teach = None
    torch.onnx.export(
        net,
        (torch.zeros(2, samples),),
        str(path),
        input_names=["samples"],
        output_names=[output],
        dynamic_axes={"samples": {0: "N"}, output: {0: "N"}},
        opset_version=17,
        dynamo=False,
    )
    return [node.name for node in onnx.load(path).graph.node if "/fronts" in node.name]
