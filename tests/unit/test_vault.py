"""Blobs of more than one frame: written by another thread than the one that takes their bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.store.files import OpenFile, RealFiles
from appliance.store.keys import BoxKey
from appliance.store.vault import FRAME, SPARES, BlobWriter, Vault

KEY = BoxKey(bytes(32))


@pytest.mark.parametrize("piece", [4096, 131_061, FRAME, 10 * FRAME])
@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 3 * FRAME + 5])
def test_what_was_written_in_any_pieces_is_read_back(tmp_path: Path, size: int, piece: int) -> None:
    vault, data = Vault(tmp_path, KEY), os.urandom(size)
    for turn in range(2):  # the second time in buffers that the first one has used
        content = data + bytes([turn])
        writer = vault.writer()
        for start in range(0, len(content), piece):
            assert writer.write(content[start : start + piece]) == len(content[start : start + piece])
        assert writer.size == len(content)
        blob = writer.finish()
        assert blob == (hashlib.sha256(content).hexdigest(), len(content))
        assert vault.read(blob.sha256) == content
        assert bytes(vault.authentic(blob.sha256)) == content
    assert not list(vault.unfinished())
    assert len(vault.spares) <= SPARES


class _FullAfter(RealFiles):
    """A disk that takes ``most`` bytes of a file, and says who wrote."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.threads: set[str] = set()

    def create(self, path: Path) -> OpenFile:
        file, disk, there = super().create(path), self, 0
        write = file.write

        def limited(data: bytes | bytearray | memoryview) -> None:
            nonlocal there
            disk.threads.add(threading.current_thread().name)
            there += len(data)
            if there > disk.most:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(data)

        file.write = limited  # type: ignore[method-assign]
        return file


def _write_all(writer: BlobWriter, size: int) -> None:
    for start in range(0, size, FRAME):
        writer.write(bytes(min(FRAME, size - start)))
    writer.finish()


def test_a_disk_that_fills_up_is_said_to_the_one_who_writes_and_nothing_is_left(tmp_path: Path) -> None:
    vault = Vault(tmp_path, KEY, _FullAfter(3 * FRAME))
    for size in (3 * FRAME + 1, 8 * FRAME):  # noticed with the last frame, and before
        writer = vault.writer()
        with pytest.raises(OSError, match="No space"):
            _write_all(writer, size)
        writer.abort()
        assert not list(vault.unfinished())
        assert not list(vault.blobs())


def test_an_aborted_blob_leaves_nothing_at_any_point(tmp_path: Path) -> None:
    vault = Vault(tmp_path, KEY)
    for size in (0, 10, FRAME, FRAME + 1, 5 * FRAME):
        writer = vault.writer()
        writer.write(bytes(size))
        writer.abort()
        assert not list(vault.unfinished())
        assert not list(vault.blobs())


def test_small_blobs_are_one_threads_work_and_large_ones_that_of_two(tmp_path: Path) -> None:
    disk = _FullAfter(1 << 30)
    vault = Vault(tmp_path, KEY, disk)
    vault.put(bytes(FRAME))
    assert disk.threads == {threading.current_thread().name}
    vault.put(bytes(FRAME + 1))
    assert len(disk.threads) == 2


def test_many_large_blobs_at_once_do_not_mix(tmp_path: Path) -> None:
    vault = Vault(tmp_path, KEY)
    contents = [bytes([number]) * (2 * FRAME + number) for number in range(12)]
    with ThreadPoolExecutor(len(contents)) as threads:
        blobs = list(threads.map(vault.put, contents))
    assert [vault.read(blob.sha256) for blob in blobs] == contents
    assert len(vault.spares) <= SPARES
