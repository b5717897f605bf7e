"""Where live video comes from: a grabber by its stable name, a stream by its address, a file; opened and read with OpenCV.

What this module keeps true: a device is opened by a name that stays when others are plugged in, in the best mode that its
driver lists; what the picture went through before (JPEG, a video codec) is said, because a lossy picture must say so; an end
or a pause that is too long is an error with a reason, never a silent still picture.

It runs in the decoder's own process (``video_child``): nothing else calls FFmpeg or a driver.
"""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from appliance.capture import video_v4l2

AUTO = "auto"
_ADDRESS = re.compile(r"^(rtsp|rtsps|http|https|udp|tcp|rtmp|srt)://", re.IGNORECASE)
_OPEN_MS, _READ_MS = 8000, 4000
_STABLE = ("/dev/v4l", "/dev/bedside")
"""Folders of links that stay with a device or a socket."""
_LOSSLESS = {
    "FFV1",
    "HFYU",
    "YUYV",
    "YUY2",
    "UYVY",
    "NV12",
    "GREY",
    "Y800",
    "I420",
    "RGBA",
    "BGR3",
    "RGB3",
    "MPNG",
    "PNG ",
}
_METHODS = {"MJPG": "ISO_10918_1", "JPEG": "ISO_10918_1", "H264": "ISO_14496_10", "AVC1": "ISO_14496_10"}
_METHODS |= {"HEVC": "ISO_23008_2", "HVC1": "ISO_23008_2", "H265": "ISO_23008_2", "MPG2": "ISO_13818_2"}

Frame = npt.NDArray[np.uint8]


class SourceGone(Exception):  # noqa: N818 - the condition's name
    """There is no picture (any more); the message names cause and remedy and holds no address."""


class Opened(NamedTuple):
    """What is read now. ``id``: stable, for what is remembered; ``rate`` 0 when unknown; ``lossy``: the codec, if it is."""

    id: str
    name: str
    width: int
    height: int
    rate: float
    format: str
    lossy: bool
    method: str


class Source:
    """An open source. ``spec``: ``auto``, a grabber's stable name, a path or an address; raises ``SourceGone``."""

    def __init__(self, spec: str, rate_limit: float = 0.0) -> None:
        self._started = 0.0
        self._first_ms: float | None = None
        self._device = not is_address(spec) and not Path(spec).is_file()
        if self._device:
            self._capture, self.opened = _open_camera(_camera(spec), rate_limit)
        else:
            self._capture, self.opened = _open_stream(spec)
        self._paced = not self._device and self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0

    def read(self) -> tuple[Frame, int, int | None]:
        """The next frame (BGR or grey, uint8), when it came and what the source says, in ns; raises ``SourceGone``.

        A file gives its frames at its own pace.
        """
        ok, frame = self._capture.read()
        now = time.monotonic_ns()
        if not ok or frame is None:
            raise SourceGone(
                "the picture ended: check the plug and that the machine is on; it is opened again by itself"
            )
        position = float(self._capture.get(cv2.CAP_PROP_POS_MSEC))
        if self._paced:
            now = self._wait(position)
        return _eight_bit(frame), now, int(position * 1e6) if position > 0 or self._paced else None

    def close(self) -> None:
        """Let go of the device."""
        self._capture.release()

    def _wait(self, position_ms: float) -> int:
        if self._first_ms is None or position_ms < self._first_ms:
            self._first_ms, self._started = position_ms, time.monotonic()
        ahead = self._started + (position_ms - self._first_ms) / 1000 - time.monotonic()
        if 0 < ahead < 1:
            time.sleep(ahead)
        return time.monotonic_ns()


def is_address(spec: str) -> bool:
    """Whether a source is on the network."""
    return _ADDRESS.match(spec) is not None


def _camera(spec: str) -> video_v4l2.Camera:
    there = video_v4l2.cameras()
    if spec == AUTO:
        if there:
            return there[0]
        raise SourceGone("no video grabber is plugged in: plug the probe's or the machine's grabber into this box")
    for camera in there:
        if spec in (camera.id, str(camera.path), camera.path.name):
            return camera
    path = Path(spec)
    if path.exists() and any(path.is_relative_to(folder) for folder in _STABLE):
        return video_v4l2.Camera(path.name, path, path.name)
    raise SourceGone("the configured video source is not there: plug it in, or change ultrasound.source")


def _open_camera(camera: video_v4l2.Camera, limit: float) -> tuple[cv2.VideoCapture, Opened]:
    mode = video_v4l2.best(video_v4l2.modes(camera.path), limit)
    capture = cv2.VideoCapture(str(camera.path.resolve()), cv2.CAP_V4L2)
    if not capture.isOpened():
        raise SourceGone("the grabber can't be opened: another program may have it; unplug it and plug it in again")
    if mode is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*mode.format))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, mode.width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, mode.height)
        if mode.rate:
            capture.set(cv2.CAP_PROP_FPS, min(mode.rate, limit or mode.rate))
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 3)
    return capture, _opened(capture, camera.id, camera.name)


def _open_stream(spec: str) -> tuple[cv2.VideoCapture, Opened]:
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_MS]
    capture = cv2.VideoCapture(spec, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        raise SourceGone("the video stream does not answer: switch the probe on and check ultrasound.source")
    name = "network stream" if is_address(spec) else "video file"
    return capture, _opened(capture, f"stream-{hashlib.sha256(spec.encode()).hexdigest()[:12]}", name)


def _opened(capture: cv2.VideoCapture, identity: str, name: str) -> Opened:
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    letters = code.to_bytes(4, "little").decode("ascii", "replace").upper()
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return Opened(
        id=identity,
        name=name,
        width=int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        height=int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        rate=rate if 1 <= rate <= 240 else 0.0,
        format=letters if letters.isprintable() else "",
        lossy=letters not in _LOSSLESS and not _raw(letters),
        method=_METHODS.get(letters, ""),
    )


def _raw(letters: str) -> bool:
    return letters.startswith(("RAW", "DIB"))


def _eight_bit(frame: npt.NDArray[Any]) -> Frame:
    if frame.dtype != np.uint8:
        frame = (frame >> 8).astype(np.uint8) if frame.dtype == np.uint16 else frame.astype(np.uint8)
    if frame.ndim == 3 and frame.shape[2] == 4:
        frame = frame[..., :3]
    return np.asarray(frame[..., 0] if frame.ndim == 3 and frame.shape[2] == 1 else frame, dtype=np.uint8)
