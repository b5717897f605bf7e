"""TensorRT's runtime and a GPU in memory, strict where the real ones are unforgiving.

Nothing queued on the stream happens before ``synchronise``; only pinned arrays can be copied; an address is memory that was
allocated and not yet freed. A plan is the word ``PLAN`` and an ONNX model, which ONNX Runtime runs. ``tests/contract`` checks
that every name used here is one of the real module's.
"""

from __future__ import annotations

import enum
import importlib.machinery
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from appliance.inference.engine import DeviceLostError, EngineError, sticky

LARGEST = 16
STREAMS: dict[int, SimulatedMemory] = {}
FAULTS: dict[str, str] = {}
"""What is to go wrong: ``execute`` or ``synchronise`` → the message of the error."""


class SimulatedMemory:
    """``appliance.inference.cuda.Memory`` on the host."""

    def __init__(self) -> None:
        self.stream = 1000 + len(STREAMS)
        STREAMS[self.stream] = self
        self.queue: list[Callable[[], None]] = []
        self.blocks: dict[int, bytearray] = {}
        self.hosts: list[np.ndarray] = []
        self.allocations = 0

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        self.hosts.append(np.full(shape, 77, dtype))
        return self.hosts[-1]

    def allocate(self, size: int) -> int:
        self.allocations += 1
        address = 4096 * self.allocations
        self.blocks[address] = bytearray(b"\xcd" * size)
        return address

    def upload(self, address: int, host: np.ndarray) -> None:
        self._require(address, host)
        self.queue.append(lambda: memoryview(self.blocks[address]).__setitem__(slice(host.nbytes), host.tobytes()))

    def download(self, host: np.ndarray, address: int) -> None:
        self._require(address, host)

        def copy() -> None:
            host[...] = np.frombuffer(self.blocks[address], host.dtype, host.size).reshape(host.shape)

        self.queue.append(copy)

    def synchronise(self) -> None:
        if "synchronise" in FAULTS:
            message = FAULTS["synchronise"]
            raise DeviceLostError(message) if sticky(message) else EngineError(message)
        while self.queue:
            self.queue.pop(0)()

    def close(self) -> None:
        self.blocks.clear()

    def _require(self, address: int, host: np.ndarray) -> None:
        assert address in self.blocks, "not an address of this device"
        assert host.flags.c_contiguous, "an asynchronous copy takes contiguous memory"
        assert any(np.shares_memory(host, pinned) for pinned in self.hosts), "an asynchronous copy takes pinned memory"
        assert host.nbytes <= len(self.blocks[address]), "a copy beyond the buffer"


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if not plan.startswith(b"PLAN"):
            self.logger.log(ILogger.Severity.ERROR, "the engine plan file is not compatible with this version")
            return None
        return ICudaEngine(self, plan[4:])


class ICudaEngine:
    def __init__(self, runtime: Runtime, model: bytes) -> None:
        self.runtime = runtime
        self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.ports = {port.name: port for port in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.inputs = [port.name for port in self.session.get_inputs()]

    @property
    def num_io_tensors(self) -> int:
        return len(self.ports)

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return {"tensor(float)": "float32"}[self.ports[name].type]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        rest = tuple(self.ports[name].shape[1:])
        return [(1, *rest), (1, *rest), (LARGEST, *rest)]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if fits:
            self._shapes[name] = tuple(shape)
        else:
            self._engine.runtime.logger.log(ILogger.Severity.ERROR, f"{shape} is outside the profile")  # noqa: G004
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        rows = next(iter(self._shapes.values()))[0]
        return (rows, *self._engine.ports[name].shape[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine.ports

    def execute_async_v3(self, stream_handle: int) -> bool:
        if "execute" in FAULTS:
            self._engine.runtime.logger.log(ILogger.Severity.ERROR, FAULTS["execute"])
            return False
        memory, shapes, engine = STREAMS[stream_handle], dict(self._shapes), self._engine

        def compute() -> None:
            feeds = {}
            for name in engine.inputs:
                size = int(np.prod(shapes[name]))
                block = memory.blocks[self._addresses[name]]
                feeds[name] = np.frombuffer(bytes(block), np.float32, size).reshape(shapes[name])
            for port, value in zip(engine.session.get_outputs(), engine.session.run(None, feeds), strict=True):
                data = value.tobytes()
                memory.blocks[self._addresses[port.name]][: len(data)] = data

        memory.queue.append(compute)
        return True


def module(name: str = "tensorrt", version: str = "10.3.0") -> types.ModuleType:
    """The simulated module, as ``import`` would give it."""
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__version__ = version  # type: ignore[attr-defined]
    for part in (ILogger, Runtime, ICudaEngine, IExecutionContext, TensorIOMode):
        setattr(made, part.__name__, part)
    made.nptype = np.dtype  # type: ignore[attr-defined]
    return made


def plan(model: bytes) -> bytes:
    """A plan of an ONNX model."""
    return b"PLAN" + model


sys.modules.setdefault("simulated_tensorrt", module("simulated_tensorrt"))
