"""An older journal becomes a present one with everything in it, also when the power goes in the middle."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from appliance.records import Triage
from appliance.store import audit, schema
from appliance.store.errors import StoreError
from appliance.store.journal import Journal
from appliance.store.retention import Retention
from tests.boxes import open_store, report


def dump(path: Path, tables: list[str]) -> dict[str, list[tuple[object, ...]]]:
    with sqlite3.connect(path) as connection:
        rows = {}
        for table in tables:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            known = [one for one in columns if one not in ADDED]
            rows[table] = connection.execute(f"SELECT {', '.join(known)} FROM {table}").fetchall()  # noqa: S608
    return rows


ADDED = {"removed", "raised", "identity_key", "conflict"}
"""Columns of ``TABLES`` that version 1 did not have."""

TABLES = ["meta", "capture", "reading", "outbox", "transfer", "audit"]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder as version 1 wrote it: the rows of today's program in the tables of version 1."""
    made = tmp_path / "made"
    store = open_store(made)
    report(store, b"first", Triage.CRITICAL, b"picture")
    report(store, b"second")
    store.close()
    folder = tmp_path / "old"
    shutil.copytree(made, folder)
    (folder / "journal.sqlite").unlink()
    connection = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(schema.MIGRATIONS[0])
    connection.execute("PRAGMA user_version=1")
    for table, rows in dump(made / "journal.sqlite", TABLES).items():
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608
    connection.close()
    return folder


def version(folder: Path) -> int:
    with sqlite3.connect(folder / "journal.sqlite") as connection:
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def test_a_journal_of_version_1_keeps_all_its_rows_and_goes_on(old: Path) -> None:
    before = dump(old / "journal.sqlite", TABLES)
    assert len(before["capture"]) == 2
    Journal(old / "journal.sqlite").close()
    assert version(old) == len(schema.MIGRATIONS) > 1
    assert dump(old / "journal.sqlite", TABLES) == before
    store = open_store(old)
    assert store.repair.clean
    assert [entry.removed for entry in store.captures.latest()] == ["", ""]
    assert store.outbox.totals()[0] == 2
    assert store.transfers.totals() == (1, len(b"picture"))
    report(store, b"third")
    assert Retention(store, 1).tend() == []
    assert audit.verify(store.journal) is None
    store.close()


def test_a_migration_cut_off_after_any_statement_leaves_the_version_before(old: Path, tmp_path: Path) -> None:
    statements = [one for one in schema.MIGRATIONS[1].split(";") if one.strip()]
    assert len(statements) > 4
    for cut in range(1, len(statements) + 1):
        begun, folder = tmp_path / f"begun-{cut}", tmp_path / f"cut-{cut}"
        shutil.copytree(old, begun)
        connection = sqlite3.connect(begun / "journal.sqlite", isolation_level=None)
        connection.execute("PRAGMA cache_size=1")  # so that pages of the open transaction reach the file
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements[:cut]:
            connection.execute(statement)
        shutil.copytree(begun, folder)  # what the disk holds at this moment
        connection.close()
        assert version(folder) == 1
        store = open_store(folder)
        assert store.repair.clean
        assert len(store.captures.latest()) == 2
        store.close()
        assert version(folder) == len(schema.MIGRATIONS)


def test_a_migration_that_fails_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (schema.MIGRATIONS[0], schema.MIGRATIONS[1] + "SELECT no_such_thing;"))
        with pytest.raises(StoreError, match="it is as it was"):
            open_store(old)
    assert version(old) == 1
    open_store(old).close()


def test_a_journal_of_a_newer_program_is_refused_with_the_remedy(old: Path) -> None:
    with sqlite3.connect(old / "journal.sqlite") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match="install the newer program again"):
        open_store(old)
