"""Live ultrasound through OpenCV's FFmpeg and a real network: kept, lost, opened again, cut short, never hung."""

from __future__ import annotations

import contextlib
import http.server
import io
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pydicom
import pytest

from appliance.capture.video import VideoDoor
from appliance.capture.video_area import FILLS
from appliance.capture.video_messages import Settings
from appliance.capture.video_process import Decoding
from appliance.capture.video_scan import NotNow
from appliance.capture.video_takes import Whose
from appliance.reading.decode import decode
from appliance.records import Modality, Patient
from appliance.store.store import Store
from tests.probe_movies import box, live, movie, screen, until
from tools.simulate import probe


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of a machine's screen."""
    return movie(tmp_path_factory.mktemp("movies"), repeat=5)


def object_of(store: Store, capture_id: str) -> bytes:
    return store.vault.read(store.captures.get(capture_id).capture.sha256)


def clip_of(door: VideoDoor, seconds: float = 0.6) -> str:
    door.record(Whose())
    time.sleep(seconds)
    take = door.finish()
    assert take is not None
    return take.id


def test_a_clip_goes_from_the_screen_to_a_kept_object_without_its_furniture(film: Path, tmp_path: Path) -> None:
    with box(tmp_path, film) as (door, store):
        live(door, 20)
        kept = door.keep(clip_of(door))
        capture = store.captures.get(kept.capture_id).capture
        assert capture.modality is Modality.LUNG_ULTRASOUND
        assert capture.patient == Patient(), "nobody's yet"
        data = object_of(store, kept.capture_id)
        read = pydicom.dcmread(io.BytesIO(data))
        assert read.NumberOfFrames >= 20, "with its pre-roll"
        steps = [float(step) for step in read.FrameTimeVector][1:]
        assert 37 < float(np.median(steps)) < 43, "25 a second, as the source says"
        shown = screen().frames[:, 130:610, 170:810]
        brightest = decode(data).pixels.max(axis=0)
        assert brightest.shape[0] < shown.shape[1]
        assert brightest[:20, :60].max() == brightest[-20:, :60].max() == 0, "the corners, where names stood"
        assert door.scan().takes == ()


