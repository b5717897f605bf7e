"""The journal's schema and how an older journal becomes a present one.

What this module keeps true: migrations only go forward, each in one transaction, so that a power cut in the middle leaves
the version before; a journal written by a newer program is refused, not guessed at.
"""

from __future__ import annotations

import sqlite3

from appliance.store.errors import StoreError

_VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE capture (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    modality TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('kept', 'checked', 'read', 'reported', 'delivered')),
    attempts INTEGER NOT NULL DEFAULT 0,
    set_aside TEXT NOT NULL DEFAULT '',
    urgency INTEGER NOT NULL DEFAULT 1,
    study_key TEXT NOT NULL DEFAULT '',
    instance_key TEXT NOT NULL DEFAULT '',
    patient_key TEXT NOT NULL DEFAULT '',
    conflicts_with TEXT NOT NULL DEFAULT '',
    boot_id TEXT NOT NULL,
    monotonic_ns INTEGER NOT NULL,
    wall TEXT NOT NULL,
    sealed BLOB NOT NULL
) STRICT;
CREATE INDEX capture_state ON capture (state, set_aside, urgency, sequence);
CREATE INDEX capture_instance ON capture (instance_key) WHERE instance_key <> '';
CREATE INDEX capture_blob ON capture (sha256);
CREATE TABLE reading (
    capture_id TEXT NOT NULL REFERENCES capture (id),
    revision INTEGER NOT NULL,
    triage TEXT NOT NULL,
    status TEXT NOT NULL,
    wall TEXT NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (capture_id, revision)
) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    capture_id TEXT NOT NULL,
    leaf TEXT NOT NULL,
    priority INTEGER NOT NULL,
    critical INTEGER NOT NULL DEFAULT 0,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'conflict')),
    reason TEXT NOT NULL DEFAULT '',
    sealed BLOB NOT NULL
) STRICT;
CREATE INDEX outbox_waiting ON outbox (priority, sequence) WHERE state = 'waiting';
CREATE INDEX outbox_capture ON outbox (capture_id);
CREATE TABLE transfer (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    capture_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('preview', 'original')),
    priority INTEGER NOT NULL,
    critical INTEGER NOT NULL DEFAULT 0,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    encoding TEXT NOT NULL DEFAULT '',
    confirmed INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'conflict')),
    reason TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX transfer_waiting ON transfer (priority, sequence) WHERE state = 'waiting';
