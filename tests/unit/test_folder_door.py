"""The folder door: what is taken, when, and what is left with a reason."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from pydicom.data import get_testdata_file

from appliance.capture.folder import FolderDoor
from appliance.config import FolderConfig
from appliance.records import Modality
from tests.simulated_intake import SimulatedIntake

SETTLE = 0.1
RADIOGRAPH = Path(str(get_testdata_file("RG3_J2KI.dcm")))


@contextlib.contextmanager
def watched(folder: Path, intake: SimulatedIntake | None = None) -> Iterator[tuple[FolderDoor, SimulatedIntake]]:
    intake = intake or SimulatedIntake()
    door = FolderDoor(FolderConfig(enabled=True, path=str(folder), settle=SETTLE), intake)
    door.start()
    try:
        yield door, intake
    finally:
        door.stop()
        assert intake.open_now == 0
        assert door.counts["errors"] == 0


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def png() -> bytes:
    return cv2.imencode(".png", np.random.default_rng(3).integers(0, 255, (40, 40), dtype=np.uint8))[1].tobytes()


def sound(form: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(4000) / 9), 4000, format=form)
    return file.getvalue()


def test_a_file_that_was_there_before_and_one_that_comes_later_are_taken_and_removed(tmp_path):
    shutil.copy(RADIOGRAPH, tmp_path / "before.dcm")
    with watched(tmp_path) as (_, intake):
        shutil.copy(get_testdata_file("RG1_J2KI.dcm"), tmp_path / "later without extension")
        wait_until(lambda: len(intake.kept) == 2)
        wait_until(lambda: list(tmp_path.iterdir()) == [])
    assert sorted(facts.body_part for _, facts in intake.kept) == ["CHEST", "EXTREMITY"]
    assert RADIOGRAPH.read_bytes() in [content for content, _ in intake.kept]


def test_a_file_moved_in_and_a_whole_folder_moved_in_are_taken(tmp_path):
    inbox, outside = tmp_path / "inbox", tmp_path / "outside"
    (outside / "study" / "deep").mkdir(parents=True)
    shutil.copy(RADIOGRAPH, outside / "study" / "deep" / "a")
    (outside / "b.png").write_bytes(png())
    with watched(inbox) as (_, intake):
        (outside / "study").rename(inbox / "study")
        (outside / "b.png").rename(inbox / "b.png")
        wait_until(lambda: len(intake.kept) == 2)


def test_a_file_still_growing_is_not_taken_until_it_stands_still(tmp_path):
    content = RADIOGRAPH.read_bytes()
    with watched(tmp_path) as (_, intake), (tmp_path / "slow.dcm").open("wb", buffering=0) as file:
        step = len(content) // 8
        for start in range(0, len(content), step):
            file.write(content[start : start + step])
            assert intake.kept == []
            time.sleep(SETTLE * 0.7)
        wait_until(lambda: len(intake.kept) == 1)
    assert intake.kept[0][0] == content


def test_a_file_rewritten_with_its_size_and_times_unchanged_is_taken_as_it_is_at_the_end(tmp_path):
    path = tmp_path / "x.png"
    first, second = png(), bytearray(png())
    second[60] ^= 1
    path.write_bytes(first)
    times = path.stat()
    with watched(tmp_path) as (door, intake):
        wait_until(lambda: any(seen is not None for seen in door._seen.values()))
        with path.open("r+b") as file:
            file.write(second)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        wait_until(lambda: len(intake.kept) == 1)
    assert intake.kept[0][0] == bytes(second)


@pytest.mark.parametrize("modality", ["chest-xray", "lung-ultrasound", "heart-sound", "lung-sound"])
def test_a_file_that_can_not_say_its_modality_gets_it_from_its_folder(tmp_path, modality):
    (tmp_path / modality / "patient 7").mkdir(parents=True)
    content = sound("WAV") if "sound" in modality and "ultra" not in modality else png()
    (tmp_path / modality / "patient 7" / "one").write_bytes(content)
    (tmp_path / "elsewhere.flac").write_bytes(sound("FLAC"))
    with watched(tmp_path) as (_, intake):
        wait_until(lambda: len(intake.kept) == 2)
    kept = {facts.media_type: facts.modality for _, facts in intake.kept}
    assert kept["audio/flac"] is Modality.OTHER
    assert Modality(modality) in kept.values()


def test_dicom_inside_a_zip_is_taken_and_its_junk_is_not(tmp_path):
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(RADIOGRAPH, "images/IM0001")
        archive.write(get_testdata_file("RG1_J2KI.dcm"), "images/IM0002")
        archive.write(get_testdata_file("DICOMDIR"), "DICOMDIR")
        archive.writestr("autorun.inf", "[autorun]")
    with watched(tmp_path) as (_, intake):
        wait_until(lambda: list(tmp_path.iterdir()) == [])
    assert sorted(facts.body_part for _, facts in intake.kept) == ["CHEST", "EXTREMITY"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("DICOMDIR", Path(str(get_testdata_file("DICOMDIR"))).read_bytes(), "DICOMDIR"),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(500), "neither DICOM nor"),
        ("letter.txt", b"Dear doctor", "neither DICOM nor"),
        ("empty.dcm", b"", "empty"),
        ("download.part", RADIOGRAPH.read_bytes(), "temporary"),
        (".hidden", RADIOGRAPH.read_bytes(), "temporary or hidden"),
        ("cut.dcm", RADIOGRAPH.read_bytes()[:20_000], "cut off"),
        ("cut.png", png()[:-20], "cut off"),
        ("cut.wav", sound("WAV")[:-100], "cut off"),
        ("broken.zip", b"PK\x03\x04" + bytes(100), "zip"),
        ("meta only.dcm", bytes(128) + b"DICM" + bytes(20), "transfer syntax"),
    ],
)
def test_what_is_not_taken_is_left_with_its_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with watched(tmp_path) as (door, intake):
        wait_until(lambda: door.refused)
        assert door.refused[0].path == tmp_path / name
        assert reason in door.refused[0].reason
        assert door.counts["refused-junk"] + door.counts["refused-broken"] == 1
        assert (tmp_path / name).read_bytes() == content
    assert intake.kept == []


def test_a_file_left_is_looked_at_again_when_it_changes(tmp_path):
    path = tmp_path / "x.dcm"
    path.write_bytes(RADIOGRAPH.read_bytes()[:20_000])
    with watched(tmp_path) as (door, intake):
        wait_until(lambda: door.refused)
        path.write_bytes(RADIOGRAPH.read_bytes())
        wait_until(lambda: len(intake.kept) == 1)
        wait_until(lambda: not path.exists())


def test_an_encrypted_zip_is_left(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"secret")
    content = bytearray(file.getvalue())
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        at = content.index(mark)
        content[at + (6 if mark == b"PK\x03\x04" else 8)] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with watched(tmp_path) as (door, _):
        wait_until(lambda: door.refused)
        assert "encrypted" in door.refused[0].reason


def test_a_link_or_a_pipe_in_the_folder_is_ignored(tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    shutil.copy(RADIOGRAPH, tmp_path / "outside.dcm")
    (inbox / "link.dcm").symlink_to(tmp_path / "outside.dcm")
    os.mkfifo(inbox / "pipe.dcm")
    with watched(inbox) as (_, intake):
        (inbox / "real.png").write_bytes(png())
        wait_until(lambda: len(intake.kept) == 1)
        time.sleep(3 * SETTLE)
    assert [facts.media_type for _, facts in intake.kept] == ["image/png"]
    assert (tmp_path / "outside.dcm").exists()


def test_a_medium_that_can_not_be_written_is_read_once_and_left_as_it_is(tmp_path, monkeypatch):
    shutil.copy(RADIOGRAPH, tmp_path / "x.dcm")

    def read_only(self: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    with watched(tmp_path) as (door, intake):
        wait_until(lambda: len(intake.kept) == 1)
        door.notice(None)
        time.sleep(3 * SETTLE)
        assert door.counts == {"kept": 1}
        assert intake.opened == 1
    assert stat.S_ISREG((tmp_path / "x.dcm").stat().st_mode)


def test_with_a_full_disk_the_file_stays_and_is_taken_later(tmp_path, monkeypatch):
    monkeypatch.setattr("appliance.capture.folder._RETRY", 0.3)
    shutil.copy(RADIOGRAPH, tmp_path / "x.dcm")
    intake = SimulatedIntake(room_for=1000)
    with watched(tmp_path, intake) as (door, _):
        wait_until(lambda: door.counts["refused-full"] >= 1)
        assert (tmp_path / "x.dcm").exists()
        intake.room_for = None
        wait_until(lambda: len(intake.kept) == 1)


def test_a_file_is_not_removed_when_keeping_it_failed(tmp_path):
    shutil.copy(RADIOGRAPH, tmp_path / "x.dcm")
    intake = SimulatedIntake()
    from appliance.capture.intake import IntakeError

    intake.fail_on_keep = IntakeError("the disk did not take it")
    with watched(tmp_path, intake) as (door, _):
        wait_until(lambda: door.counts["refused-store"] >= 1)
        assert (tmp_path / "x.dcm").read_bytes() == RADIOGRAPH.read_bytes()


def test_a_stick_pulled_and_put_back_is_watched_again(tmp_path, monkeypatch):
    monkeypatch.setattr("appliance.capture.folder._RESCAN", 0.2)
    stick = tmp_path / "stick"
    with watched(stick) as (_, intake):
        (stick / "a.png").write_bytes(png())
        wait_until(lambda: len(intake.kept) == 1)
        stick.rename(tmp_path / "pulled")
        time.sleep(0.5)
        stick.mkdir()
        shutil.copy(RADIOGRAPH, stick / "b.dcm")
        wait_until(lambda: len(intake.kept) == 2)


def test_the_same_file_twice_is_kept_once_and_removed_twice(tmp_path):
    with watched(tmp_path) as (door, intake):
        shutil.copy(RADIOGRAPH, tmp_path / "a.dcm")
        shutil.copy(RADIOGRAPH, tmp_path / "b.dcm")
        wait_until(lambda: door.counts["kept"] + door.counts["duplicate"] == 2)
        wait_until(lambda: list(tmp_path.iterdir()) == [])
    assert len(intake.kept) == 1


def test_a_stick_pulled_in_the_middle_of_a_file_leaves_nothing_and_the_file_is_taken_when_it_is_back(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("appliance.capture.folder._RESCAN", 0.2)
    shutil.copy(RADIOGRAPH, tmp_path / "x.dcm")
    pulled = True

    class Pulled(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            if pulled and self.tell() >= 4096:
                raise OSError(5, "Input/output error")
            return super().read(min(size, 4096) if pulled and size > 0 else size)

    @contextlib.contextmanager
    def opened(path: Path):
        yield Pulled(path.read_bytes())

    monkeypatch.setattr("appliance.capture.folder._opened", opened)
    with watched(tmp_path) as (door, intake):
        wait_until(lambda: door.counts["vanished"] >= 1)
        assert intake.kept == []
        assert intake.open_now == 0
        pulled = False
        wait_until(lambda: len(intake.kept) == 1)
        wait_until(lambda: not (tmp_path / "x.dcm").exists())
    assert intake.kept[0][0] == RADIOGRAPH.read_bytes()


def test_what_a_dicomdir_lists_is_taken_from_its_folders_and_the_directory_itself_is_left(tmp_path):
    deep = tmp_path / "DICOM" / "PAT00001" / "STU00001"
    deep.mkdir(parents=True)
    shutil.copy(RADIOGRAPH, deep / "IMG00001")
    shutil.copy(get_testdata_file("RG1_J2KI.dcm"), deep / "IMG00002")
    shutil.copy(get_testdata_file("DICOMDIR"), tmp_path / "DICOMDIR")
    (tmp_path / "AUTORUN.INF").write_text("[autorun]")
    with watched(tmp_path) as (door, intake):
        wait_until(lambda: len(intake.kept) == 2)
        wait_until(lambda: len(door.refused) == 2)
        reasons = {one.path.name: one.reason for one in door.refused}
    assert "DICOMDIR" in reasons["DICOMDIR"]
    assert "neither DICOM" in reasons["AUTORUN.INF"]
