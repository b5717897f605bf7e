"""The journal: durable when it returns, undone when it raises, one fsync for what comes together."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.store import audit, schema
from appliance.store.errors import IllegalTransition, StoreError, StoreFull
from appliance.store.journal import IDLE, Journal, Transaction
from appliance.store.reserve import Reserve
from tests.boxes import now

PUT = "INSERT INTO meta (key, value) VALUES (?, '')"


def test_a_write_that_raises_is_undone_and_takes_no_other_with_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    hold = threading.Event()
    first = journal.submit(lambda tx: (hold.wait(5), tx.run(PUT, "first")))

    def bad(tx: Transaction) -> None:
        tx.run(PUT, "bad")
        raise IllegalTransition("no")

    middle, last = journal.submit(bad), journal.submit(lambda tx: tx.run(PUT, "last"))
    hold.set()
    first.result()
    last.result()
    with pytest.raises(IllegalTransition):
        middle.result()
    assert {row["key"] for row in journal.all("SELECT key FROM meta")} == {"first", "last"}
    journal.close()


def test_what_comes_together_is_committed_together(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    hold = threading.Event()
    journal.submit(lambda _: hold.wait(5))
    futures = [journal.submit(lambda tx, key=str(key): tx.run(PUT, key)) for key in range(100)]
    before = journal.groups
    hold.set()
    for future in futures:
        future.result()
    assert journal.groups - before <= 3
    assert len(journal.all("SELECT key FROM meta")) == 100
    journal.close()


def open_files(folder: Path, ending: str = "") -> int:
    links = (link for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sum(str(link.readlink()).startswith(str(folder)) and str(link.readlink()).endswith(ending) for link in links)


def test_threads_that_come_and_go_leave_no_connections_behind(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    opened = []
    for _ in range(4):
        with ThreadPoolExecutor(20) as threads:
            together = threading.Barrier(20, timeout=20)

            def read(_: int, together: threading.Barrier = together) -> int:
                with journal._lent() as connection:
                    together.wait()
                    return len(connection.execute("SELECT key FROM meta").fetchall())

            assert len(set(threads.map(read, range(20)))) == 1
        opened.append(open_files(tmp_path))
        assert open_files(tmp_path, "-wal") <= IDLE + 1, "a log for each connection, with the writer's"
    assert opened[-1] == opened[0], "SQLite keeps the file itself open for the next connection"
    with journal._lent() as lent:
        journal.close()
        assert lent.execute("SELECT 1").fetchone()
    assert open_files(tmp_path) == 0


def test_what_was_submitted_before_closing_is_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    futures = [journal.submit(lambda tx, key=str(key): tx.run(PUT, key)) for key in range(50)]
    journal.close()
    assert all(future.done() for future in futures)
    with pytest.raises(StoreError, match="closed"):
        journal.write(lambda _: None)
    journal = Journal(tmp_path / "journal")
    assert len(journal.all("SELECT key FROM meta")) == 50
    journal.close()


def test_a_full_disk_undoes_the_group_and_the_reserve_makes_room(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve", 4096)
    reserve.hold()
    journal = Journal(tmp_path / "journal", reserve)
    journal.write(lambda tx: tx.run(PUT, "before"))
    pages = journal.write(lambda tx: tx.one("PRAGMA page_count"))
    assert pages is not None
    journal.write(lambda tx: tx.all(f"PRAGMA max_page_count = {pages[0] + 1}"))  # this is how SQLite runs full
    big = "x" * 200_000
    with pytest.raises(StoreFull, match="nothing saved is lost"):
        journal.write(lambda tx: tx.run("INSERT INTO meta (key, value) VALUES ('big', ?)", big))
    assert not reserve.held, "the reserve was given up first"
    assert [row["key"] for row in journal.all("SELECT key FROM meta")] == ["before"]
    journal.write(lambda tx: tx.run(PUT, "after"))
    journal.close()


def test_a_journal_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "journal")
    connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreError, match="install the newer program"):
        Journal(tmp_path / "journal")


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(StoreError, match="not a journal"):
        Journal(tmp_path / "journal")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit SET detail = 'x' WHERE sequence = 3",
        "UPDATE audit SET wall = '2020' WHERE sequence = 3",
        "DELETE FROM audit WHERE sequence = 3",
        "UPDATE audit SET sequence = 99 WHERE sequence = 3",
    ],
)
def test_a_change_of_the_audit_log_is_found_at_its_place(tmp_path: Path, change: str) -> None:
    journal = Journal(tmp_path / "journal")
    for number in range(6):
        journal.write(lambda tx, number=number: audit.append(tx, now(), "event", f"subject {number}"))
    assert audit.verify(journal) is None
    journal.write(lambda tx: tx.run(change))
    assert audit.verify(journal) == 3
    journal.close()
