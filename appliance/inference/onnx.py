"""ONNX Runtime as an engine: on the CPU, on CUDA, or through its TensorRT provider.

What this module keeps true (promise 5): the provider that was asked for is the first of the session's own list, or ``load``
raises naming the missing library; ONNX Runtime's quiet retreat to the CPU, at load and at run, is switched off. One
thread, no spinning, every graph optimisation (a Q/DQ graph below ``ORT_ENABLE_ALL`` is slower than its float form).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from appliance import records
from appliance.inference import device
from appliance.inference.engine import Array, Arrays, DeviceLostError, EngineError, EngineMissingError, sticky

Provider = Literal["cpu", "cuda", "tensorrt-ort"]
PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt-ort": "TensorrtExecutionProvider",
}
_LIBRARIES = {"cuda": "libonnxruntime_providers_cuda.so", "tensorrt-ort": "libonnxruntime_providers_tensorrt.so"}
FAILURES: tuple[type[Exception], ...] = (
    *(
        error
        for error in vars(state).values()
        if isinstance(error, type) and issubclass(error, Exception) and error.__module__ == state.__name__
    ),
    ValueError,
    RuntimeError,
    TypeError,
)
_QUIET = 3
RUNTIME = f"onnxruntime {ort.__version__}"


def installed() -> tuple[str, ...]:
    """The providers that the installed onnxruntime was built with, best first."""
    return tuple(ort.get_available_providers())


def missing(provider: Provider) -> str | None:
    """Why ``provider`` can't be used on this box, naming the library and the remedy; ``None`` when it can be tried."""
    wanted = PROVIDERS[provider]
    there = installed()
    if wanted not in there:
        remedy = "pip install 'bedside[gpu]'; on a Jetson, NVIDIA's onnxruntime-gpu wheel for its JetPack"
        return f"the installed onnxruntime {ort.__version__} has no {wanted} (it has {', '.join(there)}): {remedy}"
    if provider == "cpu":
        return None
    if hasattr(ort, "preload_dlls"):  # from 1.21 on; finds CUDA where pip put it
        ort.preload_dlls()
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / _LIBRARIES[provider]))
    except OSError as error:
        return f"{wanted} does not load: {error}; install the CUDA, cuDNN or TensorRT package with that library"
    return None


def options(*, threads: int = 1) -> ort.SessionOptions:
    """The session options of the appliance: see the module's promise."""
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    chosen.log_severity_level = _QUIET
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if device.cpu().saturates:
        chosen.add_session_config_entry("session.x64quantprecision", "1")
    return chosen


class OnnxEngine:
    """One ONNX Runtime session behind the engine interface."""

    def __init__(self, session: ort.InferenceSession, description: records.Engine) -> None:
        self._session: ort.InferenceSession | None = session
        self._run = session.run
        self._description = description
        self._outputs = tuple(output.name for output in session.get_outputs())

    def describe(self) -> records.Engine:
        """What runs, the provider as the session names it."""
        return self._description

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Arrays:
        """See ``appliance.inference.engine.Engine.run``."""
        wanted = self._outputs if outputs is None else outputs
        try:
            return dict(zip(wanted, self._run(wanted, inputs), strict=True))
        except FAILURES as error:
            raise self._failure(error, inputs) from error

    def close(self) -> None:
        """Free the session."""
        self._session = None
        self._run = _closed

    def _failure(self, error: Exception, inputs: Mapping[str, Array]) -> EngineError:
        message = f"{self._description.provider}: {error}"
        if sticky(str(error)):
            return DeviceLostError(f"{message}; the process must be replaced")
        given = ", ".join(f"{name} {np.asarray(value).dtype}{list(np.shape(value))}" for name, value in inputs.items())
        return EngineError(f"{message}; given {given}")


def load(
    model: Path,
    *,
    provider: Provider = "cpu",
    precision: str = "int8",
    sha256: str = "",
    cache: Path | None = None,
    profile: Mapping[str, tuple[str, str, str]] | None = None,
) -> OnnxEngine:
    """A session of ``model`` (``.onnx`` or ``.ort``) on ``provider``.

    Args:
        model: The file.
        provider: Which provider must run it.
        precision: What the graph computes in, for the record.
        sha256: Of the file, for the record.
        cache: Folder for what the TensorRT provider builds; must change with the versions (see ``tensorrt.key``).
        profile: Input name → (smallest, usual, largest) shape as ``1x1x224x224``, for the TensorRT provider.

    Raises:
        EngineMissingError: The provider or one of its libraries is not there.
        EngineError: The file is not a model that the runtime takes.
    """
    why = missing(provider)
    if why is not None:
        raise EngineMissingError(why)
    wanted = PROVIDERS[provider]
    chain: list[tuple[str, dict[str, Any]]] = [(wanted, _provider_options(provider, cache, profile))]
    if provider != "cpu":
        chain.append(("CPUExecutionProvider", {}))
    try:
        session = ort.InferenceSession(str(model), options(), providers=chain, enable_fallback=0)
    except FAILURES as error:
        raise EngineError(f"{model}: {wanted} does not take it ({error}); install the bundle again") from error
    session.disable_fallback()
    active = session.get_providers()[0]
    if active != wanted:
        raise EngineMissingError(
            f"{wanted} was asked for and {active} is what would run; check the libraries of {wanted}"
        )
    name = device.cpu().name if provider == "cpu" else device.gpu().name
    described = records.Engine(engine=RUNTIME, provider=active, device=name, precision=precision, artefact=sha256)
    return OnnxEngine(session, described)


def _provider_options(
    provider: Provider, cache: Path | None, profile: Mapping[str, tuple[str, str, str]] | None
) -> dict[str, Any]:
    if provider == "cuda":
        # Trying every convolution algorithm anew for each shape costs seconds at the first capture.
        return {"cudnn_conv_algo_search": "HEURISTIC"}
    if provider == "cpu" or cache is None:
        return {}
    cache.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, Any] = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(cache),
        "trt_int8_enable": True,
    }
    for position, which in enumerate(("min", "opt", "max")):
        shapes = [f"{name}:{shape[position]}" for name, shape in (profile or {}).items()]
        if shapes:
            chosen[f"trt_profile_{which}_shapes"] = ",".join(shapes)
    return chosen


def _closed(*_: object) -> list[Array]:
    raise EngineError("the engine was closed; load it again")
