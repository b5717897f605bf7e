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
    """One log-band channel: frame and hop in samples, band edges in Hz.

    ``spread``: centred levels are divided by (their deviation + this); 0: by nothing. ``skip``: frames left out at the
    start, so that front ends of different frames are centred on the same instant.
    """

    frame: int
    hop: int
    edges_hz: tuple[float, ...]
    spread: float = 0.3
    scale: float = 1.0
    skip: int = 0


class LogBands(nn.Module):
    """Samples ``[N, samples]`` → ``[N, bands, frames]``: power in bands, logarithm, minus the mean over time.

    In the graph the DFT is a convolution; ``fast`` is the same by FFT, for training.
    """

    def __init__(self, rate_hz: int, front: FrontEnd) -> None:
        super().__init__()
        turn = 2.0 * np.pi * np.outer(np.arange(front.frame // 2 + 1), np.arange(front.frame)) / front.frame
        kernels = np.concatenate([np.cos(turn), np.sin(turn)]) * hann(front.frame)
        matrix = bands(rate_hz, front.frame, front.edges_hz)
        used = np.flatnonzero(matrix.sum(axis=1) > 0)
        rows = np.concatenate([used, used + front.frame // 2 + 1])
        self.front = front
        self.dft = nn.Conv1d(1, rows.size, front.frame, stride=front.hop, bias=False)
        self.sums = nn.Conv1d(rows.size, matrix.shape[1], 1, bias=False)
        self.dft.weight.data = torch.tensor(kernels[rows], dtype=torch.float32)[:, None, :]
        self.sums.weight.data = torch.tensor(np.concatenate([matrix[used]] * 2).T, dtype=torch.float32)[:, :, None]
        self.matrix, self.window = torch.tensor(matrix), torch.tensor(hann(front.frame))
        for parameter in self.parameters():
            parameter.requires_grad = False

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Standardised log bands, as the graph computes them."""
        spectrum = self.dft(samples.unsqueeze(1))
        return self._standardised(self.sums(spectrum * spectrum))

    def fast(self, samples: torch.Tensor) -> torch.Tensor:
        """Standardised log bands by FFT."""
        spectrum = torch.fft.rfft(samples.unfold(1, self.front.frame, self.front.hop) * self.window)
        power = spectrum.real**2 + spectrum.imag**2
        return self._standardised((power @ self.matrix).transpose(1, 2))

    def _standardised(self, power: torch.Tensor) -> torch.Tensor:
        level = torch.log(power[:, :, self.front.skip :] + 1e-7)
        centred = level - level.mean(dim=2, keepdim=True)
        if self.front.spread <= 0.0:
            return centred * self.front.scale
        deviation = torch.sqrt((centred * centred).mean(dim=2, keepdim=True) + 1e-6)
        return centred / (deviation + self.front.spread) * self.front.scale


def along_time(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """Convolution over time with bands as channels, batch norm, ReLU."""
    convolution = nn.Conv1d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())


def over_plane(inputs: int, outputs: int, kernel: int, stride: int, along_bands: int) -> nn.Sequential:
    """Convolution over the plane of bands and time, batch norm, ReLU; ``along_bands`` is the stride over bands."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=(along_bands, stride), padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class SoundNet(nn.Module):
    """Log bands, convolutions, mean over time, linear: samples ``[N, samples]`` → logits ``[N, outputs]``.

    ``layers`` are [channels, kernel, stride] (over time, bands as channels) or [channels, kernel, stride, stride over
    bands] (over the plane, front ends as channels). ``members`` nets of different beginnings are trained side by side and
    averaged. ``teach`` more outputs are targets (hand features) that only training uses.
    """

    def __init__(
        self,
        rate_hz: int,
        fronts: Sequence[FrontEnd],
        layers: Sequence[Sequence[int]],
        outputs: int,
        dropout: float = 0.3,
        teach: int = 0,
        members: int = 1,
    ) -> None:
        super().__init__()
        self.fronts = nn.ModuleList(LogBands(rate_hz, front) for front in fronts)
        self.plane = len(layers[0]) == 4
        first = len(fronts) if self.plane else sum(len(front.edges_hz) - 1 for front in fronts)
        bodies = []
        for _ in range(members):
            channels, blocks = first, []
            for layer in layers:
                blocks.append((over_plane if self.plane else along_time)(channels, *layer))
                channels = layer[0]
            bodies.append(nn.Sequential(*blocks))
        self.bodies = nn.ModuleList(bodies)
        self.drop = nn.Dropout(dropout)
        self.heads = nn.ModuleList(nn.Linear(layers[-1][0], outputs) for _ in range(members))
        self.teachers = nn.ModuleList(nn.Linear(layers[-1][0], teach) for _ in range(members)) if teach else None

    def spectrum(self, samples: torch.Tensor, *, fast: bool = False) -> torch.Tensor:
        """All front ends, joined along the bands or stacked as planes; the shortest number of frames counts."""
        parts = [front.fast(samples) if fast else front(samples) for front in self.fronts]
        frames = min(part.shape[2] for part in parts)
        cut = [part[:, :, :frames] for part in parts]
        return torch.stack(cut, dim=1) if self.plane else torch.cat(cut, dim=1)

    def pooled(self, spectrum: torch.Tensor) -> list[torch.Tensor]:
        """Each member's mean of the last feature maps, ``[N, channels]``."""
        over = (2, 3) if self.plane else 2  # no reshape between: it would keep the last convolution in float
        return [body(spectrum).mean(dim=over) for body in self.bodies]

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Logits, the mean of the members'."""
        pooled = self.pooled(self.spectrum(samples))
        logits = [head(one) for head, one in zip(self.heads, pooled, strict=True)]
        return torch.stack(logits).mean(dim=0) if len(logits) > 1 else logits[0]


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
"""Samples ``[N, samples]``, soft targets ``[N, outputs]``, weights ``[N, outputs]``, lessons ``[N, teach]`` (may be
empty, NaN where there is none)."""


def train(
    net: SoundNet,
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
            spectrum = _mask(net.spectrum(samples, fast=True), schedule, random)
        pooled, known = [net.drop(one) for one in net.pooled(spectrum)], torch.isfinite(lessons).all(dim=1)
        loss = torch.zeros(())
        for number, one in enumerate(pooled):
            logit = net.heads[number](one)
            loss = loss + nn.functional.binary_cross_entropy_with_logits(logit, targets, weight=weights)
            if net.teachers is not None:
                told = net.teachers[number](one)[known]
                loss = loss + schedule.teach_weight * nn.functional.smooth_l1_loss(told, lessons[known])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        cycle.step()
        if (step + 1) % 100 == 0:
            progress(f"step {step + 1}/{schedule.steps} loss {loss.item() / len(pooled):.3f}")
    net.eval()


def _mask(spectrum: torch.Tensor, schedule: Schedule, random: np.random.Generator) -> torch.Tensor:
    """SpecAugment: one stripe of bands and one of frames set to the mean (0), per case."""
    count, channels, frames = spectrum.shape[0], spectrum.shape[-2], spectrum.shape[-1]
    for row in range(count):
        width = int(random.integers(0, schedule.mask_bands + 1))
        begin = int(random.integers(0, channels - width + 1))
        spectrum[row, ..., begin : begin + width, :] = 0.0
        width = int(random.integers(0, schedule.mask_frames + 1))
        begin = int(random.integers(0, max(1, frames - width)))
        spectrum[row, ..., begin : begin + width] = 0.0
    return spectrum


def export(net: SoundNet, samples: int, path: Path, output: str = "logit") -> list[str]:
    """Write the float graph to ``path`` (input ``samples`` ``[N, samples]``); returns the nodes that must stay in float."""
    import onnx

    net.eval()
    net.teachers = None
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
