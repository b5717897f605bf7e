"""The native path, against a simulated TensorRT and GPU."""

from __future__ import annotations

import fcntl
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from appliance.inference import bundle as bundles
from appliance.inference import commands, cuda, device, plans, tensorrt
from appliance.inference import onnx as onnxruntime
from appliance.inference.bundle import Graph, Tensor
from appliance.inference.cache import Cache
from appliance.inference.catalogue import Catalogue
from appliance.inference.device import Gpu
from appliance.inference.engine import DeviceLostError, Engine, EngineError, EngineMissingError, NotBuiltError
from tests import simulated_tensorrt
from tests.networks import images, network, quantised, write_bundle

GRAPH = Graph(
    name="net",
    file="model.onnx",
    inputs=[Tensor(name="image", dtype="float32", shape=["N", 1, 32, 32])],
    outputs=[Tensor(name="logits", dtype="float32", shape=["N", 3])],
)
ORIN = Gpu(name="Orin", capability=(8, 7), multiprocessors=8, driver=12060)


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    simulated_tensorrt.FAULTS.clear()
    yield
    simulated_tensorrt.FAULTS.clear()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return quantised("resnet", tmp_path)[1]


@pytest.fixture
def memory() -> simulated_tensorrt.SimulatedMemory:
    return simulated_tensorrt.SimulatedMemory()


@pytest.fixture
def engine(tmp_path: Path, model: Path, memory: simulated_tensorrt.SimulatedMemory) -> tensorrt.TensorRTEngine:
    return loaded(tmp_path, model.read_bytes(), memory)


def loaded(folder: Path, onnx_model: bytes, memory: cuda.Memory) -> tensorrt.TensorRTEngine:
    path = folder / "model.plan"
    path.write_bytes(simulated_tensorrt.plan(onnx_model))
    return tensorrt.load(path, GRAPH, device="Orin", sha256="ab", module="simulated_tensorrt", memory=lambda: memory)


@pytest.mark.parametrize("rows", [1, 3, 16, 20, 33])
def test_it_gives_what_the_graph_gives_for_any_number_of_rows(
    rows: int, engine: tensorrt.TensorRTEngine, model: Path
) -> None:
    pictures = images(rows, seed=rows)
    expected = onnxruntime.load(model).run({"image": pictures})["logits"]
    # The simulator runs each turn with the same kernels; only batch edges may round otherwise.
    np.testing.assert_allclose(engine.run({"image": pictures})["logits"], expected, atol=1e-5)


def test_runs_of_different_sizes_do_not_see_each_other(engine: tensorrt.TensorRTEngine, model: Path) -> None:
    reference = onnxruntime.load(model)
    first = engine.run({"image": images(4, seed=1)})["logits"]
    kept = first.copy()
    for rows in (1, 7, 2):
        pictures = images(rows, seed=rows)
        given = engine.run({"image": pictures})["logits"]
        np.testing.assert_allclose(given, reference.run({"image": pictures})["logits"], atol=1e-5)
    np.testing.assert_array_equal(first, kept)


def test_it_says_what_runs(engine: tensorrt.TensorRTEngine) -> None:
    assert isinstance(engine, Engine)
    record = engine.describe()
    assert (record.provider, record.device, record.artefact) == ("TensorRT", "Orin", "ab")
    assert record.engine == "simulated_tensorrt 10.3.0"


def test_a_run_allocates_nothing_and_closing_frees_everything(
    engine: tensorrt.TensorRTEngine, memory: simulated_tensorrt.SimulatedMemory
) -> None:
    before = (memory.allocations, len(memory.hosts))
    for _ in range(5):
        engine.run({"image": images(2)})
    assert (memory.allocations, len(memory.hosts)) == before
    engine.close()
    engine.close()
    assert memory.blocks == {}
    with pytest.raises(EngineError, match="closed"):
        engine.run({"image": images(1)})


def test_inputs_that_are_not_the_plans_are_refused_naming_them(engine: tensorrt.TensorRTEngine) -> None:
    with pytest.raises(EngineError, match="picture"):
        engine.run({"picture": images(1)})
    with pytest.raises(EngineError, match="float64 given, the plan takes float32"):
        engine.run({"image": images(1).astype(np.float64)})
    with pytest.raises(EngineError, match="outside the profile"):
        engine.run({"image": images(1, pixels=64)})
    with pytest.raises(EngineError, match="probability"):
        engine.run({"image": images(1)}, ["probability"])
    assert engine.run({"image": images(1)})["logits"].shape == (1, 3)


