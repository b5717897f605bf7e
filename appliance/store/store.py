"""The store as a whole: opened once, repaired at start, closed at the end.

What this module keeps true: two programs never have the same state folder open (an advisory lock); after ``open_store``
everything that had been acknowledged is there and everything half done is either finished, removed or reported.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from appliance.config import StorageConfig
from appliance.records import Moment
from appliance.store import audit
from appliance.store.attachments import Attachments
from appliance.store.captures import Captures
from appliance.store.commitments import Commitments
from appliance.store.errors import Damaged, InUse, StoreError
from appliance.store.files import Files, RealFiles
from appliance.store.inbox import Inbox
from appliance.store.journal import Journal, Transaction
from appliance.store.keys import BoxKey, open_key
from appliance.store.outbox import Outbox
from appliance.store.patients import Patients
from appliance.store.people import People
from appliance.store.reserve import Reserve
from appliance.store.studies import Studies
from appliance.store.transfers import Transfers
from appliance.store.vault import Vault
from appliance.store.worklist import Worklist

MB = 1 << 20


class Repair(NamedTuple):
    """What start-up found and did. ``missing``: captures whose blob is gone (set aside, reported)."""

    unfinished: int
    orphans: int
    missing: tuple[str, ...]
    sequence: int

    @property
    def clean(self) -> bool:
        """Whether nothing had to be done."""
        return not (self.unfinished or self.orphans or self.missing)


class Store:
    """Everything that must survive."""

    def __init__(self, config: StorageConfig, now: Callable[[], Moment], files: Files | None = None) -> None:
        self.folder = Path(config.state)
        self.now = now
        self.files: Files = files or RealFiles()
        try:
            self.files.make_folder(self.folder)
        except OSError as error:
            raise StoreError(f"{self.folder}: {error.strerror}; make it writable or set storage.state") from error
        self._lock = lock_of(self.folder)
        self.reserve = Reserve(self.folder / "reserve", config.reserve * MB)
        self.refuse_below = config.refuse_below * MB
        try:
            self.key: BoxKey = open_key(self.folder, self.files)
            self.vault = Vault(self.folder / "vault", self.key, self.files)
            self.journal = Journal(self.folder / "journal.sqlite", self.reserve, self.key.blind)
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self.captures = Captures(self.journal, self.key)
            self.outbox = Outbox(self.journal, self.key)
            self.transfers = Transfers(self.journal)
            self.inbox = Inbox(self.journal, self.key)
            self.studies = Studies(self.journal, self.key)
            self.worklist = Worklist(self.journal, self.key)
            self.commitments = Commitments(self.journal, self.key, self._intact)
            self.people = People(self.journal, self.key)
            self.patients = Patients(self.journal, self.key)
            self.attachments = Attachments(self.journal)
            self._same_key()
            self.reserve.hold()
            self.repair = self._repair()
        except BaseException:
            self.close()
            raise

    def free(self) -> int:
        """Bytes left for captures before intake stops (negative: it has stopped)."""
        return self.files.free(self.folder) - self.refuse_below

    def note(self, event: str, subject: str, detail: str = "") -> None:
        """Write an entry to the audit log."""
        moment = self.now()
        self.journal.write(lambda tx: audit.append(tx, moment, event, subject, detail))

    def close(self) -> None:
        """Commit what was submitted and let go of the folder."""
        self.journal.close()
        os.close(self._lock)

    def _intact(self, sha256: str) -> None:
        """Raise unless the blob can be read whole and has this hash; a frame of it in memory at a time."""
        found = hashlib.sha256()
        for frame in self.vault.frames(sha256):
            found.update(frame)
        if found.hexdigest() != sha256:
            raise Damaged(f"blob {sha256[:12]}…: content has another hash; the disk may be failing")

    def _same_key(self) -> None:
        mark = self.key.blind("bedside journal")
        row = self.journal.one("SELECT value FROM meta WHERE key = 'box-key'")
        if row is not None and row["value"] != mark:
            raise StoreError(
                f"{self.folder}: the journal was sealed with another box key; put its box.key back from the backup"
            )
        if row is None:
            self.journal.write(lambda tx: tx.run("INSERT INTO meta (key, value) VALUES ('box-key', ?)", mark))

    def _repair(self) -> Repair:
        unfinished = list(self.vault.unfinished())
        for path in unfinished:
            self.files.remove(path)
        known = _hashes(
            self.journal,
            "SELECT sha256 FROM capture WHERE removed = '' UNION SELECT sha256 FROM transfer WHERE removed = 0",
        )
        going = _hashes(
            self.journal,
            "SELECT sha256 FROM capture WHERE removed <> '' UNION SELECT sha256 FROM transfer WHERE removed = 1",
        )
        there = set(self.vault.blobs())
        unknown = there - known
        for sha256 in unknown:  # on its way out, or never acknowledged: then the sender still has it
            self.vault.remove(sha256)
        orphans = unknown - going
        missing = tuple(
            row["id"]
            for row in self.journal.all(
                "SELECT id, sha256 FROM capture WHERE state <> 'delivered' AND set_aside = '' AND removed = ''"
            )
            if row["sha256"] not in there
        )
        moment = self.now()

        def mend(tx: Transaction) -> int:
            self.studies.interrupted(tx)
            for capture_id in missing:
                tx.run("UPDATE capture SET set_aside = 'its file is gone from the disk' WHERE id = ?", capture_id)
            if problem := audit.head_problem(tx):
                audit.append(tx, moment, "broken", "audit", problem)
            detail = f"unfinished={len(unfinished)} orphans={len(orphans)} missing={len(missing)}"
            audit.append(tx, moment, "start", "store", detail)
            row = tx.one("SELECT coalesce(max(sequence), 0) AS n FROM capture")
            return int(row["n"]) if row else 0

        sequence = self.journal.write(mend)
        return Repair(len(unfinished), len(orphans), missing, sequence)


def _hashes(journal: Journal, query: str) -> set[str]:
    return {row["sha256"] for row in journal.all(query)}


def lock_of(folder: Path) -> int:
    """Hold a state folder: a descriptor to be closed. Raises ``InUse``."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise InUse(f"{folder}: another program has this state folder open; stop it first") from error
    return fd
