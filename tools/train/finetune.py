"""Fine-tuning of the last stages of Lite0 on cached maps of the frozen first stages.

What this module keeps true: the same seed and the same cached maps give the same weights on one machine; the weights that
are kept are an exponential average over the steps; batches are drawn by source and class, so that neither a large source
nor a common class decides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf

from tools.train import lite0, quantise

Maps = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Numbers of a fine-tuning, from the model's TOML file."""

    since: int
    steps: int
    rate: float = 3e-4
    head_rate: float = 3e-3
    decay: float = 1e-2
    smoothing: float = 0.05
    mixup: float = 0.2
    average: float = 0.98
    dropout: float = 0.3


class Draw(msgspec.Struct, frozen=True):
    """A share of every batch: ``count`` rows of ``rows``, drawn by ``weights``."""

    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    count: int


class Examples(msgspec.Struct, frozen=True):
    """Cached maps ``[M, C, h, w]`` and targets ``[M, F]`` (NaN: unknown)."""

    maps: Maps
    targets: Floats


def front_session(folder: Path, since: int) -> Callable[[Floats], Maps]:
    """A function from images ``[N, 1, 224, 224]`` to the frozen front's maps before block ``since``."""
    import onnx

    path = folder / f"front{since}.onnx"
    lite0.export(lite0.imagenet(1), path)
    model = onnx.load(path)
    names = {node.output[0] for node in model.graph.node}
    last = f"block{since - 1}.add"
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(
            last if last in names else f"block{since - 1}.project", onnx.TensorProto.FLOAT, None
        )
    )
    name = model.graph.output[-1].name
    extractor = onnx.utils.Extractor(model)
    onnx.save(extractor.extract_model(["image"], [name]), path)
    running = quantise.session(path)

    def maps(images: Floats) -> Maps:
        return np.asarray(running.run([name], {"image": images})[0], dtype=np.float16)

    return maps


def train(
    examples: Examples, draws: Sequence[Draw], settings: Settings, seed: int, log: Callable[[str], None]
) -> lite0.Lite0:
    """A net fine-tuned from block ``settings.since`` on, in evaluation mode."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    net = lite0.imagenet(examples.targets.shape[1], settings.dropout)
    mean = copy.deepcopy(net)
    net.train()
    for parameter in net.parameters():
        parameter.requires_grad_(requires_grad=False)
    body, head = net.trained(settings.since), list(net.fc.parameters())
    for parameter in [*body, *head]:
        parameter.requires_grad_(requires_grad=True)
    optimiser = torch.optim.AdamW(
        [{"params": body, "lr": settings.rate}, {"params": head, "lr": settings.head_rate}], weight_decay=settings.decay
    )
    warm = max(1, settings.steps // 10)

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, settings.steps - warm))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    for step in range(settings.steps):
        loss = _loss(net, _batch(examples, draws, settings, random), settings)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*body, *head], 2.0)
        optimiser.step()
        schedule.step()
        _average(mean, net, min(settings.average, (1 + step) / (10 + step)))
        if step % 20 == 19:
            log(f"step {step + 1}/{settings.steps} loss {loss.item():.3f}")
    return mean.eval()


def _batch(
    examples: Examples, draws: Sequence[Draw], settings: Settings, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.concatenate([random.choice(d.rows, d.count, p=d.weights / d.weights.sum()) for d in draws])
    maps = torch.from_numpy(examples.maps[rows].astype(np.float32))
    targets = torch.from_numpy(examples.targets[rows])
    smooth = targets * (1 - settings.smoothing) + 0.5 * settings.smoothing
    if settings.mixup > 0:
        share = float(random.beta(settings.mixup, settings.mixup))
        other = torch.from_numpy(random.permutation(len(rows)))
        maps = share * maps + (1 - share) * maps[other]
        smooth = share * smooth + (1 - share) * smooth[other]
    return maps.contiguous(memory_format=torch.channels_last), smooth


def _loss(net: lite0.Lite0, batch: tuple[torch.Tensor, torch.Tensor], settings: Settings) -> torch.Tensor:
    maps, targets = batch
    logits, _ = net.back(maps, settings.since)
    known = ~torch.isnan(targets)
    return nnf.binary_cross_entropy_with_logits(logits[known], targets[known])


@torch.no_grad()
def _average(mean: lite0.Lite0, net: lite0.Lite0, keep: float) -> None:
    for old, new in zip(mean.parameters(), net.parameters(), strict=True):
        if new.requires_grad:
            old.mul_(keep).add_(new, alpha=1 - keep)


@torch.no_grad()
def score(net: lite0.Lite0, maps: Maps, since: int, batch: int = 64) -> tuple[Floats, Floats]:
    """Logits ``[N, F]`` and activation maps ``[N, F, 7, 7]`` of cached maps, in float."""
    parts = [
        net.back(torch.from_numpy(part.astype(np.float32)).contiguous(memory_format=torch.channels_last), since)
        for part in chunks(maps, batch)
    ]
    return torch.cat([p[0] for p in parts]).numpy(), torch.cat([p[1] for p in parts]).numpy()


def chunks(array: npt.NDArray[np.generic], size: int) -> Iterator[npt.NDArray[np.generic]]:
    """``array`` in pieces of ``size`` rows."""
    for start in range(0, len(array), size):
        yield array[start : start + size]


def soup(nets: Sequence[lite0.Lite0]) -> lite0.Lite0:
    """The mean of the weights of nets fine-tuned from one start (Wortsman 2022)."""
    mixed = copy.deepcopy(nets[0])
    with torch.no_grad():
        for name, parameter in mixed.named_parameters():
            parameter.copy_(torch.stack([dict(net.named_parameters())[name] for net in nets]).mean(0))
    return mixed.eval()
