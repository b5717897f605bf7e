"""TensorRT plans: built on this box, out of band, with progress that can be seen.

What this module keeps true: a plan is found only under the facts it was built from (model, precision, shapes, GPU, compute
capability, multiprocessors, full TensorRT version, builder flags), so a stale or foreign one is never even offered; networks
are strongly typed, all precision comes from the graph's own Q/DQ nodes; one build runs at a time, and while it runs
``building`` tells how far it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from appliance.inference import tensorrt
from appliance.inference.bundle import Bundle, Graph
from appliance.inference.cache import Artefact, Cache
from appliance.inference.device import Gpu
from appliance.inference.engine import EngineError

LARGEST_BATCH = 16
WORKSPACE_BYTES = 512 * 1024**2
FLAGS = f"strongly-typed,workspace={WORKSPACE_BYTES},optimisation=default"
_LOCK, _STATE = "build.lock", "building.json"
_WRITE_EVERY_S = 0.5

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


class Step(msgspec.Struct, frozen=True):
    """How far a build is. ``done`` of ``total`` steps of the phase ``phase``, which is ``depth`` deep in the tree."""

    bundle: str
    graph: str
    phase: str = "starting"
    done: int = 0
    total: int = 1
    depth: int = 0
    seconds: float = 0.0


Progress = Callable[[Step], None]


def shapes(graph: Graph) -> Shapes:
    """Smallest, usual and largest shape of each input; raises ``EngineError`` when an axis but the first is free."""
    found: Shapes = {}
    for tensor in graph.inputs:
        free = [axis for axis in tensor.shape[1:] if not isinstance(axis, int)]
        if free or not tensor.shape:
            raise EngineError(
                f"{graph.name}/{tensor.name}: axis {free} is free and TensorRT needs its bounds; "
                'write the size in bundle.toml or leave "tensorrt" out of the graph\'s engines'
            )
        rest = tuple(int(axis) for axis in tensor.shape[1:])
        first = tensor.shape[0]
        low, high = (1, LARGEST_BATCH) if isinstance(first, str) else (first, first)
        found[tensor.name] = ((low, *rest), (low, *rest), (high, *rest))
    return found


def facts(bundle: Bundle, graph: Graph, gpu: Gpu, version: str) -> dict[str, str]:
    """What a plan depends on: see the module's promise. ``version`` is TensorRT's, in full."""
    return {
        "kind": "plan",
        "model": bundle.description.files[graph.file],
        "precision": graph.precision,
        "inputs": msgspec.json.encode(shapes(graph)).decode(),
        "outputs": ",".join(tensor.name for tensor in graph.outputs),
        "gpu": gpu.name,
        "capability": ".".join(map(str, gpu.capability)),
        "multiprocessors": str(gpu.multiprocessors),
        "tensorrt": version,
        "flags": FLAGS,
    }


def build(
    bundle: Bundle,
    graph: Graph,
    gpu: Gpu,
    cache: Cache,
    *,
    progress: Progress = lambda _: None,
    module: str = tensorrt.MODULE,
) -> Artefact:
    """Build and keep the plan of ``graph``; the one that is there when it is there.

    Args:
        bundle: Whose graph it is.
        graph: The graph.
        gpu: The device it is built for.
        cache: Where plans and timing caches are kept.
        progress: Told of every step of the builder.
        module: Name of TensorRT's Python module.

    Raises:
        EngineMissingError: TensorRT is not here.
        EngineError: The parser or the builder refuses the graph, the cache can't be written, or another build runs.
    """
    trt = tensorrt.bindings(module)
    known = facts(bundle, graph, gpu, trt.__version__)
    there = cache.get(known)
    if there is not None:
        return there
    timing_facts = {name: known[name] for name in ("gpu", "capability", "multiprocessors", "tensorrt")}
    timing = cache.get({"kind": "timing", **timing_facts})
    try:
        with only_build(cache.root) as told:

            def tell(step: Step) -> None:
                told(step)
                progress(step)

            start = Step(bundle=bundle.id, graph=graph.name)
            tell(start)
            source = bundle.path(graph.file).read_bytes()
            before = timing.path.read_bytes() if timing is not None else b""
            plan, after = serialise(trt, source, shapes(graph), progress=tell, start=start, timing=before)
            if after:
                cache.put({"kind": "timing", **timing_facts}, "timing.cache", lambda path: path.write_bytes(after))
            return cache.put(known, "model.plan", lambda path: path.write_bytes(plan))
    except OSError as error:
        raise EngineError(f"{cache.root}: can't be written ({error.strerror}); check the disk and its owner") from error


def serialise(
    trt: Any, model: bytes, profile: Shapes, *, progress: Progress, start: Step, timing: bytes = b""
) -> tuple[bytes, bytes]:
    """Parse an ONNX model and build it: the plan, and the timing cache for the next build (empty without one)."""
    log = tensorrt.logger(trt)
    builder = trt.Builder(log)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EngineError(f"{start.bundle}/{start.graph}: TensorRT's parser refuses it: {reasons}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.progress_monitor = _monitor(trt, progress, start)
    shaped = builder.create_optimization_profile()
    for name, (low, usual, high) in profile.items():
        shaped.set_shape(name, low, usual, high)
    config.add_optimization_profile(shaped)
    with warnings.catch_warnings():
        # TensorRT-RTX keeps the timing calls as deprecated no-ops.
        warnings.simplefilter("ignore", DeprecationWarning)
        kept = config.create_timing_cache(timing)
        config.set_timing_cache(kept, ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{start.bundle}/{start.graph}: TensorRT builds no plan: {'; '.join(log.messages[-2:])}")
        return bytes(plan), bytes(kept.serialize())


def building(root: Path) -> Step | None:
    """The build that runs now in the cache folder ``root``, by whichever process; ``None`` when none does."""
    try:
        with (root / _LOCK).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                with contextlib.suppress(OSError, msgspec.MsgspecError):
                    return msgspec.json.decode((root / _STATE).read_bytes(), type=Step)
                return Step(bundle="", graph="")
    except OSError:
        pass
    return None


@contextlib.contextmanager
def only_build(root: Path) -> Iterator[Progress]:
    """Hold the build lock of a cache folder; yields what writes the visible state.

    Raises ``EngineError`` when another build holds it. The kernel frees the lock of a build that died.
    """
    root.mkdir(parents=True, exist_ok=True)
    begun, written = time.monotonic(), 0.0
    with (root / _LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EngineError("another build runs on this box; wait for it to end") from error

        def tell(step: Step) -> None:
            nonlocal written
            now = time.monotonic()
            if now - written < _WRITE_EVERY_S:
                return
            written = now
            partial = root / f"{_STATE}.{os.getpid()}"
            partial.write_bytes(msgspec.json.encode(msgspec.structs.replace(step, seconds=round(now - begun, 1))))
            partial.replace(root / _STATE)

        try:
            yield tell
        finally:
            (root / _STATE).unlink(missing_ok=True)


def _monitor(trt: Any, progress: Progress, start: Step) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.running: dict[str, Step] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            above = self.running.get(parent_phase or "")
            depth = 0 if above is None else above.depth + 1
            step = msgspec.structs.replace(start, phase=phase_name, total=max(num_steps, 1), depth=depth)
            self.running[phase_name] = step
            progress(step)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.running:
                progress(msgspec.structs.replace(self.running[phase_name], done=step + 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.running.pop(phase_name, None)

    return Monitor()
