"""The journal: one SQLite file (WAL, synchronous=FULL) in which every state and transition is written.

What this module keeps true: a write that returned is on the disk; a write that raised changed nothing. One thread at a time
writes: the caller's own when nobody else waits (to hand over and back costs two waits for the processor), else the
journal's. What arrives meanwhile is committed together with one fsync (a group), each write in a savepoint of its own, so
that one that fails takes no other with it; what a thread gave earlier is written earlier. Reading never waits for writing.
State machines stand in modules of their own (``captures``, ``outbox``, ``transfers``, ``inbox``) and get a ``Transaction``:
only ``Journal.write`` makes one.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from appliance.store import schema
from appliance.store.errors import StoreError, StoreFull
from appliance.store.reserve import Reserve

T = TypeVar("T")
Row = sqlite3.Row

GROUP = 100
"""Most writes committed together."""
IDLE = 4
"""Most connections kept open for reading while nobody reads."""

_IOERR, _FULL = 10, 13  # sqlite3.h; Python 3.10 doesn't name them


_Write = tuple[Callable[["Transaction"], Any], Future[Any]]


class Transaction:
    """The right to write, handed out by ``Journal.write`` for the time of one function."""

    __slots__ = ("_connection", "witness")

    def __init__(self, connection: sqlite3.Connection, witness: Callable[[str], str]) -> None:
        """``witness`` gives a keyed hash of a text: what only this box can write."""
        self._connection = connection
        self.witness = witness

    def run(self, sql: str, *values: Any) -> int:
        """Execute one statement; the number of rows it changed."""
        return self._connection.execute(sql, values).rowcount

    def insert(self, sql: str, *values: Any) -> int:
        """Execute an INSERT; the new row's id."""
        return self._connection.execute(sql, values).lastrowid or 0

    def all(self, sql: str, *values: Any) -> list[Row]:
        """The rows of a query, as this transaction sees them."""
        return self._connection.execute(sql, values).fetchall()

    def one(self, sql: str, *values: Any) -> Row | None:
        """The first row of a query, or ``None``."""
        row: Row | None = self._connection.execute(sql, values).fetchone()
        return row


