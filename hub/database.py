"""The hub's database: one way in for SQLite and PostgreSQL, and the migrations between schema versions.

What this module keeps true: a write is one transaction that is durable when ``write`` ends (SQLite: WAL and
synchronous=FULL; PostgreSQL: its default); a write to SQLite takes the lock at its start, so it never fails half-way for
another writer; a database of a newer program is refused, an older one is brought up to date step by step, each step in
one transaction with its version number.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Table, event, exc
from sqlalchemy.dialects import postgresql, sqlite

from hub import tables
from hub.patients import fill_patients

Insert = sqlite.Insert | postgresql.Insert


class DatabaseError(Exception):
    """The database can't be used; the message names the cause and the remedy."""


def _version_1(connection: Connection) -> None:
    tables.metadata.create_all(connection)


def _version_2(connection: Connection) -> None:
    if "original" not in {column["name"] for column in sqlalchemy.inspect(connection).get_columns("transfer")}:
        connection.exec_driver_sql("ALTER TABLE transfer ADD COLUMN original VARCHAR(64) NOT NULL DEFAULT ''")


def _version_3(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS capture_changes ON capture (open, changed_ms)")
    connection.exec_driver_sql("DROP INDEX IF EXISTS capture_changed")


def _version_4(connection: Connection) -> None:
    """Unreleased: new tables are made here by themselves, changed ones get their lines."""
    connection.exec_driver_sql("DROP INDEX IF EXISTS transfer_state")  # made again with the time of the change
    tables.metadata.create_all(connection)
    connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS transfer_state ON transfer (state, changed_ms)")
    if "patient" not in {column["name"] for column in sqlalchemy.inspect(connection).get_columns("capture")}:
        connection.exec_driver_sql("ALTER TABLE capture ADD COLUMN patient VARCHAR(32) NOT NULL DEFAULT ''")
        fill_patients(connection)
    connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS capture_patient ON capture (patient)")


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_version_1, _version_2, _version_3, _version_4)
"""Step n brings a database of version n to n + 1. Append only; a step that was released is never changed."""

_LOCK = 0x62656473
"""PostgreSQL's advisory lock for migrations (an arbitrary number of our own): two workers may start at once."""


class Database:
    """An engine with two kinds of transactions: ``write`` and ``read``."""

    def __init__(self, url: str, *, busy_timeout: float = 30.0, pool: int = 8) -> None:
        """``url`` as SQLAlchemy takes it; ``busy_timeout`` in seconds. Nothing is opened yet."""
        self.url = sqlalchemy.make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        # Parameters hold what boxes sent: they must not appear in an error's text.
        options: dict[str, Any] = {"hide_parameters": True}
        options |= {"pool_size": pool, "max_overflow": pool, "pool_pre_ping": not self.is_sqlite}
        if self.is_sqlite:
            if not self.url.database or self.url.database == ":memory:":
                raise DatabaseError(f"{url}: the hub needs a file, e.g. sqlite:////var/lib/bedside-hub/hub.sqlite")
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
            options["connect_args"] = {"timeout": busy_timeout}
        self.engine = sqlalchemy.create_engine(self.url, **options)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._writer = self.engine.execution_options(writes=True)

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write; durable once the block has ended, undone if it raises."""
        with self._writer.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, at one consistent moment (SQLite) or statement by statement (PostgreSQL)."""
        with self.engine.begin() as connection:
            yield connection

    def insert(self, table: Table) -> Any:
        """An insert with ``on_conflict_do_nothing`` and ``on_conflict_do_update`` of this database's kind."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def version(self, connection: Connection) -> int:
        """The schema's version; 0 for an empty database."""
        if not sqlalchemy.inspect(connection).has_table("schema_version"):
            return 0
        return int(connection.execute(sqlalchemy.select(tables.schema_version.c.version)).scalar_one())

    def migrate(self, migrations: Sequence[Callable[[Connection], None]] = MIGRATIONS) -> int:
        """Bring the schema up to date; returns the version it had. Raises ``DatabaseError``."""
        try:
            with self.write() as connection:
                if not self.is_sqlite:
                    connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(_LOCK)))
                before = self.version(connection)
                if before > len(migrations):
                    raise DatabaseError(
                        f"{self._name}: schema version {before} is newer than this program knows ({len(migrations)}); "
                        "install the newer program again, or restore the backup made before it"
                    )
                for step in migrations[before:]:
                    step(connection)
                if before != len(migrations):
                    connection.execute(tables.schema_version.delete())
                    connection.execute(tables.schema_version.insert().values(version=len(migrations)))
                return before
        except exc.DBAPIError as error:
            raise DatabaseError(
                f"{self._name}: can't be used ({_first_line(error)}); check database.url, the folder's owner and space"
            ) from error

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @property
    def _name(self) -> str:
        return self.url.render_as_string(hide_password=True)


class Prepared:
    """A statement that runs for many rows, compiled once: SQLAlchemy's own work for each row is left out.

    The rows hold plain values of the driver's own types (no enumerations, no defaults of columns).
    """

    def __init__(self, database: Database, statement: Any) -> None:
        compiled = statement.compile(dialect=database.engine.dialect)
        self._sql = str(compiled)
        names = getattr(compiled, "positiontup", None)
        self._tuple = operator.itemgetter(*names) if names else None

    def run(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        """Run it for each of ``rows`` (at least one), in the caller's transaction."""
        take = self._tuple
        connection.exec_driver_sql(self._sql, rows if take is None else [take(row) for row in rows])


def is_full(error: exc.DBAPIError) -> bool:
    """Whether the database refused for want of space (SQLITE_FULL, or PostgreSQL's SQLSTATE 53100 disk_full)."""
    return "disk is full" in str(error.orig) or getattr(error.orig, "sqlstate", "") == "53100"


def is_of_the_data(error: exc.SQLAlchemyError) -> bool:
    """Whether the values were at fault rather than the database: trying the same again can't help."""
    if isinstance(error, exc.DataError | exc.IntegrityError):
        return True
    return isinstance(error, exc.StatementError) and not isinstance(error, exc.DBAPIError)


def _first_line(error: exc.DBAPIError) -> str:
    return str(error.orig).splitlines()[0] if str(error.orig) else type(error.orig).__name__


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by ``_begin_sqlite``, not by the driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
