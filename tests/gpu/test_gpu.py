"""What needs an NVIDIA GPU: ``make gpu-test``. Every test says why it is skipped where its part is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from appliance.config import shipped_models
from appliance.inference import bundle as bundles
from appliance.inference import choice, commands, cuda, device, golden, onnx, tensorrt
from appliance.inference.bundle import Bundle, BundleError
from appliance.inference.cache import Cache
from appliance.inference.catalogue import serve
from appliance.inference.engine import EngineMissingError

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

RUNS = 10_000
REPORTS = Path(__file__).resolve().parents[2] / "build"
"""Where the figures go; the folder is not part of the repository."""
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt-ort": "TensorrtExecutionProvider", "tensorrt": "TensorRT"}


def shipped() -> list[Bundle]:
    return [one for one in bundles.load_all(shipped_models()) if not isinstance(one, BundleError)]


def need(engine: str) -> None:
    try:
        device.gpu()
    except EngineMissingError as error:
        pytest.skip(str(error))
    if engine == "tensorrt":
        try:
            tensorrt.bindings()
            cuda.PyCuda().close()
        except EngineMissingError as error:
            pytest.skip(str(error))
    elif engine != "pycuda":
        why = onnx.missing(engine)  # type: ignore[arg-type]
        if why is not None:
            pytest.skip(why)


@pytest.mark.parametrize("engine", ["cuda", "tensorrt-ort", "tensorrt"])
@pytest.mark.parametrize("bundle", shipped(), ids=lambda bundle: bundle.id)
def test_every_bundle_passes_its_golden_check_on_the_gpu_and_agrees_with_the_cpu(
    engine: str, bundle: Bundle, tmp_path: Path
) -> None:
    need(engine)
    commands.build(bundle.root.parent, tmp_path, engine, progress=lambda _: None)
    cache = Cache(tmp_path / "artefacts")
    on_gpu = serve(bundle, choice.setting(engine), cache)
    on_cpu = serve(bundle, "cpu", cache)
    for graph in bundle.description.graphs:
        if "tensorrt" not in graph.engines:
            continue
        assert on_gpu.engine_record(graph.name).provider == PROVIDERS[engine], on_gpu.passed_over
        outcome = golden.replay(bundle, graph.name, lambda inputs, name=graph.name: on_gpu.run(name, inputs))
        assert outcome.passed, outcome.failures
        for case in golden.cases(bundle):
            if case.graph != graph.name:
                continue
            ours, theirs = on_gpu.run(graph.name, case.inputs), on_cpu.run(graph.name, case.inputs)
            allowed = bundle.description.golden
            for name, value in ours.items():
                limit = allowed.outputs.get(name, allowed.absolute)
                if not allowed.outputs or name in allowed.outputs:
                    assert np.max(np.abs(value - theirs[name])) <= 2 * limit


@pytest.mark.parametrize("engine", ["cuda", "tensorrt-ort", "tensorrt"])
def test_ten_thousand_runs_hold_no_more_memory_than_a_thousand(engine: str, tmp_path: Path) -> None:
    need(engine)
    report = REPORTS / f"gpu-{engine}.json"
    report.parent.mkdir(exist_ok=True)
    told = commands.verify(shipped_models(), tmp_path, engine, report, runs=RUNS, longest_s=600)
    assert all(one.ok for one in told), [one.problem for one in told]
    assert all(one.growth_bytes < 8 * 1024**2 for one in told)


def test_pinned_buffers_and_the_stream_carry_data_there_and_back() -> None:
    need("pycuda")
    try:
        memory = cuda.PyCuda()
    except EngineMissingError as error:
        pytest.skip(str(error))
    try:
        sent, got = memory.pinned((3, 224, 224), np.float32), memory.pinned((3, 224, 224), np.float32)
        address = memory.allocate(sent.nbytes)
        for turn in range(50):
            sent[...] = np.random.default_rng(turn).random(sent.shape, np.float32)
            got[...] = 0
            memory.upload(address, sent)
            memory.download(got, address)
            memory.synchronise()
            np.testing.assert_array_equal(got, sent)
    finally:
        memory.close()
        memory.close()
