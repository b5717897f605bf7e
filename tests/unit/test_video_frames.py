"""Frames on their way: their times, the ring that holds them, the object that they become."""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jpeg_ls import encode_array

from appliance.capture.intake import Intake, IntakeError
from appliance.capture.video_multiframe import IMAGE, MULTI_FRAME, NoFrames, Shot, write_object
from appliance.capture.video_quality import Meter
from appliance.capture.video_ring import RingFrame, RingWriter, Span, read_ring
from appliance.capture.video_takes import Take, Takes, Whose
from appliance.capture.video_time import Timeline
from appliance.reading.decode import decode
from appliance.records import Moment, Patient
from appliance.store.files import OpenFile, RealFiles
from tests.boxes import DEVICE, open_store
from tests.probe_movies import screen

SECOND = 1_000_000_000
STEP = SECOND // 25
TAKEN = Moment(boot_id="b", monotonic_ns=1, wall="2026-03-01T10:20:30.000Z", uncertainty_s=0.5)


# times


@given(st.lists(st.tuples(st.integers(-SECOND, 3 * SECOND), st.integers(-SECOND, 3 * SECOND)), max_size=60))
def test_a_frame_is_always_later_than_the_one_before(moves: list[tuple[int, int]]) -> None:
    timeline, now, said, times = Timeline(25), 10**12, 5 * SECOND, []
    for by, says in moves:
        now += max(0, by)
        said += says
        times.append(timeline.stamp(now, said).t_ns)
    assert all(one < two for one, two in itertools.pairwise(times))


def test_a_source_s_own_times_give_the_spacing_and_gaps_are_counted() -> None:
    timeline = Timeline(25)
    shaken = [0, 3, -4, 2, 0, 0, -5, 1]  # milliseconds of jitter in arrival
    numbers = [0, 1, 2, 3, 6, 7, 8, 10]  # two lost before 6, one before 10
    stamps = [
        timeline.stamp(10**12 + number * STEP + shake * 1_000_000, number * STEP)
        for number, shake in zip(numbers, shaken, strict=True)
    ]
    assert [stamp.lost for stamp in stamps] == [0, 0, 0, 0, 2, 0, 0, 1]
    spacing = [round((two.t_ns - one.t_ns) / STEP, 2) for one, two in itertools.pairwise(stamps)]
    assert spacing == [1, 1, 1, 3, 1, 1, 2]


def test_a_source_s_time_that_runs_away_is_not_believed() -> None:
    timeline = Timeline(25)
    timeline.stamp(10**12, 0)
    assert abs(timeline.stamp(10**12 + STEP, 3600 * SECOND).t_ns - (10**12 + STEP)) <= 1


