"""Fine-tuning of the last stages of Lite0 on cached maps of the frozen first stages.

What this module keeps true: the same seed and the same cached maps give the same weights on one machine; the weights that
are kept are an exponential average over the steps; batches are drawn by source and class, so that neither a large source
nor a common class decides. What is learned beside the findings (where they are, other labels) shapes the net only: its head
is dropped, and the graph that ships has nothing of it.
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
    place: float = 0.0
    """Weight of the loss that wants the first finding's map where its boxes are."""
    aside: float = 0.0
    """Weight of the loss of the labels beside."""


class Draw(msgspec.Struct, frozen=True):
    """A share of every batch: ``count`` rows of ``rows``, drawn by ``weights``."""

    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    count: int


class Examples(msgspec.Struct, frozen=True):
    """Cached maps ``[M, C, h, w]`` and targets ``[M, F]`` (NaN: unknown).

    ``cells``: where the first finding is, shares ``[M, h, w]`` of the activation map's cells, all 0 where that is not known.
    ``aside``: labels beside ``[M, K]`` (NaN: unknown).
    """

    maps: Maps
    targets: Floats
    cells: Maps | None = None
    aside: Floats | None = None


class Batch(msgspec.Struct, frozen=True):
    """The drawn rows of ``Examples``, smoothed and mixed."""

    maps: torch.Tensor
    targets: torch.Tensor
    cells: torch.Tensor | None
    aside: torch.Tensor | None


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
    beside = None if examples.aside is None else _blank(net.fc.in_features, examples.aside.shape[1])
    mean = copy.deepcopy(net)
    net.train()
    for parameter in net.parameters():
        parameter.requires_grad_(requires_grad=False)
    body, head = net.trained(settings.since), [*net.fc.parameters(), *(beside.parameters() if beside else ())]
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
        loss = _loss(net, beside, _batch(examples, draws, settings, random), settings)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*body, *head], 2.0)
        optimiser.step()
        schedule.step()
        _average(mean, net, min(settings.average, (1 + step) / (10 + step)))
        if step % 20 == 19:
            log(f"step {step + 1}/{settings.steps} loss {loss.item():.3f}")
    return mean.eval()


def _blank(channels: int, labels: int) -> torch.nn.Linear:
    """A last layer that starts at zero."""
    layer = torch.nn.Linear(channels, labels)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return layer


def _batch(examples: Examples, draws: Sequence[Draw], settings: Settings, random: np.random.Generator) -> Batch:
    rows = np.concatenate([random.choice(d.rows, d.count, p=d.weights / d.weights.sum()) for d in draws])
    share, other = 1.0, np.arange(len(rows))
    if settings.mixup > 0:
        share, other = float(random.beta(settings.mixup, settings.mixup)), random.permutation(len(rows))

    def mixed(values: npt.NDArray[np.floating]) -> torch.Tensor:
        drawn = torch.from_numpy(values[rows].astype(np.float32))
        return share * drawn + (1 - share) * drawn[torch.from_numpy(other)]

    smooth = mixed(examples.targets) * (1 - settings.smoothing) + 0.5 * settings.smoothing
    return Batch(
        maps=mixed(examples.maps).contiguous(memory_format=torch.channels_last),
        targets=smooth,
        cells=None if examples.cells is None else mixed(examples.cells),
        aside=None if examples.aside is None else mixed(examples.aside),
    )


def _loss(net: lite0.Lite0, beside: torch.nn.Linear | None, batch: Batch, settings: Settings) -> torch.Tensor:
    top = net.top(batch.maps, settings.since)
    logits, cams = net.read(top)
    loss = _entropy(logits, batch.targets)
    if batch.cells is not None and settings.place > 0:
        loss = loss + settings.place * misplaced(cams[:, 0], batch.cells)
    if beside is not None and batch.aside is not None and settings.aside > 0:
        pooled = nnf.dropout(top.mean((2, 3)), settings.dropout)
        loss = loss + settings.aside * _entropy(beside(pooled), batch.aside)
    return loss


def _entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the known targets; 0 where none is known."""
    known = ~torch.isnan(targets)
    if not known.any():
        return logits.sum() * 0.0
    return nnf.binary_cross_entropy_with_logits(logits[known], targets[known])


def misplaced(cams: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """How far the maps' softmax over the cells is from the boxes' shares (cross-entropy), a case without boxes counting 0.

    Only the map's shape matters, not its level, so that the mean of the map stays free to be the score.
    """
    wanted, found = cells.flatten(1), nnf.log_softmax(cams.flatten(1), dim=1)
    total = wanted.sum(1)
    return -((wanted * found).sum(1) / total.clamp_min(1e-3)).mean()


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
