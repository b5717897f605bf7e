"""A power cut, a full disk and a failing disk at every single operation of the store: what was acknowledged is whole."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import pytest

from appliance.capture.intake import IntakeError, StoreFull
from appliance.store import audit
from appliance.store.errors import StoreError
from appliance.store.store import Store
from tests.boxes import keep, open_store
from tests.crashing_files import CrashingFiles, PowerCut

CONTENTS = [b"first", b"small", bytes(random.Random(1).randbytes(2_500_000)), b"small", b"last"]


def take_all(store: Store, acknowledged: list[bytes]) -> None:
    for content in CONTENTS:
        keep(store, content)
        acknowledged.append(content)


def check_whole(folder: Path, acknowledged: list[bytes]) -> None:
    store = open_store(folder)
    try:
        kept = {entry.capture.sha256 for entry in store.captures.latest()}
        contents = {store.vault.read(sha256) for sha256 in kept}
        assert contents >= set(acknowledged), "something acknowledged is gone"
        assert set(store.vault.blobs()) == kept, "an orphan remains"
        assert not list(store.vault.unfinished())
        assert not store.repair.missing
        assert audit.verify(store.journal) is None
        keep(store, b"after the cut")
    finally:
        store.close()


def abandon(store: Store | None) -> None:
    """Let go as a process does that is gone: the journal is SQLite's own business and is not ended in an orderly way."""
    if store is not None:
        os.close(store._lock)


def operations(tmp_path: Path) -> int:
    files = CrashingFiles(at=-1)
    store = open_store(tmp_path / "count", files)
    take_all(store, [])
    store.close()
    shutil.rmtree(tmp_path / "count")
    return files.count


def test_a_power_cut_at_every_operation_loses_nothing_acknowledged(tmp_path: Path) -> None:
    total = operations(tmp_path)
    assert total > 40
    for at in range(1, total + 1):
        folder = tmp_path / f"cut-{at}"
        acknowledged: list[bytes] = []
        store = None
        with pytest.raises(PowerCut):
            store = open_store(folder, CrashingFiles(at))
            take_all(store, acknowledged)
        abandon(store)
        check_whole(folder, acknowledged)
        shutil.rmtree(folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=["full", "failing", "read-only"])
def test_a_disk_that_refuses_at_any_operation_is_said_and_loses_nothing(tmp_path: Path, code: int) -> None:
    total = operations(tmp_path)
    for at in range(1, total + 1):
        folder = tmp_path / f"refuse-{at}"
        acknowledged: list[bytes] = []
        files = CrashingFiles(at, code)
        try:
            store = open_store(folder, files)
        except (StoreError, OSError) as error:
            assert os.strerror(code) in str(error)
            shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            for content in CONTENTS:
                try:
                    keep(store, content)
                except IntakeError as error:
                    assert os.strerror(code) in str(error)
                    assert isinstance(error, StoreFull) == (code == errno.ENOSPC)
                else:
                    acknowledged.append(content)
        finally:
            store.close()
        assert len(acknowledged) >= len(CONTENTS) - 1, "one refusal must not spoil the others"
        check_whole(folder, acknowledged)
        shutil.rmtree(folder)


def test_an_empty_capture_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(IntakeError, match="empty"):
        keep(store, b"")
    assert not list(store.vault.unfinished())
    assert not store.captures.latest()
    store.close()


def test_a_store_is_not_opened_twice(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(StoreError, match="another program has this state folder open"):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path).close()


def test_a_journal_sealed_with_another_key_is_refused_with_the_remedy(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (tmp_path / "box.key").write_bytes(os.urandom(32))
    with pytest.raises(StoreError, match=r"put its box\.key back"):
        open_store(tmp_path)


def test_a_damaged_blob_is_said_and_never_returned(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    content = os.urandom(3_000_000)
    sha256 = store.captures.get(keep(store, content).capture_id).capture.sha256
    path = store.vault.path(sha256)
    whole = path.read_bytes()
    rng = random.Random(3)
    for _ in range(30):
        position = rng.randrange(len(whole))
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << rng.randrange(8)]) + whole[position + 1 :])
        with pytest.raises(StoreError):
            store.vault.read(sha256)
    for cut in (0, 10, 72, 100, len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(StoreError):
            store.vault.read(sha256)
    store.close()


def test_nothing_of_a_patient_can_be_read_from_the_raw_state_folder(tmp_path: Path) -> None:
    from appliance.records import Patient

    store = open_store(tmp_path)
    names = [f"Zebedee-{number:04d}^Quux" for number in range(200)]
    for number, name in enumerate(names):
        keep(store, f"pixels of {name}".encode(), patient=Patient(id=f"HOSP-{number:05d}-X", name=name))
    store.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            assert b"Zebedee" not in raw, path
            assert b"HOSP-" not in raw, path
            assert b"Zebedee" not in path.name.encode()