def test_a_limit_leaves_frames_out_evenly_and_calls_none_lost() -> None:
    timeline = Timeline(50, limit=20)
    stamps = [timeline.stamp(10**12 + number * SECOND // 50) for number in range(500)]
    assert 190 <= sum(stamp.take for stamp in stamps) <= 210
    assert not any(stamp.lost for stamp in stamps)


# the ring


def frames_of(count: int = 100, start: int = SECOND, size: int = 20_000) -> list[RingFrame]:
    return [RingFrame(n + 1, start + n * STEP, 0, 4, 5, 1, bytes([n % 256]) * size) for n in range(count)]


class _FullOnce(RealFiles):
    """A disk that takes half of the write number ``at`` and no more of it."""

    def __init__(self, at: int) -> None:
        self._left = at

    def create(self, path: Path) -> OpenFile:
        inner, disk = super().create(path), self

        class Half:
            def write(self, data: bytes | bytearray | memoryview) -> None:
                disk._left -= 1
                inner.write(data if disk._left else bytes(data)[: len(data) // 2])
                if not disk._left:
                    raise OSError(errno.ENOSPC, "No space left on device")

            def sync(self) -> None:
                inner.sync()

            def close(self) -> None:
                inner.close()

        return Half()


@pytest.mark.parametrize("at", [1, 2, 7, 27, 28])
def test_a_frame_that_did_not_fit_costs_no_frame_after_it(tmp_path: Path, at: int) -> None:
    key = os.urandom(32)
    writer = RingWriter(tmp_path, key, _FullOnce(at), keep_s=60, most=1 << 30)
    taken = []
    for frame in frames_of(60):
        try:
            writer.add(frame)
        except OSError:
            continue
        taken.append(frame.number)
    writer.close()
    assert len(taken) == 59
    assert [frame.number for frame in read_ring(tmp_path, key, Span(0, 0))] == taken


def test_a_take_that_can_not_be_read_now_stays_and_is_kept_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    takes = Takes(Intake(store, DEVICE), store.folder / "ring")
    session, folder, key = takes.begin_session()
    writer = RingWriter(folder, key, store.files, keep_s=60, most=1 << 30)
    frames = frames_of(5)
    for frame in frames:
        pixels = np.full((4, 5), frame.number, np.uint8)
        writer.add(msgspec.structs.replace(frame, data=bytes(encode_array(pixels))))
    writer.close()
    take = takes.put(
        Take(
            id="t" * 32,
            kind="clip",
            session=session,
            from_ns=frames[0].t_ns,
            to_ns=frames[-1].t_ns,
            taken=TAKEN,
            whose=Whose(),
        )
    )
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "head":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        with pytest.raises(IntakeError, match="can't be read back now"):
            takes.keep(take)
    assert [one.id for one in takes.all()] == [take.id]
    assert not takes.keep(take).duplicate
    assert takes.all() == []
    store.close()


def ring(folder: Path, key: bytes, *, keep_s: float = 2.0, most: int = 1 << 30) -> RingWriter:
    folder.mkdir(exist_ok=True)
    return RingWriter(folder, key, RealFiles(), keep_s=keep_s, most=most)


def test_the_ring_holds_the_newest_seconds_and_recycles_the_rest(tmp_path: Path) -> None:
    key, frames = os.urandom(32), frames_of(250)
    writer = ring(tmp_path / "r", key)
    for frame in frames:
        writer.add(frame)
    writer.close()
    kept = list(read_ring(tmp_path / "r", key, Span(0)))
    assert kept == frames[-len(kept) :]
    assert 50 <= len(kept) <= 100, "two seconds at least, four at most"
    assert writer.size < 100 * 20_500


def test_what_is_pinned_stays_and_goes_when_it_is_let_go(tmp_path: Path) -> None:
    key, frames = os.urandom(32), frames_of(250)
    writer = ring(tmp_path / "r", key)
    pinned = Span(frames[10].t_ns, frames[40].t_ns)
    for frame in frames[:50]:
        writer.add(frame)
    writer.pin([pinned])
    for frame in frames[50:]:
        writer.add(frame)
    assert [frame.number for frame in read_ring(tmp_path / "r", key, pinned)] == list(range(11, 42))
    writer.pin([])
    for frame in frames_of(60, start=frames[-1].t_ns + STEP):
        writer.add(frame)
    writer.close()
    assert not list(read_ring(tmp_path / "r", key, pinned))


def test_the_ring_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    writer = ring(tmp_path / "r", os.urandom(32), keep_s=1000, most=2 << 20)
    for frame in frames_of(500):
        writer.add(frame)
    assert sum(path.stat().st_size for path in (tmp_path / "r").iterdir()) < 3 << 20


def test_a_torn_segment_gives_the_frames_before_the_cut_and_no_other(tmp_path: Path) -> None:
    key, frames = os.urandom(32), frames_of(20, size=300)
    writer = ring(tmp_path / "r", key)
    for frame in frames:
        writer.add(frame)
    writer.close()
    (path,) = (tmp_path / "r").iterdir()
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        kept = list(read_ring(tmp_path / "r", key, Span(0)))
        assert kept == frames[: len(kept)]
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    path.write_bytes(damaged)
    kept = list(read_ring(tmp_path / "r", key, Span(0)))
    assert 0 < len(kept) < 20
    assert kept == frames[: len(kept)]


def test_nothing_of_a_frame_is_readable_on_the_disk_without_the_key(tmp_path: Path) -> None:
    writer = ring(tmp_path / "r", os.urandom(32))
    writer.add(RingFrame(1, SECOND, 0, 4, 5, 1, b"PATIENT" * 100))
    writer.close()
    assert all(b"PATIENT" not in path.read_bytes() for path in (tmp_path / "r").iterdir())
    assert not list(read_ring(tmp_path / "r", os.urandom(32), Span(0)))


# the object


def encoded(pictures: np.ndarray, *, first: int = 1) -> list[RingFrame]:
    made = []
    for number, picture in enumerate(pictures, first):
        grey = picture.ndim == 2
        data = bytes(encode_array(np.ascontiguousarray(picture), interleave_mode=None if grey else 2))
        made.append(RingFrame(number, number * STEP, 0, *picture.shape[:2], 1 if grey else 3, data))
    return made


def grey(count: int) -> np.ndarray:
    return np.ascontiguousarray(screen().frames[:count, 130:582, 180:800, 0])


def object_of(shot: Shot, frames: list[RingFrame]) -> bytes:
    given: Callable[[], Iterator[RingFrame]] = lambda: iter(frames)  # noqa: E731
    buffer = io.BytesIO()
    write_object(shot, given, buffer.write)
    return buffer.getvalue()


def clip(**said: object) -> Shot:
    return Shot(**{"id": "take-1", "clip": True, "taken": TAKEN, **said})  # type: ignore[arg-type]


def test_a_clip_is_a_multi_frame_object_with_every_pixel_and_the_measured_times() -> None:
    pictures = grey(14)
    frames = encoded(pictures)
    made = object_of(clip(), frames)
    data = pydicom.dcmread(io.BytesIO(made))
    assert data.SOPClassUID == MULTI_FRAME
    assert data.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.80", "JPEG-LS, lossless"
    assert [float(step) for step in data.FrameTimeVector] == [0.0] + [40.0] * 13
    picture = decode(made)
    assert np.array_equal(picture.pixels, pictures)


def test_uneven_times_stand_in_the_object_as_they_were_measured() -> None:
    frames = [
        RingFrame(f.number, f.t_ns + (7_500_000 if f.number == 2 else 0), f.lost, f.rows, f.columns, f.channels, f.data)
        for f in encoded(grey(3))
    ]
    data = pydicom.dcmread(io.BytesIO(object_of(clip(), frames)))
    assert [float(step) for step in data.FrameTimeVector] == [0.0, 47.5, 32.5]
    assert data.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1", "what is small is uncompressed"


def test_a_freeze_is_an_ultrasound_image() -> None:
    data = pydicom.dcmread(io.BytesIO(object_of(clip(clip=False), encoded(grey(1)))))
    assert data.SOPClassUID == IMAGE
    assert "NumberOfFrames" not in data


def test_a_clip_that_turns_to_colour_is_colour_from_its_first_frame() -> None:
    pictures = grey(12)
    colour = np.stack([pictures[0], pictures[1] // 2, pictures[2] // 3], axis=-1)
    made = object_of(clip(), [*encoded(pictures), *encoded(colour[None], first=13)])
    picture = decode(made)
    assert picture.pixels.shape == (13, *colour.shape)
    assert np.array_equal(picture.pixels[12], colour)
    assert np.array_equal(picture.pixels[3], np.repeat(pictures[3][..., None], 3, axis=-1))


def test_the_same_frames_are_the_same_bytes_and_so_the_same_capture() -> None:
    frames = encoded(grey(3))
    assert object_of(clip(), frames) == object_of(clip(), frames)
    assert object_of(clip(), frames) != object_of(clip(id="take-2"), frames)


def test_lost_frames_and_lossy_sources_are_said() -> None:
    frames = encoded(grey(3))
    frames[2] = RingFrame(*(frames[2].number, frames[2].t_ns, 4, frames[2].rows, frames[2].columns, 1, frames[2].data))
    data = pydicom.dcmread(io.BytesIO(object_of(clip(lossy=True, method="ISO_10918_1"), frames)))
    assert (data.LossyImageCompression, data.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert data.ImageComments.startswith("4 frames")
    assert data.BurnedInAnnotation == "NO"


def test_no_day_is_invented_while_no_clock_is_trusted() -> None:
    untrusted = Moment(boot_id="b", monotonic_ns=1, wall="1970-01-01T00:01:00.000Z", uncertainty_s=None)
    data = pydicom.dcmread(io.BytesIO(object_of(clip(taken=untrusted), encoded(grey(1)))))
    assert data.StudyDate == data.ContentDate == ""


def test_an_object_without_a_frame_is_not_made() -> None:
    with pytest.raises(NoFrames):
        object_of(clip(), [])


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="no dciodvfy: install Debian's package dicom3tools")
@pytest.mark.parametrize("count", [1, 3, 14])
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
def test_dciodvfy_finds_nothing_to_complain_about(tmp_path: Path, count: int, colour: bool) -> None:
    pictures = np.repeat(grey(count)[..., None], 3, axis=-1) if colour else grey(count)
    patient = Patient(id="P-1", name="Doe^Jane", sex="F", birth_date="19620413", age_years=63.0)
    shot = clip(clip=count > 1, patient=patient, encounter_id="v1", device="USB3 Capture", lossy=colour)
    data = object_of(shot, encoded(pictures))
    (tmp_path / "made.dcm").write_bytes(data)
    done = subprocess.run(["dciodvfy", tmp_path / "made.dcm"], capture_output=True, text=True, check=False)
    words = (done.stdout + done.stderr).splitlines()
    assert words in (["USMultiFrameImage"], ["USImage"]), words
    read = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    assert not any(element.tag.is_private for element in read.iterall())


# how good it is


def judged(picture: np.ndarray, seconds: float = 0.4) -> str:
    meter, rng = Meter(), np.random.default_rng(1)
    for number in range(int(seconds * 25)):
        noise = rng.integers(0, 6, picture.shape, dtype=np.uint8)
        meter.add(
            np.where(picture > 0, np.clip(picture.astype(int) + noise, 1, 255), 0).astype(np.uint8), number * STEP
        )
    return meter.latest.state


def test_the_meter_says_what_to_mend() -> None:
    picture = grey(1)[0]
    assert judged(picture) == "good"
    assert judged(picture // 4) == "too-dark"
    assert judged(np.clip(picture.astype(int) * 6, 0, 255).astype(np.uint8)) == "too-bright"
    shallow = picture.copy()
    shallow[picture.shape[0] // 6 :] = np.where(shallow[picture.shape[0] // 6 :] > 0, 1, 0)
    assert judged(shallow) == "no-contact"


def test_a_picture_that_stands_still_is_called_frozen() -> None:
    meter, picture = Meter(), grey(1)[0]
    for number in range(40):
        meter.add(picture, number * STEP)
    assert meter.latest.state == "frozen"
    assert meter.latest.score == 0.0
