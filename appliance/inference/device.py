"""What this box computes with, in words for people and in facts for cache keys.

What this module keeps true: nothing here loads an engine; everything is read from the system once and costs under a
millisecond (the GPU's facts, which need its driver, excepted).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
from pathlib import Path

import msgspec

from appliance.inference.engine import EngineMissingError

_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")


class Cpu(msgspec.Struct, frozen=True):
    """The processor: name for people, architecture (``x86_64``, ``aarch64``), instruction-set flags."""

    name: str
    architecture: str
    flags: frozenset[str]

    @property
    def key(self) -> str:
        """16 hexadecimal digits that change when another kernel could be picked."""
        text = "\0".join([self.architecture, self.name, *sorted(self.flags)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def unsigned_activations(self) -> bool:
        """x86 kernels multiply unsigned by signed bytes; Arm's take signed by signed at the same speed."""
        return self.architecture in {"x86_64", "AMD64"}

    @property
    def saturates(self) -> bool:
        """Whether unsigned × signed products saturate at 16 bits: x86 with AVX2 or AVX512 but without VNNI.

        Source: onnxruntime.ai, "Quantize ONNX models", When and why do I need to try U8U8.
        """
        return self.unsigned_activations and not self.flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


class Gpu(msgspec.Struct, frozen=True):
    """The first CUDA device: name, compute capability, streaming multiprocessors, driver's CUDA version."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    driver: int


@functools.cache
def cpu() -> Cpu:
    """This box's processor, from ``/proc/cpuinfo`` (and the device tree for a board's name)."""
    fields: dict[str, str] = {}
    try:
        for line in _CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    board = _BOARD.read_text().rstrip("\0") if _BOARD.exists() else ""
    name = fields.get("model name") or board or platform.processor() or platform.machine()
    flags = fields.get("flags") or fields.get("Features") or ""
    return Cpu(name=name, architecture=platform.machine(), flags=frozenset(flags.split()))


@functools.cache
def gpu() -> Gpu:
    """The first CUDA device; raises ``EngineMissingError`` naming what is missing.

    Source of the attribute numbers: CUDA Driver API, ``CUdevice_attribute``.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise EngineMissingError(f"no NVIDIA driver: {error}; install JetPack or the NVIDIA driver") from error
    device, number, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        raise EngineMissingError(
            "libcuda.so.1 is there but finds no device; check nvidia-smi, or tegrastats on a Jetson"
        )
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDriverGetVersion(ctypes.byref(version))

    def attribute(which: int) -> int:
        cuda.cuDeviceGetAttribute(ctypes.byref(number), which, device)
        return number.value

    return Gpu(
        name=name.value.decode(),
        capability=(attribute(75), attribute(76)),
        multiprocessors=attribute(16),
        driver=version.value,
    )
