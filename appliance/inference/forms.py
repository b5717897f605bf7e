"""The CPU's form of a bundle's graph: derived, optimised for this processor and written as ``.ort``, once.

What this module keeps true: the form is found again only by the same model, runtime version, processor flags and rewrites;
reading it costs no import of ``onnx``. ``.ort`` holds the graph as optimised for this hardware, so it never leaves the box.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from appliance.inference import device
from appliance.inference.bundle import Bundle, Graph
from appliance.inference.cache import Artefact, Cache
from appliance.inference.engine import EngineError

REWRITES = "4"
"""Changes when ``appliance.inference.derive`` or ``kernels`` changes, so that what an older version derived is made again."""


def facts(bundle: Bundle, graph: Graph) -> dict[str, str]:
    """What the CPU's form of ``graph`` depends on."""
    from appliance.inference.onnx import RUNTIME

    return {
        "kind": "cpu",
        "model": bundle.description.files[graph.file],
        "precision": graph.precision,
        "runtime": RUNTIME,
        "cpu": device.cpu().key,
        "rewrites": REWRITES,
    }


def make(bundle: Bundle, graph: Graph, cache: Cache) -> Artefact:
    """Derive, optimise and keep the CPU's form of ``graph``.

    Raises:
        EngineError: The model can't be derived or optimised, or the cache can't be written; the shipped form still runs.
    """
    try:
        return cache.put(facts(bundle, graph), "model.ort", lambda target: _write(bundle, graph, target))
    except OSError as error:
        raise EngineError(f"{cache.root}: can't be written ({error.strerror}); check the disk and its owner") from error


def _write(bundle: Bundle, graph: Graph, target: Path) -> None:
    source = bundle.path(graph.file)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        if graph.precision == "int8":
            from appliance.inference import derive

            derive.write(source, Path(folder) / "derived.onnx", unsigned=device.cpu().unsigned_activations)
            source = Path(folder) / "derived.onnx"
        optimise(source, target)


def optimise(source: Path, target: Path) -> None:
    """Write ``source`` (``.onnx``) as ``.ort``, every optimisation for this processor applied."""
    import onnxruntime as ort

    from appliance.inference import onnx

    chosen = onnx.options()
    chosen.optimized_model_filepath = str(target)
    try:
        ort.InferenceSession(str(source), chosen, providers=["CPUExecutionProvider"])
    except onnx.FAILURES as error:
        raise EngineError(f"{source}: onnxruntime does not take it ({error}); install the bundle again") from error