@pytest.mark.parametrize("where", ["execute", "synchronise"])
def test_a_sticky_error_says_that_the_process_must_be_replaced(where: str, engine: tensorrt.TensorRTEngine) -> None:
    simulated_tensorrt.FAULTS[where] = "Cuda Runtime (an illegal memory access was encountered)"
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        engine.run({"image": images(1)})
    simulated_tensorrt.FAULTS[where] = "out of workspace"
    with pytest.raises(EngineError, match="out of workspace") as caught:
        engine.run({"image": images(1)})
    assert not isinstance(caught.value, DeviceLostError)


def test_a_plan_that_tensorrt_refuses_or_of_another_graph_is_not_loaded_and_leaves_no_memory(
    tmp_path: Path, memory: simulated_tensorrt.SimulatedMemory
) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(b"a plan of another version")
    load = functools.partial(
        tensorrt.load, path, GRAPH, device="Orin", module="simulated_tensorrt", memory=lambda: memory
    )
    with pytest.raises(NotBuiltError, match="not compatible with this version"):
        load()
    other = network("resnet")
    other.graph.output[0].name = other.graph.node[-1].output[0] = "scores"
    path.write_bytes(simulated_tensorrt.plan(other.SerializeToString()))
    with pytest.raises(NotBuiltError, match="scores"):
        load()
    assert memory.blocks == {}


def test_without_tensorrt_or_pycuda_the_error_names_what_to_install() -> None:
    with pytest.raises(EngineMissingError, match=r"no_such_tensorrt.*JetPack"):
        tensorrt.bindings("no_such_tensorrt")
    if "pycuda" not in sys.modules and not cuda_installed():
        with pytest.raises(EngineMissingError, match=r"pycuda.*bedside\[jetson\]"):
            cuda.PyCuda()


def cuda_installed() -> bool:
    import importlib.util

    return importlib.util.find_spec("pycuda") is not None


def test_a_free_axis_without_bounds_is_refused_with_the_remedy() -> None:
    graph = Graph(
        name="sound",
        file="model.onnx",
        inputs=[Tensor(name="samples", dtype="float32", shape=["N", "samples"])],
        outputs=[],
    )
    with pytest.raises(EngineError, match=r"sound/samples: axis .*bundle\.toml"):
        plans.shapes(graph)


