"""Which artefacts and engines may run a graph on this box, best first.

What this module keeps true (promise 5): an engine that was asked for by name and is not there is an error (``strict``); only
``auto`` passes over what is missing, and each candidate that was passed over is said. The file that ships is always the
last candidate, on the CPU: whatever was derived or built from it can be refused without leaving the clinic without a reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from appliance.inference.bundle import Bundle, Graph
from appliance.inference.cache import Artefact, Cache
from appliance.inference.engine import Engine, EngineError, NotBuiltError

Setting = Literal["auto", "cpu", "cuda", "tensorrt-ort", "tensorrt"]
SETTINGS: tuple[Setting, ...] = ("auto", "cpu", "cuda", "tensorrt-ort", "tensorrt")


class Candidate(msgspec.Struct, frozen=True):
    """One way to run a graph.

    ``strict``: its absence is an error, not a reason to take the next. ``discard`` removes its artefact after it failed the
    golden check.
    """

    label: str
    load: Callable[[], Engine]
    strict: bool = False
    discard: Callable[[], None] | None = None


def setting(name: str) -> Setting:
    """``name`` as a setting; raises ``EngineError`` naming the choices."""
    if name not in SETTINGS:
        raise EngineError(f"no engine is called {name!r}; choose one of {', '.join(SETTINGS)}")
    return name


def candidates(bundle: Bundle, graph: Graph, wanted: Setting, cache: Cache) -> Iterator[Candidate]:
    """The candidates for ``graph``, best first; made one by one, so that what is not needed is not tried."""
    if wanted != "cpu" and "tensorrt" in graph.engines:
        yield from _accelerated(bundle, graph, wanted, cache)
    yield from _derived(bundle, graph, cache)
    yield Candidate("as shipped, on the CPU", lambda: _shipped(bundle, graph, "cpu"))


def _accelerated(bundle: Bundle, graph: Graph, wanted: Setting, cache: Cache) -> Iterator[Candidate]:
    from appliance.inference import onnx, tensorrt

    strict = wanted != "auto"
    if wanted == "tensorrt" or (not strict and tensorrt.installed()):
        yield Candidate(
            "TensorRT",
            lambda: _native(bundle, graph, cache),
            strict=strict,
            discard=lambda: _drop_native(bundle, graph, cache),
        )
    if wanted == "tensorrt-ort" or (not strict and onnx.missing("tensorrt-ort") is None):
        yield Candidate(
            "TensorRT in ONNX Runtime",
            lambda: _through_provider(bundle, graph, cache),
            strict=strict,
            discard=lambda: _drop_provider(bundle, graph, cache),
        )
    if wanted == "cuda" or (not strict and onnx.PROVIDERS["cuda"] in onnx.installed()):
        yield Candidate("ONNX Runtime on CUDA", lambda: _shipped(bundle, graph, "cuda"), strict=strict)


def _native(bundle: Bundle, graph: Graph, cache: Cache) -> Engine:
    from appliance.inference import device, plans, tensorrt

    gpu = device.gpu()
    plan = cache.get(plans.facts(bundle, graph, gpu, tensorrt.bindings().__version__))
    if plan is None:
        raise _unbuilt(cache)
    try:
        return tensorrt.load(plan.path, graph, device=gpu.name, sha256=plan.sha256)
    except NotBuiltError:
        cache.drop(plan)
        raise


def _drop_native(bundle: Bundle, graph: Graph, cache: Cache) -> None:
    from appliance.inference import device, plans, tensorrt

    cache.drop_facts(plans.facts(bundle, graph, device.gpu(), tensorrt.bindings().__version__))


def _through_provider(bundle: Bundle, graph: Graph, cache: Cache) -> Engine:
    from appliance.inference import device, provider_plans

    built = provider_plans.find(bundle, graph, device.gpu(), cache)
    if built is None:
        raise _unbuilt(cache)
    return provider_plans.load(bundle, graph, built)


def _drop_provider(bundle: Bundle, graph: Graph, cache: Cache) -> None:
    from appliance.inference import device, provider_plans

    cache.drop_facts(provider_plans.facts(bundle, graph, device.gpu()))


def _unbuilt(cache: Cache) -> NotBuiltError:
    from appliance.inference import plans

    if plans.building(cache.root) is not None:
        return NotBuiltError("its plan is being built; the next best engine serves until then", building=True)
    return NotBuiltError("its plan was not built on this box yet; run bedside models build")


def _derived(bundle: Bundle, graph: Graph, cache: Cache) -> Iterator[Candidate]:
    from appliance.inference import forms, onnx

    def load(made: Artefact) -> Engine:
        return onnx.load(made.path, precision=graph.precision, sha256=made.sha256)

    there = cache.get(forms.facts(bundle, graph))
    if there is not None:
        yield Candidate("derived for this CPU", lambda: load(there), discard=lambda: cache.drop(there))
    yield Candidate("derived anew for this CPU", lambda: load(forms.make(bundle, graph, cache)))


def _shipped(bundle: Bundle, graph: Graph, provider: Literal["cpu", "cuda"]) -> Engine:
    from appliance.inference import onnx

    sha256 = bundle.description.files[graph.file]
    return onnx.load(bundle.path(graph.file), provider=provider, precision=graph.precision, sha256=sha256)
