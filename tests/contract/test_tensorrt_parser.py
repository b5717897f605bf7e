"""What ships is taken by TensorRT's own parser and builder, without a GPU.

``tensorrt-rtx`` mirrors TensorRT's Python interface; it parses ONNX and builds serialised engines on a processor.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import onnx
import pytest

from appliance.config import shipped_models
from appliance.inference import bundle as bundles
from appliance.inference import derive, plans, tensorrt
from appliance.inference.bundle import BundleError, Graph
from appliance.inference.cache import Cache
from appliance.inference.device import Gpu
from appliance.inference.engine import EngineError
from tests import simulated_tensorrt
from tests.networks import KINDS, quantised, write_bundle

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu12 is not installed: no TensorRT parser to test with")
GPU = Gpu(name="none", capability=(8, 7), multiprocessors=8, driver=0)
START = plans.Step(bundle="made-up", graph="net")


def test_everything_the_native_path_calls_is_there() -> None:
    for ours in (simulated_tensorrt.Runtime, simulated_tensorrt.ICudaEngine, simulated_tensorrt.IExecutionContext):
        real = getattr(trt, ours.__name__)
        for name in [name for name, _ in inspect.getmembers(ours) if not name.startswith("_")]:
            assert hasattr(real, name), f"{ours.__name__}.{name}"
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)
    assert {"ERROR", "INTERNAL_ERROR"} <= set(trt.ILogger.Severity.__members__)
    assert trt.nptype(trt.DataType.FLOAT) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_that_ships_parses_and_builds_with_progress(kind: str, tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "models" / "made-up", quantised(kind, tmp_path)[1])
    bundle = bundles.load(root)
    cache, steps = Cache(tmp_path / "cache"), []
    built = plans.build(bundle, bundle.description.graphs[0], GPU, cache, progress=steps.append, module="tensorrt_rtx")
    assert built.path.stat().st_size > 10_000
    assert steps[0].phase == "starting"
    assert max(step.depth for step in steps) >= 1
    assert all(0 <= step.done <= step.total for step in steps)
    assert plans.building(cache.root) is None
    count = len(steps)
    again = plans.build(bundle, bundle.description.graphs[0], GPU, cache, progress=steps.append, module="tensorrt_rtx")
    assert (again.sha256, len(steps)) == (built.sha256, count)


def test_the_form_derived_for_a_cpu_is_refused_by_the_parser(tmp_path: Path) -> None:
    """Why one signed symmetric form ships: the parser takes no integer biases."""
    shipped = onnx.load(quantised("mobilenet", tmp_path)[1])
    derived = derive.derive(shipped, unsigned=True).SerializeToString()
    profile: plans.Shapes = {"image": ((1, 1, 32, 32), (1, 1, 32, 32), (2, 1, 32, 32))}
    with pytest.raises(EngineError, match="made-up/net: TensorRT's"):
        plans.serialise(trt, derived, profile, progress=lambda _: None, start=START)


def test_a_plan_that_this_box_cannot_run_is_refused_with_tensorrts_reason(tmp_path: Path) -> None:
    graph = Graph(name="net", file="model.onnx", inputs=[], outputs=[])
    (tmp_path / "model.plan").write_bytes(b"not a plan")
    with pytest.raises(EngineError, match="run bedside models build"):
        tensorrt.load(
            tmp_path / "model.plan",
            graph,
            device="none",
            module="tensorrt_rtx",
            memory=simulated_tensorrt.SimulatedMemory,
        )


def shipped_graphs() -> list[tuple[bundles.Bundle, Graph]]:
    found = [one for one in bundles.load_all(shipped_models()) if not isinstance(one, BundleError)]
    return [(one, graph) for one in found for graph in one.description.graphs if "tensorrt" in graph.engines]


@pytest.mark.parametrize(
    ("bundle", "graph"), shipped_graphs(), ids=lambda value: getattr(value, "id", None) or value.name
)
def test_every_graph_that_ships_for_tensorrt_parses_and_builds(bundle: bundles.Bundle, graph: Graph) -> None:
    model = bundle.path(graph.file).read_bytes()
    plan, _ = plans.serialise(trt, model, plans.shapes(graph), progress=lambda _: None, start=START)
    assert len(plan) > 10_000
