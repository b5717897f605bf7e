"""What a Video4Linux device can do, asked of its driver, and the mode that serves a clinic best.

What this module keeps true: nothing is opened for capture here and no format is changed; a driver that answers nothing
useful leaves the choice to OpenCV's defaults. Numbers and layouts: Linux ``include/uapi/linux/videodev2.h`` (64 bit).
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

BY_ID, BY_PATH = Path("/dev/v4l/by-id"), Path("/dev/v4l/by-path")
_CAPTURE, _DEVICE_CAPS = 0x1, 0x80000000
_DISCRETE = 1
_CAPABILITY = struct.Struct("16s32s32sIII12x")
_FORMAT = struct.Struct("III32sII12x")
_SIZE = struct.Struct("III6I8x")
_INTERVAL = struct.Struct("IIIII6I8x")
_READ, _BOTH = 2, 3
_FITTING = ((1920, 1080), (1280, 720), (1024, 768), (800, 600), (640, 480))
_SMOOTH = 24.0
_LARGEST = 1920 * 1080
_UNPACKED = {"YUYV": 2, "UYVY": 2, "NV12": 2, "GREY": 2, "MJPG": 1}
"""Formats that OpenCV can take; uncompressed ones before JPEG where all else is equal."""

Ioctl = Callable[[int, int, bytearray], object]


class Mode(NamedTuple):
    """A picture format (its four characters), its size in pixels and its frames a second."""

    format: str
    width: int
    height: int
    rate: float


class Camera(NamedTuple):
    """A device that gives video. ``id``: the stable name of its link (never ``/dev/videoN``); ``name``: the driver's."""

    id: str
    path: Path
    name: str


def cameras(folders: Iterable[Path] = (BY_ID, BY_PATH), ioctl: Ioctl = fcntl.ioctl) -> list[Camera]:
    """The capture devices that are plugged in, each once, by serial number where it has one, else by socket."""
    found: dict[Path, Camera] = {}
    for folder in folders:
        links = sorted(folder.iterdir()) if folder.is_dir() else []
        for link in links:
            device = link.resolve()
            if device in found:
                continue
            name = _card(device, ioctl)
            if name is not None:
                found[device] = Camera(link.name, link, name)
    return list(found.values())


def modes(path: Path, ioctl: Ioctl = fcntl.ioctl) -> list[Mode]:
    """Every mode that the driver lists, at the best rate of each size; empty when it lists none."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return list(_modes(fd, ioctl))
    finally:
        os.close(fd)


def best(offered: Iterable[Mode], limit: float = 0.0) -> Mode | None:
    """The largest smooth picture: 24 frames a second or what the device can at most, up to 1920×1080.

    ``limit`` is the frame rate that is asked for at most, 0 for no limit.
    """
    usable = [mode for mode in offered if mode.format in _UNPACKED and mode.width * mode.height <= _LARGEST]
    if not usable:
        return None
    smooth = min(_SMOOTH, max(mode.rate for mode in usable), limit or _SMOOTH)

    def rank(mode: Mode) -> tuple[bool, int, int, float]:
        near = -abs(mode.rate - (limit or 30.0))
        return mode.rate >= smooth - 0.5, mode.width * mode.height, _UNPACKED[mode.format], near

    return max(usable, key=rank)


def _card(device: Path, ioctl: Ioctl) -> str | None:
    """The device's own name when it gives video; ``None`` for metadata nodes, encoders and what can't be asked."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = bytearray(_CAPABILITY.size)
        ioctl(fd, _request(_READ, 0, _CAPABILITY), data)
    except OSError:
        return None
    finally:
        os.close(fd)
    _, card, _, _, whole, own = _CAPABILITY.unpack(data)
    able = own if whole & _DEVICE_CAPS else whole
    return card.split(b"\0", 1)[0].decode("utf-8", "replace") if able & _CAPTURE else None


def _modes(fd: int, ioctl: Ioctl) -> Iterator[Mode]:
    for answer in _listed(fd, ioctl, 2, _FORMAT, lambda index: (index, 1, 0, b"", 0, 0)):
        code = int(answer[4])
        for width, height in _sizes(fd, ioctl, code):
            rates = [
                rate
                for rate in _listed(fd, ioctl, 75, _INTERVAL, lambda index: (index, code, width, height, 0, *[0] * 6))  # noqa: B023
                if rate[5]
            ]
            fastest = max((rate[6] / rate[5] for rate in rates), default=0.0)
            yield Mode(code.to_bytes(4, "little").decode("ascii", "replace"), width, height, float(fastest))


def _sizes(fd: int, ioctl: Ioctl, code: int) -> Iterator[tuple[int, int]]:
    for answer in _listed(fd, ioctl, 74, _SIZE, lambda index: (index, code, 0, *[0] * 6)):
        if answer[2] == _DISCRETE:
            yield answer[3], answer[4]
            continue
        low, high, low_rows, high_rows = answer[3], answer[4], answer[6], answer[7]
        yield from ((w, h) for w, h in _FITTING if low <= w <= high and low_rows <= h <= high_rows)
        return


def _listed(
    fd: int, ioctl: Ioctl, number: int, layout: struct.Struct, question: Callable[[int], tuple[object, ...]]
) -> Iterator[tuple[int, ...]]:
    """Ask for entry 0, 1, … until the driver has no more (EINVAL)."""
    for index in range(64):
        data = bytearray(layout.pack(*question(index)))
        try:
            ioctl(fd, _request(_BOTH, number, layout), data)
        except OSError:  # EINVAL after the last; anything else: the driver lists nothing here
            return
        yield layout.unpack(data)


def _request(direction: int, number: int, layout: struct.Struct) -> int:
    """The number of an ioctl (``_IOC`` of Linux ``asm-generic/ioctl.h``)."""
    return direction << 30 | layout.size << 16 | ord("V") << 8 | number
