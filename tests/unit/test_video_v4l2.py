"""Grabbers by stable names, in the best mode that the driver lists: against a simulated driver."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from appliance.capture.video_source import Source, SourceGone
from appliance.capture.video_v4l2 import Mode, best, cameras, modes


class Driver:
    """Answers ioctls as a UVC grabber's driver does (layouts of ``videodev2.h``, 64 bit)."""

    def __init__(self, listed: dict[str, list[tuple[int, int, list[int]]]], capture: bool = True) -> None:
        self.listed, self.capture = listed, capture

    def __call__(self, _fd: int, request: int, data: bytearray) -> None:
        number, size = request & 0xFF, request >> 16 & 0x3FFF
        assert (len(data), request >> 8 & 0xFF) == (size, ord("V"))
        assert size == {0: 104, 2: 64, 74: 44, 75: 52}[number], "the kernel checks the size"
        {0: self._capability, 2: self._format, 74: self._size, 75: self._interval}[number](data)

    def _capability(self, data: bytearray) -> None:
        own = 0x04200001 if self.capture else 0x04A00000
        struct.pack_into("<16s32s32sIII", data, 0, b"uvcvideo", b"USB3 Video", b"usb-1", 0x060100, 0x84A00001, own)

    def _format(self, data: bytearray) -> None:
        index = struct.unpack_from("<I", data)[0]
        self._end_after(index, len(self.listed))
        struct.pack_into("<4s", data, 44, list(self.listed)[index].encode())

    def _size(self, data: bytearray) -> None:
        index, code = struct.unpack_from("<I4s", data)
        sizes = self.listed[code.decode()]
        self._end_after(index, len(sizes))
        struct.pack_into("<III", data, 8, 1, *sizes[index][:2])

    def _interval(self, data: bytearray) -> None:
        index, code, width, height = struct.unpack_from("<I4sII", data)
        (rates,) = (rates for *size, rates in self.listed[code.decode()] if tuple(size) == (width, height))
        self._end_after(index, len(rates))
        struct.pack_into("<III", data, 16, 1, 1, rates[index])

    @staticmethod
    def _end_after(index: int, count: int) -> None:
        if index >= count:
            raise OSError(errno.EINVAL, "no more")


GRABBER = {
    "YUYV": [(1920, 1080, [5]), (1280, 720, [10]), (640, 480, [60, 30])],
    "MJPG": [(1920, 1080, [60, 30]), (1280, 720, [60]), (640, 480, [30])],
    "H264": [(3840, 2160, [60])],
}


def test_every_mode_of_the_driver_is_read(tmp_path: Path) -> None:
    node = tmp_path / "video0"
    node.touch()
    read = modes(node, Driver(GRABBER))
    assert Mode("YUYV", 1280, 720, 10.0) in read
    assert Mode("MJPG", 1920, 1080, 60.0) in read
    assert len(read) == 7


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (GRABBER, ("MJPG", 1920, 1080)),
        ({"YUYV": [(1920, 1080, [30])], "MJPG": [(1920, 1080, [30])]}, ("YUYV", 1920, 1080)),
        ({"YUYV": [(1920, 1080, [5]), (720, 576, [25])]}, ("YUYV", 720, 576)),
        ({"MJPG": [(640, 480, [15]), (320, 240, [15])]}, ("MJPG", 640, 480)),
    ],
    ids=["smooth and large", "uncompressed when equal", "smooth before large", "the best there is"],
)
def test_the_best_mode_is_smooth_then_large_then_uncompressed(
    tmp_path: Path, offered: dict[str, list[tuple[int, int, list[int]]]], chosen: tuple[str, int, int]
) -> None:
    (tmp_path / "video0").touch()
    found = best(modes(tmp_path / "video0", Driver(offered)))
    assert found is not None
    assert found[:3] == chosen


def test_a_driver_that_lists_nothing_leaves_the_choice_open(tmp_path: Path) -> None:
    (tmp_path / "video0").touch()
    assert best(modes(tmp_path / "video0", Driver({}))) is None
    assert modes(tmp_path / "gone", Driver(GRABBER)) == []


def test_a_grabber_is_known_by_its_serial_number_or_its_socket_and_only_once(tmp_path: Path) -> None:
    by_id, by_path = tmp_path / "by-id", tmp_path / "by-path"
    for folder in (by_id, by_path):
        folder.mkdir()
    for node in ("video0", "video2"):
        (tmp_path / node).touch()
    (by_id / "usb-Grabber_0042-video-index0").symlink_to(tmp_path / "video0")
    (by_path / "pci-usb-0:1-video-index0").symlink_to(tmp_path / "video0")
    (by_path / "pci-usb-0:2-video-index0").symlink_to(tmp_path / "video2")
    found = cameras((by_id, by_path), Driver(GRABBER))
    assert [camera.id for camera in found] == ["usb-Grabber_0042-video-index0", "pci-usb-0:2-video-index0"]
    assert {camera.name for camera in found} == {"USB3 Video"}
    assert not any("/video" in str(camera.path) for camera in found), "never /dev/videoN"


def test_a_metadata_node_is_no_grabber(tmp_path: Path) -> None:
    (tmp_path / "by-id").mkdir()
    (tmp_path / "video1").touch()
    (tmp_path / "by-id" / "usb-Grabber-video-index1").symlink_to(tmp_path / "video1")
    assert cameras((tmp_path / "by-id",), Driver(GRABBER, capture=False)) == []


def test_a_source_that_is_not_there_says_what_to_do_and_no_address() -> None:
    with pytest.raises(SourceGone, match=r"ultrasound\.source"):
        Source("usb-Nothing-video-index0")
    with pytest.raises(SourceGone) as refused:
        Source("http://user:secret@127.0.0.1:9/probe.ts")
    assert "secret" not in str(refused.value)
