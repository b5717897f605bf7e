"""Native TensorRT: a plan built on this box runs on named tensors, one stream, pinned buffers, asynchronous copies.

What this module keeps true: a plan is only taken when TensorRT itself takes it and its tensors are those of the graph;
addresses are bound once, shapes are set only when they change, so that a run allocates nothing on the GPU. Written for
TensorRT 10 and 11 (named tensor I/O, ``execute_async_v3``); plans come from ``appliance.inference.plans``. The bindings are
imported when an engine is loaded, under a name that can be given (``tensorrt_rtx`` has the same interface).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from appliance import records
from appliance.inference import cuda
from appliance.inference.bundle import Graph
from appliance.inference.engine import (
    Array,
    Arrays,
    DeviceLostError,
    EngineError,
    EngineMissingError,
    NotBuiltError,
    batch_of,
    sticky,
)

MODULE = "tensorrt"
_KEPT_MESSAGES = 8


def bindings(module: str = MODULE) -> Any:
    """TensorRT's Python module; raises ``EngineMissingError`` naming what is missing."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise EngineMissingError(
            f"TensorRT is not here ({error}); on a Jetson it comes with JetPack 6.1 or newer "
            "(apt-get install python3-libnvinfer; make the environment with --system-site-packages), "
            "elsewhere pip install 'bedside[jetson]'"
        ) from error


def installed(module: str = MODULE) -> bool:
    """Whether the bindings could be imported, found out without importing them."""
    return importlib.util.find_spec(module) is not None


def logger(trt: Any) -> Any:
    """A TensorRT logger that keeps the last errors, for messages, in ``messages``."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR}:
                self.messages = [*self.messages[-_KEPT_MESSAGES:], message]

    return Log()


class _Port(msgspec.Struct):
    """An input or output: host and device buffers of its largest shape, and the shape set at present."""

    name: str
    host: Any
    address: int
    shape: tuple[int, ...]


class TensorRTEngine:
    """A deserialised plan with its execution context and buffers."""

    def __init__(
        self, trt: Any, log: Any, runtime: Any, engine: Any, memory: cuda.Memory, description: records.Engine
    ) -> None:
        self._trt, self._log, self._runtime, self._engine, self._memory = trt, log, runtime, engine, memory
        self._description = description
        self._context: Any = engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"TensorRT gives no execution context: {_said(log)}")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        largest = {name: tuple(engine.get_tensor_profile_shape(name, 0)[2]) for name in inputs}
        self._batch = min(shape[0] for shape in largest.values())
        for name, shape in largest.items():
            self._context.set_input_shape(name, shape)
        self._inputs = {name: self._port(name, largest[name]) for name in inputs}
        outputs = [name for name in names if name not in largest]
        self._outputs = {name: self._port(name, tuple(self._context.get_tensor_shape(name))) for name in outputs}

    def describe(self) -> records.Engine:
        """What runs."""
        return self._description

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Arrays:
        """See ``appliance.inference.engine.Engine.run``; more rows than the plan takes at once go in turns."""
        if self._context is None:
            raise EngineError("the engine was closed; load it again")
        wanted = list(self._outputs) if outputs is None else list(outputs)
        unknown = sorted({*wanted} - {*self._outputs}) + sorted({*inputs} ^ {*self._inputs})
        if unknown:
            raise EngineError(f"{', '.join(unknown)}: not as the plan has it: {[*self._inputs]} to {[*self._outputs]}")
        rows = batch_of(inputs)
        parts = [
            self._turn({name: value[start : start + self._batch] for name, value in inputs.items()}, wanted)
            for start in range(0, rows, self._batch)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in wanted}

    def close(self) -> None:
        """Free context, engine and buffers, in that order."""
        if self._context is not None:
            self._context = self._engine = self._runtime = None
            self._inputs.clear()
            self._outputs.clear()
            self._memory.close()

    def _turn(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Arrays:
        for name, value in inputs.items():
            self._feed(self._inputs[name], value)
        self._log.messages = []
        if not self._context.execute_async_v3(self._memory.stream):
            raise self._failure()
        hosts: Arrays = {}
        for name in wanted:
            port = self._outputs[name]
            shape = tuple(self._context.get_tensor_shape(name))
            hosts[name] = port.host[: int(np.prod(shape))].reshape(shape)
            self._memory.download(hosts[name], port.address)
        self._memory.synchronise()
        return {name: host.copy() for name, host in hosts.items()}

    def _feed(self, port: _Port, value: Array) -> None:
        if value.dtype != port.host.dtype:
            raise EngineError(f"{port.name}: {value.dtype} given, the plan takes {port.host.dtype}")
        if value.shape != port.shape:
            if not self._context.set_input_shape(port.name, value.shape):
                raise EngineError(f"{port.name}: {list(value.shape)} is not a shape of the plan: {_said(self._log)}")
            port.shape = value.shape
        host = port.host[: value.size].reshape(value.shape)
        np.copyto(host, value)
        self._memory.upload(port.address, host)

    def _port(self, name: str, shape: tuple[int, ...]) -> _Port:
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        size = int(np.prod(shape))
        address = self._memory.allocate(size * dtype.itemsize)
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"{name}: TensorRT does not take the buffer: {_said(self._log)}")
        return _Port(name, self._memory.pinned((size,), dtype), address, shape)

    def _failure(self) -> EngineError:
        message = _said(self._log)
        if sticky(message):
            return DeviceLostError(f"TensorRT: {message}; the process must be replaced")
        return EngineError(f"TensorRT: {message}")


def load(
    plan: Path,
    graph: Graph,
    *,
    device: str,
    sha256: str = "",
    module: str = MODULE,
    memory: cuda.Open = cuda.PyCuda,
) -> TensorRTEngine:
    """The engine of a plan that ``appliance.inference.plans`` built and found under this box's facts.

    Args:
        plan: The serialised engine.
        graph: Whose tensors the plan must have.
        device: The GPU's name, for the record.
        sha256: Of the plan, for the record.
        module: Name of TensorRT's Python module.
        memory: Opens the GPU.

    Raises:
        EngineMissingError: TensorRT or pycuda is not here.
        NotBuiltError: TensorRT does not take the plan, or its tensors are not the graph's.
        EngineError: The GPU fails.
    """
    trt = bindings(module)
    opened = memory()
    try:
        log = logger(trt)
        runtime, engine = _deserialise(trt, log, plan, graph)
        record = records.Engine(
            engine=f"{module} {trt.__version__}",
            provider="TensorRT",
            device=device,
            precision=graph.precision,
            artefact=sha256,
        )
        return TensorRTEngine(trt, log, runtime, engine, opened, record)
    except BaseException:
        opened.close()
        raise


def _deserialise(trt: Any, log: Any, plan: Path, graph: Graph) -> tuple[Any, Any]:
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise NotBuiltError(f"{plan}: TensorRT does not take this plan ({_said(log)}); run bedside models build")
    described = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    has = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if described != has:
        raise NotBuiltError(f"{plan}: has the tensors {sorted(has)}, not {sorted(described)}; run bedside models build")
    return runtime, engine


def _said(log: Any) -> str:
    return "; ".join(log.messages[-2:]) or "no reason given"
