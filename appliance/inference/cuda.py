"""The few things a native engine asks of a GPU: pinned host buffers, device memory, one stream, copies that do not wait.

What this module keeps true: everything happens on one stream of one context and in the thread that made it; host buffers
are page-locked, so that copies run beside the processor; an error after which the context is unusable is a
``DeviceLostError``. ``pycuda`` is imported when a GPU is opened and never before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from appliance.inference.engine import Array, DeviceLostError, EngineError, EngineMissingError, sticky


class Memory(Protocol):
    """A GPU's memory and one stream. Addresses are those that the engine is given."""

    stream: int

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A page-locked host array."""
        ...

    def allocate(self, size: int) -> int:
        """Device memory of ``size`` bytes; its address."""
        ...

    def upload(self, address: int, host: Array) -> None:
        """Queue a copy of a pinned, contiguous array to the device."""
        ...

    def download(self, host: Array, address: int) -> None:
        """Queue a copy from the device into a pinned, contiguous array."""
        ...

    def synchronise(self) -> None:
        """Wait until everything queued is done; raises ``EngineError`` or ``DeviceLostError`` when it failed."""
        ...

    def close(self) -> None:
        """Free all that was allocated."""
        ...


class PyCuda:
    """``Memory`` on the first CUDA device through pycuda."""

    def __init__(self) -> None:
        try:
            from pycuda import driver
        except ImportError as error:
            raise EngineMissingError(
                f"pycuda is not here ({error}); pip install 'bedside[jetson]' on a box with CUDA"
            ) from error
        self._driver: Any = driver
        self._allocated: dict[int, Any] = {}
        with self._failures("opening the GPU"):
            driver.init()
            # The primary context is the one that TensorRT's own calls into the CUDA runtime use.
            self._context: Any = driver.Device(0).retain_primary_context()
            self._context.push()
            self._stream: Any = driver.Stream()
        self.stream = int(self._stream.handle)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """See ``Memory.pinned``."""
        with self._failures("asking for pinned memory"):
            array: Array = self._driver.pagelocked_empty(shape, np.dtype(dtype))
        return array

    def allocate(self, size: int) -> int:
        """See ``Memory.allocate``."""
        with self._failures(f"asking for {size} bytes of GPU memory"):
            memory = self._driver.mem_alloc(max(size, 1))
        self._allocated[int(memory)] = memory
        return int(memory)

    def upload(self, address: int, host: Array) -> None:
        """See ``Memory.upload``."""
        with self._failures("copying to the GPU"):
            self._driver.memcpy_htod_async(address, host, self._stream)

    def download(self, host: Array, address: int) -> None:
        """See ``Memory.download``."""
        with self._failures("copying from the GPU"):
            self._driver.memcpy_dtoh_async(host, address, self._stream)

    def synchronise(self) -> None:
        """See ``Memory.synchronise``."""
        with self._failures("waiting for the GPU"):
            self._stream.synchronize()

    def close(self) -> None:
        """See ``Memory.close``."""
        if self._context is None:
            return
        for memory in self._allocated.values():
            memory.free()
        self._allocated.clear()
        self._stream = None
        self._context.pop()
        self._context = None

    @contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            message = f"{doing}: {error}"
            if sticky(message):
                raise DeviceLostError(f"{message}; the process must be replaced") from error
            raise EngineError(message) from error


Open = Callable[[], Memory]