@pytest.mark.slow
def test_a_freeze_is_the_frame_that_was_seen(film: Path, tmp_path: Path) -> None:
    with box(tmp_path, film) as (door, store):
        live(door, 5)
        seen = door.picture(-1, 640, 5.0)
        while seen is None or seen.whole:
            seen = door.picture(seen.number if seen else -1, 640, 5.0)
        time.sleep(0.3)
        door.freeze(Whose(), seen.number)
        (take,) = until(door, lambda scan: scan.takes)
        data = pydicom.dcmread(io.BytesIO(object_of(store, door.keep(take.id).capture_id)))
        shown = cv2.imdecode(np.frombuffer(seen.jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        fitted = cv2.resize(data.pixel_array, shown.shape[::-1], interpolation=cv2.INTER_AREA)
        assert float(np.abs(fitted.astype(int) - shown).mean()) < 3.0


@pytest.mark.slow
def test_what_is_discarded_is_nowhere(film: Path, tmp_path: Path) -> None:
    with box(tmp_path, film) as (door, store):
        live(door, 5)
        take_id = clip_of(door, 0.3)
        door.discard(take_id)
        assert not store.captures.latest(5)
        with pytest.raises(NotNow, match="already"):
            door.keep(take_id)
    assert not list((tmp_path / "ring").rglob("*.take"))
    assert not list((tmp_path / "ring").rglob("*.seg")), "and the pre-roll went with its session"


def test_a_picture_without_a_known_area_is_never_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    frames = np.repeat(rng.integers(20, 220, (20, 240, 320, 1), dtype=np.uint8), 3, axis=-1)
    probe.write(tmp_path / "room.avi", np.concatenate([frames] * 8), codec="MJPG")
    with box(tmp_path / "state", tmp_path / "room.avi") as (door, store):
        until(door, lambda scan: scan.reason == FILLS)
        with pytest.raises(NotNow, match="confirm the area"):
            door.freeze(Whose())
        assert door.scan().kept == 0
        assert not list((tmp_path / "state" / "ring").rglob("*.seg")), "not even for a moment"
        door.confirm_area((0.1, 0.2, 0.9, 0.8))
        live(door)
        door.freeze(Whose())
        take = until(door, lambda scan: scan.takes)[0]
        data = pydicom.dcmread(io.BytesIO(object_of(store, door.keep(take.id).capture_id)))
        assert (data.Rows, data.Columns) == (192, 192)
    with box(tmp_path / "state", tmp_path / "room.avi") as (door, _):
        assert live(door).area.confirmed, "remembered for this device"  # type: ignore[union-attr]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: object, **named: object) -> None:
            super().__init__(*given, directory=str(folder), **named)  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_a_stream_that_ends_is_opened_again_and_a_clip_keeps_what_came_before(tmp_path: Path) -> None:
    movie(tmp_path, repeat=2)
    with serving(tmp_path) as address, box(tmp_path / "state", f"{address}/probe-MJPG.avi") as (door, store):
        live(door, 5)
        door.record(Whose())
        take = until(door, lambda scan: [take for take in scan.takes if take.ended])[0]
        assert take.ended == "source"
        assert pydicom.dcmread(io.BytesIO(object_of(store, door.keep(take.id).capture_id))).NumberOfFrames > 20
        until(door, lambda scan: scan.opened >= 1 and scan.phase == "live" and scan.kept > 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg: install Debian's package ffmpeg")
def test_a_transport_stream_over_udp_is_taken_lossy_as_it_is(film: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probing:
        probing.bind(("127.0.0.1", 0))
        port = probing.getsockname()[1]
    address = f"udp://127.0.0.1:{port}?pkt_size=1316"
    with box(tmp_path, f"udp://127.0.0.1:{port}?fifo_size=100000") as (door, store):
        command = ["ffmpeg", "-v", "quiet", "-re", "-stream_loop", "-1", "-i", str(film), "-c:v", "mpeg2video"]
        sender = subprocess.Popen(
            [*command, "-threads", "1", "-q:v", "3", "-g", "12", "-f", "mpegts", address], stdin=subprocess.DEVNULL
        )
        try:
            live(door, 15)
            kept = door.keep(clip_of(door))
        finally:
            sender.kill()
            sender.wait()
        data = pydicom.dcmread(io.BytesIO(object_of(store, kept.capture_id)))
        assert data.LossyImageCompression == "01"
        assert data.NumberOfFrames > 10


@pytest.mark.slow
def test_a_decoder_that_is_killed_costs_one_clip_s_end_and_nothing_else(film: Path, tmp_path: Path) -> None:
    with box(tmp_path, film) as (door, store):
        live(door, 20)
        door.record(Whose())
        time.sleep(0.4)
        assert door.decoding is not None
        os.kill(door.decoding.pid, signal.SIGKILL)
        take = until(door, lambda scan: [take for take in scan.takes if take.ended])[0]
        kept = door.keep(take.id)
        assert pydicom.dcmread(io.BytesIO(object_of(store, kept.capture_id))).NumberOfFrames > 15
        assert until(door, lambda scan: scan if scan.phase == "live" and scan.kept else None).crashes == 1


@pytest.mark.slow
def test_a_decoder_that_says_nothing_is_stopped_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging_decoder.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = Settings(source="auto", folder=str(tmp_path), key=bytes(32), keep_s=1, most=1 << 20, rate_limit=0)
    decoding = Decoding(settings, program="hanging_decoder", open_s=0.6, silent_s=0.6)
    began = time.monotonic()
    assert "gave no sign" in decoding.run(lambda _: None)
    assert time.monotonic() - began < 10
    assert decoding.crashed
    with pytest.raises(ProcessLookupError):
        os.kill(decoding.pid, 0)


@pytest.mark.slow
def test_nobody_looking_closes_the_source(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.capture.video._LOOKED_AT_S", 1.0)
    with box(tmp_path, film) as (door, _):
        live(door)
        assert door.decoding is not None
        end = time.monotonic() + 15
        while door.decoding is not None:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert not list((tmp_path / "ring").rglob("*.seg")), "and its pre-roll is gone"


@pytest.mark.slow
def test_a_pre_roll_never_reaches_back_before_the_patient_was_chosen(film: Path, tmp_path: Path) -> None:
    with box(tmp_path, film, pre_roll=10) as (door, store):
        live(door, 20)
        chosen = time.monotonic_ns()
        door.present("visit-of-somebody-else")
        assert door.record(Whose()).from_ns >= chosen
        time.sleep(0.5)
        take = door.finish()
        assert take is not None
        data = pydicom.dcmread(io.BytesIO(object_of(store, door.keep(take.id).capture_id)))
        assert data.NumberOfFrames < 25


@pytest.mark.slow
def test_a_clip_ends_by_itself_when_it_is_long_enough(film: Path, tmp_path: Path) -> None:
    with box(tmp_path, film, longest_clip=1.0) as (door, _):
        live(door, 5)
        door.record(Whose())
        with pytest.raises(NotNow, match="already"):
            door.record(Whose())
        (take,) = until(door, lambda scan: [take for take in scan.takes if take.ended])
        assert take.ended == "limit"


@pytest.mark.slow
def test_what_nobody_decides_about_is_kept(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.capture.video._DECIDE_S", 0.5)
    with box(tmp_path, film) as (door, store):
        live(door, 5)
        clip_of(door, 0.3)
        end = time.monotonic() + 20
        while not store.captures.latest(1):
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.slow
def test_times_in_the_ring_grow_and_count_what_is_missing(film: Path, tmp_path: Path) -> None:
    with box(tmp_path, film) as (door, _):
        live(door, 20)
        door.record(Whose())
        time.sleep(0.4)
        assert door.decoding is not None
        os.kill(door.decoding.pid, signal.SIGSTOP)
        time.sleep(0.6)
        os.kill(door.decoding.pid, signal.SIGCONT)
        time.sleep(0.5)
        take = door.finish()
        assert take is not None
        frames = list(door.takes.frames(take))
        assert all(one.t_ns < two.t_ns and one.number < two.number for one, two in itertools.pairwise(frames))


POWER_CUT = """
import sys, time
from pathlib import Path
from tests.probe_movies import box, live
from appliance.capture.video_takes import Whose
with box(Path(sys.argv[1]), sys.argv[2]) as (door, store):
    live(door, 15)
    door.record(Whose())
    before = door.scan().kept
    while door.scan().kept < before + 30:
        time.sleep(0.05)
    print("recording", flush=True)
    time.sleep(60)
"""


def test_frames_spooled_before_a_power_cut_are_kept_at_the_next_start(film: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    running = subprocess.Popen(
        [sys.executable, "-c", POWER_CUT, str(tmp_path), str(film)], stdout=subprocess.PIPE, cwd=root, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline().strip().endswith("recording")
    running.kill()
    running.wait()
    with box(tmp_path, film) as (door, store):
        end = time.monotonic() + 20
        while not (entries := store.captures.latest(1)):
            assert time.monotonic() < end
            time.sleep(0.1)
        data = pydicom.dcmread(io.BytesIO(object_of(store, entries[0].capture.id)))
        assert data.NumberOfFrames >= 30, "all that had been written"
        assert not door.scan().takes
    assert not list((tmp_path / "ring").rglob("*.take"))


@pytest.mark.slow
def test_a_scan_can_be_said_as_json_and_holds_nothing_of_a_patient(film: Path, tmp_path: Path) -> None:
    with box(tmp_path, film) as (door, _):
        live(door, 5)
        whose = Whose(patient=Patient(id="P-1", name="Doe^Jane"), encounter_id="e" * 32)
        door.freeze(whose)
        said = msgspec.json.encode(until(door, lambda scan: scan if scan.takes else None))
        assert b"Doe" not in said
        assert b"P-1" not in said
        assert not any(b"Doe" in path.read_bytes() for path in tmp_path.rglob("*.take")), "sealed on the disk too"
