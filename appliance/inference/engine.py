"""The interface to whatever runs a network: load, describe, run on named arrays, close.

What this module keeps true: an engine is made by ``load`` of its module (``appliance.inference.onnx``,
``appliance.inference.tensorrt``) and is ready when ``load`` returns; ``describe`` says what really runs, read back from
the runtime and never copied from a setting; one engine is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from appliance import records

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


class EngineError(Exception):
    """The engine can't be loaded or can't run these inputs; the message says why and what to do."""


class EngineMissingError(EngineError):
    """A runtime or one of its libraries that was asked for is not on this box; the message names it."""


class NotBuiltError(EngineError):
    """This engine has no plan that was built on this box; ``building``: one is being built now."""

    def __init__(self, message: str, *, building: bool = False) -> None:
        super().__init__(message)
        self.building = building


class DeviceLostError(EngineError):
    """The device's context is broken for good (a sticky CUDA error): only a new process can use the device again."""


@runtime_checkable
class Engine(Protocol):
    """A loaded network. Not for use by two threads at once."""

    def describe(self) -> records.Engine:
        """What runs: engine and version, active provider, device, precision, SHA-256 of the artefact loaded."""
        ...

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Arrays:
        """Run once.

        Args:
            inputs: One array per input of the graph, in the graph's dtype and shape, first axis free where it is named.
            outputs: Names of the wanted outputs; all when ``None``.

        Raises:
            EngineError: A name, dtype or shape is not the graph's, or the runtime failed.
            DeviceLostError: The device is gone until the process is replaced.
        """
        ...

    def close(self) -> None:
        """Give back memory and device; may be called twice."""
        ...


def sticky(message: str) -> bool:
    """Whether a runtime's message tells of a CUDA error after which the context is unusable.

    Source: CUDA Runtime API, "cudaError_t": the errors of which it says "the process must be terminated and relaunched".
    """
    said = message.lower().replace("_", " ")
    return any(words in said for words in _STICKY)


_STICKY = (
    "illegal address",
    "illegaladdress",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "invalid address space",
    "invalid pc",
    "hardware stack error",
    "launch failed",
    "launch failure",
    "launch timeout",
    "cuda error assert",
    "device-side assert",
    "ecc uncorrectable",
    "uncorrectable ecc",
    "context is destroyed",
)


def batch_of(inputs: Mapping[str, Array]) -> int:
    """The length of the first axis that all inputs share; raises ``EngineError`` when they differ."""
    lengths = {int(np.shape(value)[0]) if np.ndim(value) else 1 for value in inputs.values()}
    if len(lengths) != 1:
        raise EngineError(f"inputs {sorted(inputs)} differ in the length of their first axis: {sorted(lengths)}")
    return lengths.pop()
