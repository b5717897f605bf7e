"""Plans of ONNX Runtime's TensorRT provider: built out of band like native ones, never while a capture waits.

What this module keeps true: the provider's own engine cache lies in a folder that is found only by this runtime, GPU and
model, and is offered only while every file in it has the SHA-256 it had after the build; the provider throws on stale ones.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance.inference import onnx, plans
from appliance.inference.bundle import Bundle, Graph
from appliance.inference.cache import Artefact, Cache, digest
from appliance.inference.device import Gpu
from appliance.inference.engine import Engine, EngineError

_MANIFEST = "manifest.json"


def facts(bundle: Bundle, graph: Graph, gpu: Gpu) -> dict[str, str]:
    """What the provider's plan of ``graph`` depends on; the runtime is built for one TensorRT."""
    return {**plans.facts(bundle, graph, gpu, onnx.RUNTIME), "kind": "provider-plan"}


def find(bundle: Bundle, graph: Graph, gpu: Gpu, cache: Cache) -> Artefact | None:
    """The plan that was built, if every file of it is as it was then."""
    there = cache.get(facts(bundle, graph, gpu))
    if there is None:
        return None
    folder = there.path.parent
    try:
        listed = msgspec.json.decode(there.path.read_bytes(), type=dict[str, str])
        whole = all(digest(folder / name) == sha256 for name, sha256 in listed.items())
    except (OSError, msgspec.MsgspecError):
        whole = False
    if not whole:
        cache.drop(there)
        return None
    return there


def build(bundle: Bundle, graph: Graph, gpu: Gpu, cache: Cache, *, progress: plans.Progress) -> Artefact:
    """Let the provider build its plan; raises like ``plans.build``. The provider itself tells no progress."""
    there = find(bundle, graph, gpu, cache)
    if there is not None:
        return there

    def write(manifest: Path) -> None:
        folder = manifest.parent
        _session(bundle, graph, folder).close()
        files = {path.name: digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
        if not files:
            raise EngineError(
                f"{bundle.id}/{graph.name}: TensorRT's provider kept no plan; see its messages in the log"
            )
        manifest.write_bytes(msgspec.json.encode(files))

    try:
        with plans.only_build(cache.root) as told:
            start = plans.Step(bundle=bundle.id, graph=graph.name, phase="ONNX Runtime builds, without telling how far")
            told(start)
            progress(start)
            return cache.put(facts(bundle, graph, gpu), _MANIFEST, write)
    except OSError as error:
        raise EngineError(f"{cache.root}: can't be written ({error.strerror}); check the disk and its owner") from error


def load(bundle: Bundle, graph: Graph, built: Artefact) -> Engine:
    """The engine of a plan that ``find`` gave."""
    return _session(bundle, graph, built.path.parent, built.sha256)


def _session(bundle: Bundle, graph: Graph, folder: Path, sha256: str = "") -> onnx.OnnxEngine:
    profile = {
        name: ("x".join(map(str, low)), "x".join(map(str, usual)), "x".join(map(str, high)))
        for name, (low, usual, high) in plans.shapes(graph).items()
    }
    return onnx.load(
        bundle.path(graph.file),
        provider="tensorrt-ort",
        precision=graph.precision,
        sha256=sha256 or bundle.description.files[graph.file],
        cache=folder,
        profile=profile,
    )