class Reader:
    """The SQLite file for those who only read, from any thread. Also beside the program that writes it.

    A connection is lent for one query and kept for the next, ``IDLE`` of them at most: threads come and go (a web server's,
    an association's), and what each had opened for itself would stay for ever.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._done = False

    def all(self, sql: str, *values: Any) -> list[Row]:
        """The rows of a query over what is committed."""
        with self._lent() as connection:
            return connection.execute(sql, values).fetchall()

    def one(self, sql: str, *values: Any) -> Row | None:
        """The first row of a query over what is committed, or ``None``."""
        with self._lent() as connection:
            cursor = connection.execute(sql, values)
            row: Row | None = cursor.fetchone()
            cursor.close()  # a statement that is not at its end holds its view of the file, and the log can't be emptied
        return row

    def close(self) -> None:
        """Close the connections; one that is lent is closed when it comes back."""
        with self._lock:
            self._done = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = _connect_to_read(self.path)
        try:
            yield connection
        finally:
            with self._lock:
                keep = not self._done and len(self._idle) < IDLE
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()


class Journal(Reader):
    """The SQLite file with its one writer."""

    def __init__(
        self, path: Path, reserve: Reserve | None = None, witness: Callable[[str], str] = lambda _: ""
    ) -> None:
        """``witness``: see ``Transaction``."""
        super().__init__(path)
        self._reserve = reserve
        self._witness = witness
        self._closed = False
        self.groups = 0
        self.writes = 0
        self._queue: queue.SimpleQueue[list[_Write] | None] = queue.SimpleQueue()
        self._pending = 0  # writes, or groups of them, that were given and are not yet answered; under ``_lock``
        self._turn = threading.Lock()  # whose thread has the connection
        self._connection = _open(path)
        schema.migrate(self._connection)
        self._thread = threading.Thread(target=self._serve, name="journal", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether writes wait."""
        return not self._queue.empty()

    def write(self, function: Callable[[Transaction], T]) -> T:
        """Run ``function`` in a transaction; durable when this returns, undone when it raises."""
        with self._lock:
            alone = not self._pending and not self._closed
            if alone:
                self._pending += 1
                self._turn.acquire()  # at once: nobody else has anything to write
        if not alone:
            return self.submit(function).result()
        future: Future[T] = Future()
        try:
            self._commit([(function, future)])
        finally:
            self._turn.release()
            self._answered()
        return future.result()

    def submit(self, function: Callable[[Transaction], T]) -> Future[T]:
        """Like ``write``, without waiting: the future is done when the write is durable."""
        return self.submit_together(function)[0]

    def submit_together(self, *functions: Callable[[Transaction], T]) -> list[Future[T]]:
        """Several writes, each a transaction of its own, in this order and with one fsync for all."""
        writes: list[_Write] = [(function, Future()) for function in functions]
        with self._lock:
            if self._closed:
                raise StoreError("the journal is closed; the program is stopping")
            self._pending += 1
            self._queue.put(writes)
        return [future for _, future in writes]

    def close(self) -> None:
        """Commit what was submitted, then close."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        super().close()
        with self._turn:
            self._connection.close()

    def _answered(self, number: int = 1) -> None:
        with self._lock:
            self._pending -= number

    def _serve(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            group, taken, stop = list(first), 1, False
            with self._turn:
                while len(group) < GROUP and not self._queue.empty():
                    item = self._queue.get()
                    if item is None:
                        stop = True
                        break
                    group += item
                    taken += 1
                self._commit(group)
            self._answered(taken)
            if stop:
                return

    def _commit(self, group: list[_Write]) -> None:
        results = self._attempt(group)
        if results is None and self._reserve is not None and self._reserve.release():
            results = self._attempt(group)  # the reserve made room: once more, all of it
        if results is None:
            error = StoreFull(
                f"{self.path}: the disk is full or failing; free space or replace it, nothing saved is lost"
            )
            for _, future in group:
                future.set_exception(error)
            return
        self.groups += 1
        self.writes += len(group)
        for (_, future), (value, problem) in zip(group, results, strict=True):
            if problem is None:
                future.set_result(value)
            else:
                future.set_exception(problem)

    def _attempt(self, group: list[_Write]) -> list[tuple[Any, BaseException | None]] | None:
        """Run and commit the group; ``None`` if the disk did not take it (then nothing of it happened)."""
        connection = self._connection
        results: list[tuple[Any, BaseException | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for function, _ in group:
                connection.execute("SAVEPOINT one")
                try:
                    results.append((function(Transaction(connection, self._witness)), None))
                except Exception as problem:  # handed to the caller, who asked for this function
                    if _is_full(problem):
                        raise
                    connection.execute("ROLLBACK TO one")
                    results.append((None, problem))
                connection.execute("RELEASE one")
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if _is_full(error):
                return None
            failed = StoreError(f"{self.path}: {error}; run bedside doctor")
            return [(None, failed)] * len(group)
        except BaseException:  # a signal's, on a thread that writes for itself
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return results


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}; it is not a journal or the disk is failing, run bedside doctor") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA wal_autocheckpoint=2000")
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA cache_size=-512")  # KiB: several of these; the kernel keeps the file's pages anyway
        connection.execute("SELECT 1 FROM meta LIMIT 1").fetchall()
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise StoreError(f"{path}: {error}; it is made by the daemon's first start: bedside run") from error
    return connection


def _is_full(problem: BaseException) -> bool:
    if not isinstance(problem, sqlite3.OperationalError):
        return False
    code = getattr(problem, "sqlite_errorcode", None)
    return (
        (code & 0xFF) in (_IOERR, _FULL)
        if isinstance(code, int)
        else "full" in str(problem) or "disk I/O" in str(problem)
    )
