"""What ``bedside models list | verify | build`` do; each returns plain records, for people or as JSON.

What this module keeps true: ``verify`` is the one command that tells whether a box runs its bundles on the engine named: it
builds what is missing, replays the golden cases, times the engine and writes all of it down, with the box's own facts.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from appliance import records
from appliance.inference import bundle as bundles
from appliance.inference import choice, device, golden, plans
from appliance.inference.bundle import Bundle, BundleError, Graph
from appliance.inference.cache import Cache
from appliance.inference.catalogue import Served, serve
from appliance.inference.engine import EngineError, EngineMissingError

Folders = Path | Sequence[Path]
"""Where bundles lie: one folder, or several."""

WARM_UP, RUNS = 20, 200
LONGEST_S = 10.0


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle folder. ``ok``: complete and unchanged; ``problem`` says what is wrong and what to do."""

    ok: bool
    folder: str
    problem: str = ""
    id: str = ""
    version: str = ""
    modality: str = ""
    title: str = ""
    licence: str = ""
    graphs: tuple[str, ...] = ()
    size_bytes: int = 0
    sha256: str = ""
    made_for_this_cpu: bool = False


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """One graph on the engine that was asked for.

    ``worst``: largest difference from the golden outputs, by output. Times are of single runs of one row, in milliseconds;
    ``growth_bytes`` is what the process's resident memory grew by over ``runs`` runs after the warm-up.
    """

    ok: bool
    bundle: str
    version: str
    graph: str
    problem: str = ""
    engine: records.Engine | None = None
    worst: dict[str, float] = {}
    runs: int = 0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    load_ms: float = 0.0
    growth_bytes: int = 0
    passed_over: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What ``verify --report`` writes: the box, the asked engine, every graph."""

    asked: str
    when: str
    box: dict[str, str]
    ok: bool
    graphs: tuple[Verified, ...]


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What was made, or why not, for one graph and kind (``cpu``, ``tensorrt``, ``tensorrt-ort``)."""

    ok: bool
    bundle: str
    graph: str
    kind: str
    seconds: float
    size_bytes: int = 0
    problem: str = ""


def list_bundles(models: Folders, cache: Path) -> list[Listed]:
    """Every bundle folder in ``models``, in name order."""
    from appliance.inference import forms

    store = Cache(cache / "artefacts")
    listed: list[Listed] = []
    for root in bundles.roots(*_each(models)):
        try:
            found = bundles.load(root)
        except BundleError as error:
            listed.append(Listed(ok=False, folder=str(root), problem=str(error)))
            continue
        described = found.description
        listed.append(
            Listed(
                ok=True,
                folder=str(root),
                id=found.id,
                version=found.version,
                modality=described.modality.value,
                title=described.title,
                licence=described.licence,
                graphs=tuple(f"{graph.name} ({graph.precision})" for graph in described.graphs),
                size_bytes=sum((root / name).stat().st_size for name in described.files),
                sha256=found.sha256,
                made_for_this_cpu=all(store.get(forms.facts(found, graph)) for graph in described.graphs),
            )
        )
    return listed


def verify(
    models: Folders,
    cache: Path,
    engine: str = "auto",
    report: Path | None = None,
    *,
    runs: int = RUNS,
    longest_s: float = LONGEST_S,
) -> list[Verified]:
    """Build what is missing, then check and time every graph of every bundle on ``engine``.

    Args:
        models: Folders of the bundles.
        cache: Folder for what is derived on this box.
        engine: As in the configuration.
        report: File for a ``Report`` in JSON.
        runs: How many timed runs of a graph.
        longest_s: After this many seconds of timing a graph there are no further runs.
    """
    wanted = choice.setting(engine)
    build(models, cache, engine)
    store = Cache(cache / "artefacts")
    found: list[Verified] = []
    for one in bundles.load_all(*_each(models)):
        if isinstance(one, BundleError):
            found.append(Verified(ok=False, bundle="", version="", graph="", problem=str(one)))
        else:
            found += _verify(one, wanted, store, runs, longest_s)
    if not found:
        where = " and ".join(map(str, _each(models)))
        found.append(Verified(ok=False, bundle="", version="", graph="", problem=f"{where}: no bundle there"))
    if report is not None:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ok = all(one.ok for one in found)
        whole = Report(asked=engine, when=when, box=box(), ok=ok, graphs=tuple(found))
        report.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n")
    return found


def build(
    models: Folders, cache: Path, engine: str = "auto", progress: Callable[[plans.Step], None] | None = None
) -> list[Built]:
    """Make what ``engine`` needs on this box: the CPU's forms always, plans where TensorRT is asked for or (``auto``) there.

    Args:
        models: Folders of the bundles.
        cache: Folder for what is made.
        engine: As in the configuration.
        progress: Told of every step; drawn on the error stream when ``None``.
    """
    wanted = choice.setting(engine)
    store = Cache(cache / "artefacts")
    made: list[Built] = []
    with _drawn() if progress is None else _plain(progress) as tell:
        for found in bundles.load_all(*_each(models)):
            if isinstance(found, BundleError):
                made.append(Built(ok=False, bundle="", graph="", kind="", seconds=0.0, problem=str(found)))
                continue
            for graph in found.description.graphs:
                for kind in _kinds(graph, wanted):
                    tell(plans.Step(bundle=found.id, graph=graph.name, phase=kind))
                    made.append(_build(found, graph, kind, store, tell))
    return made