CREATE INDEX transfer_capture ON transfer (capture_id);
CREATE INDEX transfer_blob ON transfer (sha256);
CREATE TABLE inbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    leaf TEXT NOT NULL,
    capture_id TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    wall TEXT NOT NULL,
    conflicts INTEGER NOT NULL DEFAULT 0,
    sealed BLOB NOT NULL
) STRICT;
CREATE INDEX inbox_capture ON inbox (capture_id);
CREATE TABLE usage (
    day TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL DEFAULT 0,
    critical_bytes INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    wall TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    monotonic_ns INTEGER NOT NULL,
    event TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,
    chain TEXT NOT NULL
) STRICT;
"""

_VERSION_2 = """
ALTER TABLE capture ADD COLUMN removed TEXT NOT NULL DEFAULT '';
ALTER TABLE capture ADD COLUMN raised INTEGER NOT NULL DEFAULT 0;
ALTER TABLE transfer ADD COLUMN removed INTEGER NOT NULL DEFAULT 0;
CREATE INDEX capture_removable ON capture (sequence) WHERE state = 'delivered' AND removed = '';
CREATE INDEX transfer_spent ON transfer (sequence) WHERE encoding <> '' AND state = 'delivered' AND removed = 0;
CREATE INDEX reading_critical ON reading (capture_id) WHERE triage = 'critical';
CREATE INDEX audit_agreement ON audit (subject) WHERE event = 'agreement';
CREATE TABLE original (
    capture_id TEXT PRIMARY KEY REFERENCES capture (id),
    priority INTEGER NOT NULL,
    critical INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
"""
"""``removed``: the files are gone or going (a wall time for captures, 1 for transfers). ``raised``: how often nobody had
taken note in time. ``original``: originals that are to be sent and not yet prepared for it."""

_VERSION_3 = """
ALTER TABLE capture ADD COLUMN identity_key TEXT NOT NULL DEFAULT '';
ALTER TABLE capture ADD COLUMN conflict TEXT NOT NULL DEFAULT '';
CREATE INDEX capture_patient ON capture (patient_key, identity_key) WHERE patient_key <> '';
CREATE INDEX capture_study ON capture (study_key, patient_key) WHERE study_key <> '';
CREATE TABLE study (
    study_key TEXT PRIMARY KEY,
    expected INTEGER NOT NULL DEFAULT 0,
    ended TEXT NOT NULL DEFAULT '' CHECK (ended IN ('', 'open', 'released', 'broken'))
) STRICT, WITHOUT ROWID;
CREATE TABLE performed_step (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('IN PROGRESS', 'COMPLETED', 'DISCONTINUED')),
    wall TEXT NOT NULL,
    sealed BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE performed_study (
    study_key TEXT NOT NULL,
    step_id TEXT NOT NULL REFERENCES performed_step (id),
    PRIMARY KEY (study_key, step_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE performed_instance (
    study_key TEXT NOT NULL,
    instance_key TEXT NOT NULL,
    step_id TEXT NOT NULL REFERENCES performed_step (id),
    PRIMARY KEY (study_key, instance_key, step_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE commitment (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    requester TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'reported', 'given-up')),
    attempts INTEGER NOT NULL DEFAULT 0,
    wall TEXT NOT NULL,
    sealed BLOB NOT NULL
) STRICT;
CREATE INDEX commitment_waiting ON commitment (sequence) WHERE state = 'waiting';
CREATE TABLE scheduled (id TEXT PRIMARY KEY, sealed BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE worklist_answer (source TEXT PRIMARY KEY, taken TEXT NOT NULL, problem TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE patient (
    key TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    number_key TEXT NOT NULL,
    provisional INTEGER NOT NULL,
    sealed BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX patient_number ON patient (number_key);
CREATE TABLE visit (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    patient TEXT NOT NULL REFERENCES patient (key),
    origin TEXT NOT NULL DEFAULT '',
    open INTEGER NOT NULL DEFAULT 1,
    boot_id TEXT NOT NULL,
    monotonic_ns INTEGER NOT NULL,
    wall TEXT NOT NULL,
    sealed BLOB NOT NULL
) STRICT;
CREATE INDEX visit_open ON visit (sequence) WHERE open = 1;
CREATE INDEX visit_patient ON visit (patient, sequence);
CREATE UNIQUE INDEX visit_origin ON visit (origin) WHERE origin <> '';
CREATE TABLE attachment (
    capture_id TEXT NOT NULL REFERENCES capture (id),
    revision INTEGER NOT NULL,
    visit TEXT NOT NULL,
    by TEXT NOT NULL,
    confirmed TEXT NOT NULL,
    differs TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    monotonic_ns INTEGER NOT NULL,
    wall TEXT NOT NULL,
    PRIMARY KEY (capture_id, revision)
) STRICT, WITHOUT ROWID;
CREATE INDEX attachment_visit ON attachment (visit, capture_id);
CREATE TABLE person (
    id TEXT PRIMARY KEY,
    role TEXT NOT NULL CHECK (role IN ('nurse', 'clinician', 'administrator')),
    active INTEGER NOT NULL DEFAULT 1,
    sealed BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE checkpoint (
    sequence INTEGER PRIMARY KEY,
    payload BLOB NOT NULL,
    signature BLOB NOT NULL,
    public BLOB NOT NULL
) STRICT;
CREATE TABLE throttle (
    subject TEXT PRIMARY KEY,
    failures INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    until_ns INTEGER NOT NULL,
    pause_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE token (
    id TEXT PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('nurse', 'clinician', 'administrator')),
    by TEXT NOT NULL,
    wall TEXT NOT NULL,
    sealed BLOB NOT NULL
) STRICT, WITHOUT ROWID;
ALTER TABLE usage ADD COLUMN written INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;
"""
"""``identity_key``: name, birth date and sex, blinded; ``conflict``: why ``conflicts_with`` is set (codes of ``identity``).
``study`` and ``performed_…``: what tells whether a study is complete. ``commitment``: what a sender asked to have confirmed.
``scheduled``: the clinic's worklist as it last answered (``worklist_answer``: when). ``patient``, ``visit``, ``attachment``:
whom captures were confirmed to be of. ``person``, ``token``: who may use the console; ``throttle``: who must wait (for
``pause_ns``, again from the start in a new run of the box)."""

MIGRATIONS: tuple[str, ...] = (_VERSION_1, _VERSION_2, _VERSION_3)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the journal to the present version; raises ``StoreError`` for one from a newer program."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the journal has schema {version}, this program knows {len(MIGRATIONS)}; install the newer program again"
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version={number}; COMMIT;")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise StoreError(
                f"the journal could not be brought from schema {number - 1} to {number} ({error}); it is as it was: "
                "free space on its disk, then start again"
            ) from error
