"""What was said to be on the disk is read back after a power cut, and nothing that was changed is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.store.errors import Damaged
from appliance.store.files import OpenFile, RealFiles
from appliance.store.keys import BoxKey
from appliance.store.spool import Spool

KEY = BoxKey(bytes(range(32)))


class CountingFiles(RealFiles):
    """Real files that say how long each file was when it was last synced."""

    def __init__(self) -> None:
        self.synced: dict[Path, int] = {}

    def create(self, path: Path) -> OpenFile:
        inner, files = super().create(path), self

        class Watched:
            def write(self, data: bytes | bytearray | memoryview) -> None:
                inner.write(data)

            def sync(self) -> None:
                inner.sync()
                files.synced[path] = path.stat().st_size

            def close(self) -> None:
                inner.close()

        return Watched()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.binary(max_size=300), min_size=1, max_size=8), data=st.data())
def test_a_recording_cut_at_any_byte_gives_back_every_piece_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], data: st.DataObject
) -> None:
    files = CountingFiles()
    spool = Spool(tmp_path_factory.mktemp("spool"), KEY, files)
    writer = spool.begin(pieces[0])
    ends = [files.synced[writer.path]]
    for piece in pieces[1:]:
        writer.append(piece)
        ends.append(files.synced[writer.path])
    writer.close()
    cut = data.draw(st.integers(ends[0], ends[-1]))
    whole = writer.path.read_bytes()
    writer.path.write_bytes(whole[:cut])
    assert list(spool.pieces(writer.name)) == pieces[: sum(end <= cut for end in ends)]


def test_every_piece_is_durable_when_append_returns(tmp_path: Path) -> None:
    files = CountingFiles()
    writer = Spool(tmp_path, KEY, files).begin(b"first")
    for _ in range(3):
        writer.append(b"x" * 1000)
        assert files.synced[writer.path] == writer.path.stat().st_size


def test_after_a_piece_that_did_not_fit_none_is_taken_so_that_no_nonce_is_used_twice(tmp_path: Path) -> None:
    room = [400]

    class Full(RealFiles):
        def create(self, path: Path) -> OpenFile:
            inner = super().create(path)

            class Small:
                def write(self, data: bytes | bytearray | memoryview) -> None:
                    taken = min(len(data), room[0])
                    room[0] -= taken
                    inner.write(bytes(data)[:taken])
                    if taken < len(data):
                        raise OSError(errno.ENOSPC, "No space left on device")

                def sync(self) -> None:
                    inner.sync()

                def close(self) -> None:
                    inner.close()

            return Small()

    spool = Spool(tmp_path, KEY, Full())
    writer = spool.begin(b"first")
    with pytest.raises(OSError, match="No space"):
        writer.append(b"x" * 1000)
    torn, room[0] = writer.path.read_bytes(), 10_000
    with pytest.raises(OSError, match="No space"):
        writer.append(b"the end")
    assert writer.path.read_bytes() == torn
    assert list(spool.pieces(writer.name)) == [b"first"]


def test_a_changed_piece_ends_what_is_read_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, KEY)
    writer = spool.begin(b"first")
    for number in range(5):
        writer.append(bytes([number]) * 100)
    writer.close()
    raw = bytearray(writer.path.read_bytes())
    raw[68 + (4 + 21) + 2 * (4 + 116) + 30] ^= 1
    writer.path.write_bytes(raw)
    assert list(spool.pieces(writer.name)) == [b"first", bytes(100), b"\1" * 100]


def test_pieces_of_another_recording_are_not_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path, KEY)
    one, other = spool.begin(b"one"), spool.begin(b"two")
    one.close()
    other.close()
    one.path.write_bytes(one.path.read_bytes() + other.path.read_bytes()[68:])
    assert list(spool.pieces(one.name)) == [b"one"]


def test_nothing_of_a_recording_stands_in_plain_on_the_disk(tmp_path: Path) -> None:
    writer = Spool(tmp_path, KEY).begin(b"PATIENT NAME")
    writer.append(b"SAMPLES " * 40)
    assert b"PATIENT" not in writer.path.read_bytes()
    assert b"SAMPLES" not in writer.path.read_bytes()


def test_a_file_without_its_beginning_says_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path, KEY)
    (tmp_path / ("0" * 32 + ".spool")).write_bytes(b"BEDSP")
    with pytest.raises(Damaged, match="can't be read back"):
        list(spool.pieces("0" * 32))
