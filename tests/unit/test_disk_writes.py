"""What is written to the disk in a day is counted, and said when it is too much."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.config import Config, DeviceConfig, StorageConfig
from appliance.health.check_box import check_writes
from appliance.health.status import state_of
from appliance.health.writes import EVERY, DiskWrites, write_bytes
from appliance.store import usage
from appliance.store.store import MB
from tests.boxes import keep, open_store


class Kernel:
    """What the kernel and the clock say."""

    def __init__(self) -> None:
        self.written, self.now = 1000, 0.0

    def measured(self) -> int:
        return self.written

    def monotonic(self) -> float:
        return self.now


def test_the_kernel_s_count_grows_with_what_is_written_and_not_with_what_is_read(tmp_path: Path) -> None:
    before = write_bytes()
    if before is None:
        pytest.skip("this kernel has no task I/O accounting")
    with (tmp_path / "file").open("wb") as file:
        file.write(os.urandom(3 * MB))
        file.flush()
        os.fsync(file.fileno())
    after = write_bytes()
    assert after is not None
    if after == before:
        pytest.skip("the temporary folder is not on a disk")
    assert 3 * MB <= after - before < 4 * MB
    (tmp_path / "file").read_bytes()
    assert write_bytes() == after


def test_a_day_holds_what_was_written_less_the_captures_and_is_said_over_its_budget(tmp_path: Path) -> None:
    store, kernel = open_store(tmp_path), Kernel()
    writes = DiskWrites(store, 1, lambda: "2026-01-01", measured=kernel.measured, monotonic=kernel.monotonic)
    keep(store, bytes(2 * MB))
    kernel.written += 3 * MB
    writes.tend()
    assert usage.written_on(store.journal, "2026-01-01") == (0, 0), "not every time"
    kernel.now += EVERY
    writes.tend()
    written, kept = usage.written_on(store.journal, "2026-01-01")
    assert written == 3 * MB
    assert 2 * MB <= kept < 2 * MB + 1000
    assert not writes.problem()
    kernel.written += MB
    writes.tend(now=True)
    assert "1 MB were written today besides captures" in writes.problem()
    config = Config(device=DeviceConfig(), storage=StorageConfig(state=str(tmp_path), write_budget=1))
    check = check_writes(config)
    assert check.ok is None
    assert "at most 1 MB a day" in check.found
    store.close()
    assert state_of(config).written_bytes_by_day == {"2026-01-01": written + MB - kept}


def test_a_kernel_that_does_not_count_is_no_error(tmp_path: Path) -> None:
    store = open_store(tmp_path / "box")
    writes = DiskWrites(store, 1, lambda: "2026-01-01", measured=lambda: None)
    writes.tend(now=True)
    assert not writes.problem()
    assert write_bytes(root=tmp_path) is None
    store.close()
