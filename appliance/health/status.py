"""What the box holds, read from its journal without disturbing a running daemon."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from appliance.config import Config
from appliance.health.check_box import is_running
from appliance.reading.requests import Described, Serving
from appliance.store import audit
from appliance.store.audit import Verdict
from appliance.store.credentials import IdentityError, identity_of
from appliance.store.errors import StoreError
from appliance.store.files import RealFiles
from appliance.store.keys import open_key


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The journal in numbers, and what a running daemon says of its models.

    ``captures`` by state, ``readings`` by triage, ``read`` by status; ``models``: what serves, on what, and whether a better
    engine is being built (``building``: which one) or waits to be (``unbuilt``). ``written_bytes_by_day``: to the disk,
    besides captures, on the last seven days that wrote anything.
    """

    device: str
    state_folder: str
    captures: dict[str, int]
    readings: dict[str, int]
    read: dict[str, int]
    waiting_messages: int
    waiting_transfers: int
    waiting_bytes: int
    reviewed: int
    set_aside: int
    sent_bytes: int
    written_bytes_by_day: dict[str, int]
    running: bool
    models: tuple[str, ...] = ()
    building: str = ""
    model_problems: tuple[str, ...] = ()


_SERVING = "serving.json"


def say_serving(state: Path, described: Described) -> None:
    """Leave word for ``state_of`` of what serves in the running daemon; raises ``OSError``."""
    new = state / f".{_SERVING}.part"
    new.write_bytes(msgspec.json.encode(described))
    new.replace(state / _SERVING)


def serving_of(config: Config) -> Described:
    """What a daemon said last; nothing when none did."""
    try:
        return msgspec.json.decode((config.state / _SERVING).read_bytes(), type=Described)
    except (OSError, msgspec.MsgspecError):
        return Described(serving=(), problems=())


def state_of(config: Config) -> State:
    """The present state; raises ``StoreError`` when there is no journal yet."""
    connection = _reader(config)
    running = is_running(config.state)
    said = serving_of(config) if running else Described(serving=(), problems=())
    try:

        def pairs(sql: str) -> dict[str, int]:
            return {row[0]: row[1] for row in connection.execute(sql)}

        def number(sql: str) -> int:
            return int(connection.execute(sql).fetchone()[0])

        waiting = "FROM transfer WHERE state = 'waiting'"
        return State(
            device=f"{config.device.site}/{config.device.name}",
            state_folder=config.storage.state,
            captures=pairs("SELECT state, count(*) FROM capture GROUP BY state"),
            readings=pairs("SELECT triage, count(*) FROM reading GROUP BY triage"),
            read=pairs("SELECT status, count(*) FROM reading GROUP BY status"),
            waiting_messages=number("SELECT count(*) FROM outbox WHERE state = 'waiting'"),
            waiting_transfers=number(f"SELECT count(*) {waiting}") + number("SELECT count(*) FROM original"),
            waiting_bytes=number(f"SELECT coalesce(sum(size - confirmed), 0) {waiting}")
            + number("SELECT coalesce(sum(size), 0) FROM outbox WHERE state = 'waiting'"),
            reviewed=number("SELECT count(DISTINCT capture_id) FROM inbox WHERE leaf = 'review'"),
            set_aside=number("SELECT count(*) FROM capture WHERE set_aside <> ''"),
            written_bytes_by_day=pairs(
                "SELECT day, written - kept FROM usage WHERE written > 0 ORDER BY day DESC LIMIT 7"
            ),
            sent_bytes=number("SELECT coalesce(sum(bytes), 0) FROM usage"),
            running=running,
            models=tuple(_words(one) for one in said.serving),
            building=said.building,
            model_problems=said.problems,
        )
    finally:
        connection.close()


def _words(one: Serving) -> str:
    better = {"building": ", a better engine is being built", "unbuilt": ", a better engine is to be built"}
    return f"{one.bundle} {one.version} on {one.engine.provider}{better.get(one.state, '')}"


def audit_of(config: Config) -> tuple[list[dict[str, Any]], Verdict]:
    """The audit log's entries, oldest first, and whether they are as they were written; raises ``StoreError``."""
    connection = _reader(config)
    try:
        key = open_key(config.state, RealFiles())
        identity = identity_of(config.state, key)
        connection.execute("BEGIN")
        rows = connection.execute("SELECT * FROM audit ORDER BY sequence").fetchall()
        checkpoints = connection.execute("SELECT * FROM checkpoint ORDER BY sequence").fetchall()
        head = audit.head_of(connection)
    except IdentityError as error:
        raise StoreError(str(error)) from error
    except sqlite3.Error as error:
        raise StoreError(
            f"{config.state}: {error}; start the daemon once: it brings an older journal up to date"
        ) from error
    finally:
        connection.close()
    public = {identity.signer.public, *identity.former} if identity is not None else None
    return [dict(row) for row in rows], audit.judge(rows, head, checkpoints, key.blind, public)


def _reader(config: Config) -> sqlite3.Connection:
    path = config.state / "journal.sqlite"
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
        connection.row_factory = sqlite3.Row
        connection.execute("SELECT 1 FROM capture LIMIT 1")
    except sqlite3.Error as error:
        raise StoreError(
            f"{path}: {error}; start the daemon once with: bedside run --config FILE, or name its configuration"
        ) from error
    return connection
