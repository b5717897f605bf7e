"""A power cut at every system call of a box's life, SQLite's own among them: what was acknowledged is whole.

The store's writes are recorded by ``strace`` and every prefix of them is laid out as a disk might have kept it: all of it,
only what was synced, the last write torn at a sector's boundary, or any sectors of what was not synced. Each is opened as
the box would open it after the cut. The fast test takes some of the prefixes, the slow one all, and every boundary.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.records import CaptureState
from appliance.store import audit
from tests import store_workload
from tests.boxes import keep, open_store
from tests.recorded_writes import Cut, Disk, Operation, boundaries, lay, record, strace_runs

ORDER = [state.value for state in CaptureState]
MOST_BOUNDARIES = 12


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> list[Operation]:
    if not strace_runs():
        pytest.skip("strace is missing, or the kernel does not let it trace: apt-get install strace")
    folder = tmp_path_factory.mktemp("recorded")
    return record("tests.store_workload", folder, folder / "log")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory: thousands of stores are opened, and what their own syncs cost is not the question."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder of its own is made there
    with tempfile.TemporaryDirectory(prefix="bedside-cut-", dir=place) as folder:
        yield Path(folder)


def promised(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """What holds after these acknowledgements, in their order."""
    held: dict[str, Any] = {"capture": {}, "outbox": {}, "transfer": {}, "removed": set(), "audit": 0}
    for fact in facts:
        for key, value in fact.items():
            if key == "audit":
                held[key] = value
            elif key == "removed":
                held[key] |= set(value)
            else:
                held[key][value[0]] = value[1:]
    return held


def check(folder: Path, held: dict[str, Any]) -> None:
    """Open what the cut left: everything promised is whole, nothing is doubled, and the box works on."""
    store = open_store(folder)
    try:
        assert not store.repair.missing
        entries = {entry.capture.id: entry for entry in store.captures.latest()}
        for identity, (state,) in held["capture"].items():
            entry = entries[identity]
            assert ORDER.index(entry.state.value) >= ORDER.index(state)
            if not entry.removed:
                assert store.vault.read(entry.capture.sha256)
            assert entry.removed or identity not in held["removed"]
        for identity, (state,) in held["outbox"].items():
            assert store.outbox.state(identity) == "delivered" or state == "waiting"
            assert store.outbox.payload(identity)
        for identity, (state, confirmed) in held["transfer"].items():
            row = store.journal.one("SELECT * FROM transfer WHERE id = ?", identity)
            assert row is not None
            assert row["confirmed"] >= confirmed
            assert row["state"] == "delivered" or state == "waiting"
            assert row["removed"] or store.vault.read(row["sha256"])
        notes = [row for row in audit.entries(store.journal) if row["event"] == "tried"]
        assert len(notes) >= held["audit"]
        assert audit.verify(store.journal) is None
        assert not list(store.vault.unfinished())
        assert store.journal.one("PRAGMA integrity_check")[0] == "ok"
        keep(store, b"after the cut")
    finally:
        store.close()


def cuts(operation: Operation, chance: random.Random, *, every: bool) -> Iterator[tuple[Cut, int]]:
    """The ways in which power may go after an operation."""
    yield "all", 0
    yield "synced", 0
    yield "scattered", 0
    inner = boundaries(operation) if operation.kind == "write" else 0
    wanted = range(1, inner + 1)
    for sectors in wanted if every and inner <= MOST_BOUNDARIES else sorted(chance.sample(wanted, min(inner, 2))):
        yield "torn", sectors
        yield "torn", -sectors


def try_all(operations: list[Operation], folder: Path, seed: int, *, every: bool) -> int:
    """Cut after each operation (of one in ``step``); how many disks were opened."""
    chance, disk, facts, tried, seen = random.Random(seed), Disk(), [], 0, set()
    for operation in operations:
        disk.apply(operation)
        if operation.kind == "said":
            facts += [json.loads(line) for line in operation.data.splitlines()]
        if operation.kind == "begin" or not (every or chance.random() < 0.06):
            continue
        held = promised(facts)
        for cut, sectors in cuts(operation, chance, every=every):
            found = disk.left(cut, chance, sectors)
            mark = hash((len(facts), tuple(sorted(found.items(), key=lambda item: item[0]))))
            if mark in seen:
                continue
            seen.add(mark)
            lay(found, folder / "box")
            try:
                check(folder / "box", held)
            except Exception as error:
                error.args = (f"{cut} {sectors} after {operation.kind} {operation.path} #{tried}: {error}",)
                raise
            shutil.rmtree(folder / "box")
            tried += 1
    return tried


def test_the_record_holds_the_whole_life(operations: list[Operation], memory: Path) -> None:
    kinds = {operation.kind for operation in operations}
    assert kinds == {"create", "write", "truncate", "begin", "sync", "rename", "unlink", "mkdir", "said"}
    checkpoints = sum(one.path == "journal.sqlite" and one.kind == "sync" for one in operations)
    assert checkpoints > 10
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    lay(disk.left("synced", random.Random(0)), memory / "box")
    check(
        memory / "box",
        {"capture": {}, "outbox": {}, "transfer": {}, "removed": set(), "audit": len(store_workload.CONTENTS)},
    )


def test_a_power_cut_at_a_system_call_loses_nothing_acknowledged(operations: list[Operation], memory: Path) -> None:
    assert try_all(operations, memory, seed=1, every=False) > 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_power_cut_at_every_system_call_loses_nothing_acknowledged(
    operations: list[Operation], memory: Path, record_property: Callable[[str, object], None]
) -> None:
    tried = try_all(operations, memory, seed=2, every=True)
    record_property("disks opened", tried)
    assert tried > len(operations)


def test_a_disk_that_forgets_what_was_synced_is_noticed(operations: list[Operation], memory: Path) -> None:
    """The check itself: without the WAL's synced writes something acknowledged is gone, and it says so."""
    disk, facts = Disk(), []
    for operation in operations:
        if operation.path == "journal.sqlite-wal" and operation.kind == "sync":
            disk.names[operation.path].begun.clear()
            continue
        disk.apply(operation)
        if operation.kind == "said":
            facts += [json.loads(line) for line in operation.data.splitlines()]
        if len(facts) == 2:
            break
    lay(disk.left("synced", random.Random(0)), memory / "box")
    with pytest.raises((AssertionError, KeyError, sqlite3.Error)):
        check(memory / "box", promised(facts))