def box() -> dict[str, str]:
    """The facts of this box that a figure without them means nothing."""
    facts = {"cpu": device.cpu().name, "architecture": platform.machine(), "kernel": platform.release()}
    facts["python"] = platform.python_version()
    facts["vnni"] = str(bool(device.cpu().flags & {"avx512_vnni", "avx_vnni"}))
    try:
        gpu = device.gpu()
        facts.update(gpu=gpu.name, capability=".".join(map(str, gpu.capability)), cuda_driver=str(gpu.driver))
    except EngineMissingError as error:
        facts["gpu"] = f"none: {error}"
    release = Path("/etc/nv_tegra_release")
    if release.exists():
        facts["jetpack"] = release.read_text().splitlines()[0]
    return facts


def _each(models: Folders) -> tuple[Path, ...]:
    return (models,) if isinstance(models, Path) else tuple(models)


def _kinds(graph: Graph, wanted: choice.Setting) -> Iterator[str]:
    from appliance.inference import onnx, tensorrt

    yield "cpu"
    if "tensorrt" not in graph.engines:
        return
    if wanted == "tensorrt" or (wanted == "auto" and tensorrt.installed()):
        yield "tensorrt"
    if wanted == "tensorrt-ort" or (wanted == "auto" and onnx.missing("tensorrt-ort") is None):
        yield "tensorrt-ort"


def _build(found: Bundle, graph: Graph, kind: str, store: Cache, tell: plans.Progress) -> Built:
    from appliance.inference import forms, provider_plans

    begun = time.monotonic()
    facts: dict[str, Any] = {"bundle": f"{found.id} {found.version}", "graph": graph.name, "kind": kind}
    try:
        if kind == "cpu":
            made = store.get(forms.facts(found, graph)) or forms.make(found, graph, store)
        elif kind == "tensorrt":
            made = plans.build(found, graph, device.gpu(), store, progress=tell)
        else:
            made = provider_plans.build(found, graph, device.gpu(), store, progress=tell)
    except EngineError as error:
        return Built(ok=False, seconds=time.monotonic() - begun, problem=str(error), **facts)
    return Built(ok=True, seconds=time.monotonic() - begun, size_bytes=made.path.stat().st_size, **facts)


def _verify(found: Bundle, wanted: choice.Setting, store: Cache, runs: int, longest_s: float) -> Iterator[Verified]:
    begun = time.perf_counter()
    try:
        served = serve(found, wanted, store)
        known = golden.cases(found)
    except (EngineError, BundleError) as error:
        for graph in found.description.graphs:
            yield Verified(ok=False, bundle=found.id, version=found.version, graph=graph.name, problem=str(error))
        return
    load_ms = (time.perf_counter() - begun) * 1000
    for graph in found.description.graphs:
        yield _timed(served, graph, wanted, known, load_ms, runs, longest_s)
    served.close()


def _timed(
    served: Served,
    graph: Graph,
    wanted: choice.Setting,
    known: list[golden.Case],
    load_ms: float,
    runs: int,
    longest_s: float,
) -> Verified:
    case = next(case for case in known if case.graph == graph.name)
    free = {tensor.name for tensor in graph.inputs if tensor.shape and isinstance(tensor.shape[0], str)}
    one = {name: value[:1] if name in free else value for name, value in case.inputs.items()}
    for _ in range(WARM_UP):
        served.run(graph.name, one)
    before, end = _resident(), time.monotonic() + longest_s
    times: list[float] = []
    while len(times) < runs and time.monotonic() < end:
        begun = time.perf_counter()
        served.run(graph.name, one)
        times.append((time.perf_counter() - begun) * 1000)
    middle, late, latest = np.percentile(times, [50, 95, 99])
    record = served.engine_record(graph.name)
    other = _not_the_one_asked_for(graph, wanted, record)
    passed_over = tuple(reason for reason in served.passed_over if reason.startswith(f"{graph.name},"))
    return Verified(
        ok=not other,
        bundle=served.bundle.id,
        version=served.bundle.version,
        graph=graph.name,
        problem=f"{other}: {'; '.join(passed_over)}" if other else "",
        engine=record,
        worst=served.golden[graph.name].worst,
        runs=len(times),
        p50_ms=float(middle),
        p95_ms=float(late),
        p99_ms=float(latest),
        load_ms=load_ms,
        growth_bytes=_resident() - before,
        passed_over=passed_over,
    )


def _not_the_one_asked_for(graph: Graph, wanted: choice.Setting, record: records.Engine) -> str:
    providers = {
        "cuda": "CUDAExecutionProvider",
        "tensorrt-ort": "TensorrtExecutionProvider",
        "tensorrt": "TensorRT",
    }
    asked = providers.get(wanted)
    if asked is None or "tensorrt" not in graph.engines or record.provider == asked:
        return ""
    return f"{wanted} was asked for and {record.provider} serves"


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _plain(progress: Callable[[plans.Step], None]) -> Iterator[plans.Progress]:
    yield progress


@contextmanager
def _drawn() -> Iterator[plans.Progress]:
    """A bar for each phase of the builder, on the error stream, so that the output stays clean."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[int, Any] = {}

        def tell(step: plans.Step) -> None:
            words = f"{step.bundle}/{step.graph}: {'  ' * step.depth}{step.phase}"
            if step.depth not in tasks:
                tasks[step.depth] = bars.add_task(words, total=step.total)
            bars.update(tasks[step.depth], description=words, total=step.total, completed=step.done)
            for deeper in [depth for depth in tasks if depth > step.depth]:
                bars.remove_task(tasks.pop(deeper))

        yield tell