@pytest.fixture
def jetson(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A box with a simulated TensorRT and one bundle; its folder."""
    monkeypatch.setitem(sys.modules, "tensorrt", simulated_tensorrt.module())
    monkeypatch.setattr(device, "gpu", lambda: ORIN)
    original = tensorrt.load
    simulated = functools.partial(original, memory=simulated_tensorrt.SimulatedMemory)
    monkeypatch.setattr(tensorrt, "load", simulated)
    write_bundle(tmp_path / "models" / "made-up", model)
    return tmp_path


def plan_facts(box: Path, **other: str) -> dict[str, str]:
    bundle = bundles.load(box / "models" / "made-up")
    return {**plans.facts(bundle, bundle.description.graphs[0], ORIN, "10.3.0"), **other}


def put_plan(box: Path, content: bytes, **other: str) -> Path:
    cache = Cache(box / "cache" / "artefacts")
    return cache.put(plan_facts(box, **other), "model.plan", lambda path: path.write_bytes(content)).path


def opened(box: Path, engine: str = "tensorrt") -> Catalogue:
    catalogue = Catalogue(box / "models", box / "cache", engine)
    catalogue.open()
    return catalogue


@pytest.mark.parametrize("engine", ["tensorrt", "auto"])
def test_until_its_plan_is_built_the_cpu_serves_and_says_so(jetson: Path, engine: str) -> None:
    catalogue = opened(jetson, engine)
    served = catalogue.bundles["made-up"]
    assert (served.state, served.engine_record().provider) == ("unbuilt", "CPUExecutionProvider")
    assert any("run bedside models build" in problem for problem in catalogue.problems)


def test_while_a_plan_is_being_built_the_state_says_so(jetson: Path) -> None:
    root = jetson / "cache" / "artefacts"
    with plans.only_build(root) as tell:
        tell(plans.Step(bundle="made-up", graph="net", phase="Timing tactics", done=3, total=9))
        assert opened(jetson).bundles["made-up"].state == "building"
        running = plans.building(root)
        assert running is not None
        assert (running.phase, running.done, running.total) == ("Timing tactics", 3, 9)
        with pytest.raises(EngineError, match="another build runs"), plans.only_build(root):
            pass
    assert plans.building(root) is None
    assert opened(jetson).bundles["made-up"].state == "unbuilt"


def test_the_state_of_a_build_that_was_killed_does_not_outlive_it(tmp_path: Path) -> None:
    with plans.only_build(tmp_path) as tell:
        tell(plans.Step(bundle="made-up", graph="net"))
        state = (tmp_path / "building.json").read_bytes()
    (tmp_path / "building.json").write_bytes(state)
    assert plans.building(tmp_path) is None
    with (tmp_path / "build.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("engine", ["tensorrt", "auto"])
def test_a_built_plan_serves_after_its_golden_check(jetson: Path, model: Path, engine: str) -> None:
    put_plan(jetson, simulated_tensorrt.plan(model.read_bytes()))
    catalogue = opened(jetson, engine)
    served = catalogue.bundles["made-up"]
    assert (served.state, catalogue.problems) == ("ready", [])
    record = served.engine_record()
    assert (record.provider, record.device, record.golden) == ("TensorRT", "Orin", "passed")


def test_a_running_catalogue_takes_a_plan_up_when_it_has_been_built(jetson: Path, model: Path) -> None:
    catalogue = opened(jetson)
    assert not catalogue.refresh()
    put_plan(jetson, simulated_tensorrt.plan(model.read_bytes()))
    assert catalogue.refresh()
    assert catalogue.bundles["made-up"].engine_record().provider == "TensorRT"
    assert not catalogue.refresh()


@pytest.mark.parametrize(
    "other",
    [{"tensorrt": "10.3.1"}, {"gpu": "Orin Nano"}, {"multiprocessors": "16"}, {"capability": "8.6"}, {"flags": "x"}],
)
def test_a_foreign_plan_is_never_offered(jetson: Path, other: dict[str, str], model: Path) -> None:
    put_plan(jetson, simulated_tensorrt.plan(model.read_bytes()), **other)
    assert opened(jetson).bundles["made-up"].engine_record().provider == "CPUExecutionProvider"


def test_a_corrupt_plan_is_never_loaded(jetson: Path, model: Path) -> None:
    path = put_plan(jetson, simulated_tensorrt.plan(model.read_bytes()))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert opened(jetson).bundles["made-up"].state == "unbuilt"
    assert not path.exists()


def test_a_plan_that_tensorrt_refuses_is_removed_to_be_built_again(jetson: Path) -> None:
    path = put_plan(jetson, b"of another version, though its facts say otherwise")
    catalogue = opened(jetson)
    assert catalogue.bundles["made-up"].state == "unbuilt"
    assert any("not compatible" in problem for problem in catalogue.problems)
    assert not path.exists()


def test_a_planted_wrong_plan_is_refused_and_the_last_good_engine_serves(jetson: Path) -> None:
    path = put_plan(jetson, simulated_tensorrt.plan(network("resnet", seed=9).SerializeToString()))
    catalogue = opened(jetson)
    assert catalogue.bundles["made-up"].engine_record().provider == "CPUExecutionProvider"
    assert any("TensorRT: refused by the golden check" in problem for problem in catalogue.problems)
    assert not path.exists()


def test_verify_says_when_another_engine_serves_than_the_one_asked_for(
    jetson: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "build", lambda *_, **__: (_ for _ in ()).throw(EngineError("no memory to build")))
    (told,) = commands.verify(jetson / "models", jetson / "cache", "tensorrt", runs=3)
    assert not told.ok
    assert "tensorrt was asked for and CPUExecutionProvider serves" in told.problem
    put_plan(jetson, simulated_tensorrt.plan(model.read_bytes()))
    (told,) = commands.verify(jetson / "models", jetson / "cache", "tensorrt", runs=3)
    assert told.ok
    assert told.engine is not None
    assert told.engine.provider == "TensorRT"


def test_the_model_that_ships_is_what_the_plan_is_built_from(jetson: Path) -> None:
    bundle = bundles.load(jetson / "models" / "made-up")
    assert plan_facts(jetson)["model"] == bundle.description.files["model.onnx"]
    biases = {node.input[2] for node in onnx.load(bundle.path("model.onnx")).graph.node if node.op_type == "Conv"}
    floats = {tensor.name for tensor in onnx.load(bundle.path("model.onnx")).graph.initializer if tensor.data_type == 1}
    assert biases <= floats
