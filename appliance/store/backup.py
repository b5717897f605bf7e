"""Copies of the journal, for the day its file is damaged on a disk that is still good.

What this module keeps true: a copy has its name only once it is complete, checked (``integrity_check``) and durable; it is
taken beside a running daemon without stopping it; what is sealed in the journal is sealed in the copy, and the box key is
never copied, so that a copy alone tells nobody anything.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from appliance.store.errors import StoreError
from appliance.store.files import sync_folder

_PREFIX, _SUFFIX = "journal-", ".sqlite"


class Backup(NamedTuple):
    """A copy: where, how many bytes, how many captures it knows."""

    path: Path
    size: int
    captures: int


def backup(state: Path, folder: Path, keep: int) -> Backup:
    """Copy the journal of ``state`` into ``folder``; the newest ``keep`` copies stay. Raises ``StoreError``, ``OSError``."""
    source = state / "journal.sqlite"
    if not source.exists():
        raise StoreError(f"{state}: nothing was ever kept here; name the daemon's configuration with --config")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".journal.part"
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        captures = _copied(source, part)
        number = 1 + max((_number(path) for path in _copies(folder)), default=0)
        target = folder / f"{_PREFIX}{number:06}{_SUFFIX}"
        part.replace(target)
    except sqlite3.Error as error:
        raise StoreError(f"the journal could not be copied ({error}); what was copied before is as it was") from error
    finally:
        part.unlink(missing_ok=True)
    sync_folder(folder)
    for path in _copies(folder)[:-keep]:
        path.unlink()
    return Backup(target, target.stat().st_size, captures)


def _copied(source: Path, part: Path) -> int:
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30)) as journal,
        contextlib.closing(sqlite3.connect(part)) as copy,
    ):
        journal.backup(copy, pages=256, sleep=0.01)
        copy.execute("PRAGMA journal_mode=DELETE")
        found = copy.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            raise StoreError(f"the journal is damaged ({found}); keep the copies there are and run bedside doctor")
        captures: int = copy.execute("SELECT count(*) FROM capture").fetchone()[0]
    with part.open("rb") as file:
        os.fsync(file.fileno())
    return captures


def _copies(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}[0-9]*{_SUFFIX}"), key=_number)


def _number(path: Path) -> int:
    digits = path.name[len(_PREFIX) : -len(_SUFFIX)]
    return int(digits) if digits.isdecimal() else 0
