"""From a float ONNX graph to the INT8 graph that ships, and the check that they say the same.

What this module keeps true (promise 10): the INT8 graph has symmetric signed Q/DQ nodes, per-channel weights and float
biases, so that TensorRT's parser takes it as it is; no bundle is built when INT8 changes the answers: the AUROC may differ
by at most ``AUROC_DIFFERENCE`` and at most ``FLIPPED`` of the decisions may flip at the shipped threshold. Anything else is
a ``QuantisationError``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from tools.train import ptq
from tools.train.metrics import auroc

AUROC_DIFFERENCE = 0.005
FLIPPED = 0.01
CORRECTING = 40
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}

Batch = Mapping[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.floating]


class QuantisationError(Exception):
    """INT8 says something else than FP32; the message has the figures and what to try."""


class Fidelity(msgspec.Struct, frozen=True):
    """INT8 beside FP32 on the same cases: AUROC of both, and the share of decisions that differ at one threshold."""

    n: int
    auroc_fp32: float
    auroc_int8: float
    auroc_difference: float
    flipped: float
    largest_logit_difference: float


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    """Hands the calibration batches to onnxruntime one by one."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Batch | None:
        """The next batch or ``None`` at the end."""
        return next(self._batches, None)


def quantise(
    fp32: Path,
    int8: Path,
    calibration: Iterable[Batch],
    *,
    keep_float: Sequence[str] = (),
    op_types: Sequence[str] = ("Conv", "Gemm", "MatMul", "Add"),
    method: str = "minmax",
) -> None:
    """Write the INT8 Q/DQ form of ``fp32`` to ``int8``.

    Args:
        fp32: Float graph with batch norm already folded.
        int8: Where the quantised graph goes.
        calibration: Batches of graph inputs by tensor name, from training patients only.
        keep_float: Names of nodes left in float (first or last layers, gate heads).
        op_types: Operators whose inputs are quantised.
        method: ``minmax``, ``percentile`` or ``entropy``: how ranges of activations are found.
    """
    batches = list(calibration)
    with tempfile.TemporaryDirectory() as folder:
        shaped = Path(folder) / "shaped.onnx"
        quant_pre_process(fp32, shaped, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            shaped,
            int8,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(op_types),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep_float),
            calibrate_method=METHODS[method],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "DedicatedQDQPair": False,
            },
        )
    model = onnx.load(int8)
    _drop_pairs_before_activation(model.graph)
    ptq.refine_scales(fp32, model, batches[:: max(1, len(batches) // 12)])
    ptq.correct(fp32, model, _spread(batches, CORRECTING))
    onnx.checker.check_model(model)
    onnx.save(model, int8)


def _spread(batches: Sequence[Batch], most: int) -> dict[str, npt.NDArray[np.generic]]:
    """At most ``most`` cases, taken evenly from all batches, as one batch."""
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    size = len(next(iter(joined.values())))
    chosen = np.unique(np.linspace(0, size - 1, min(most, size)).astype(np.int64))
    return {name: value[chosen] for name, value in joined.items()}


def _drop_pairs_before_activation(graph: onnx.GraphProto) -> None:
    """Conv → Q → DQ → ReLU6 → Q becomes Conv → ReLU6 → Q, the form that engines fuse; it also rounds once less."""
    made_by = {output: node for node in graph.node for output in node.output}
    gone: set[str] = set()
    for node in graph.node:
        if node.op_type not in {"Clip", "Relu"}:
            continue
        second = made_by.get(node.input[0])
        first = made_by.get(second.input[0]) if second is not None and second.op_type == "DequantizeLinear" else None
        if second is None or first is None or first.op_type != "QuantizeLinear":
            continue
        if sum(second.output[0] in other.input for other in graph.node) > 1:
            continue
        node.input[0] = first.input[0]
        gone.update((first.name, second.name))
    kept = [node for node in graph.node if node.name not in gone]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | {output.name for output in graph.output}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def session(path: Path, threads: int = 1) -> ort.InferenceSession:
    """A CPU session of ``path`` with every graph optimisation and no spinning threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(
    path: Path, batches: Iterable[Batch], names: Sequence[str], progress: Callable[[int], None] | None = None
) -> dict[str, Floats]:
    """Run every batch through the graph and join the named outputs along their first axis."""
    running = session(path)
    parts: dict[str, list[Floats]] = {name: [] for name in names}
    for batch in batches:
        for name, value in zip(names, running.run(list(names), dict(batch)), strict=True):
            parts[name].append(value)
        if progress is not None:
            progress(len(next(iter(batch.values()))))
    return {name: np.concatenate(values) for name, values in parts.items()}


def fidelity(labels: Floats, fp32: Floats, int8: Floats, threshold: float) -> Fidelity:
    """Compare the logits ``[n]`` of both graphs on the same cases; ``threshold`` is a logit, the one that ships."""
    before, after = auroc(labels, fp32), auroc(labels, int8)
    return Fidelity(
        n=len(labels),
        auroc_fp32=before,
        auroc_int8=after,
        auroc_difference=abs(before - after),
        flipped=float(np.mean((fp32 >= threshold) != (int8 >= threshold))),
        largest_logit_difference=float(np.max(np.abs(fp32 - int8))),
    )


def require(what: str, measured: Fidelity) -> None:
    """Raise ``QuantisationError`` unless INT8 answers as FP32 does, within the module's two limits."""
    if measured.auroc_difference <= AUROC_DIFFERENCE and measured.flipped <= FLIPPED:
        return
    raise QuantisationError(
        f"{what}: INT8 differs from FP32 (AUROC {measured.auroc_fp32:.4f} → {measured.auroc_int8:.4f}, "
        f"{measured.flipped:.2%} of decisions flipped; allowed {AUROC_DIFFERENCE} and {FLIPPED:.0%}). "
        "Leave sensitive layers in float (keep_float), use more calibration cases or fine-tune with quantisation."
    )
