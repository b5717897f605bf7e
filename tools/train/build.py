"""Steps that the picture models share: export and quantise a net, score pictures with a graph.

What this module keeps true: what is scored is an ONNX graph, FP32, INT8 as shipped or the form derived from it on x86; the
three lie side by side as ``NAME.fp32.onnx``, ``NAME.onnx`` and ``NAME.x86.onnx``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from appliance.inference import derive
from tools.train import equalise, finetune, lite0, quantise

Floats = npt.NDArray[np.floating]


def forms(
    net: lite0.Lite0,
    path: Path,
    calibration: Floats,
    *,
    method: str,
    keep_float: Sequence[str],
    beside: lite0.Beside | None = None,
    equal: bool = False,
) -> None:
    """Write the three forms of ``net``.

    Args:
        net: What was trained.
        path: Where the INT8 graph goes, the others beside it.
        calibration: Model inputs ``[n, 224, 224]`` of training patients.
        method: How ranges of activations are found.
        keep_float: Nodes that stay in float beside the last.
        beside: A second net in the same graph.
        equal: Bring the channels of linear maps to one range before (``equalise``).
    """
    float_path = path.with_suffix(".fp32.onnx")
    lite0.export(net, float_path, beside)
    batches = [{"image": part[:, None].astype(np.float32)} for part in finetune.chunks(calibration, 16)]
    if equal:
        equalise.write(float_path, batches[:: max(1, len(batches) // 8)])
    quantise.quantise(float_path, path, batches, keep_float=[*lite0.KEEP_FLOAT, *keep_float], method=method)
    derive.write(path, path.with_suffix(".x86.onnx"), unsigned=True)


def align(path: Path, calibration: Floats) -> None:
    """Shift the last bias of the INT8 graph so that its mean logits, as shipped and on x86 together, are those of FP32.

    Both forms round differently; without this the one that the biases were not corrected for is a little off on average.
    """
    float_mean, *means = (
        scored(path.with_suffix(suffix), calibration, ["logits"])["logits"].mean(0, dtype=np.float64)
        for suffix in (".fp32.onnx", ".onnx", ".x86.onnx")
    )
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    shifted = numpy_helper.to_array(bias) + float_mean - np.mean(means, axis=0)
    bias.CopyFrom(numpy_helper.from_array(shifted.astype(np.float32), "bias"))
    onnx.save(model, path)
    derive.write(path, path.with_suffix(".x86.onnx"), unsigned=True)


def scored(path: Path, images: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """Outputs of a graph for model inputs ``[n, 224, 224]``, eight at a time."""
    return quantise.outputs(
        path, ({"image": part[:, None].astype(np.float32)} for part in finetune.chunks(images, 8)), names
    )


def speed(path: Path) -> dict[str, float]:
    """Milliseconds of one picture on one thread: FP32, INT8 as derived on x86, and their ratio (medians, interleaved).

    Counted is the processor's time, which other work on the machine hardly changes.
    """
    image = {"image": np.random.default_rng(0).random((1, 1, lite0.SIZE, lite0.SIZE), dtype=np.float32)}
    running = [quantise.session(path.with_suffix(suffix)) for suffix in (".fp32.onnx", ".x86.onnx")]
    times: list[list[float]] = [[], []]
    for turn in range(45):
        for session, taken in zip(running, times, strict=True):
            begun = time.process_time()
            session.run(["logits"], image)
            if turn >= 5:
                taken.append(1000 * (time.process_time() - begun))
    slow, fast = (float(np.median(taken)) for taken in times)
    return {"FP32, milliseconds": slow, "INT8 (x86 form), milliseconds": fast, "ratio": slow / fast}
