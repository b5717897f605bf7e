"""No entry of the audit log is changed, removed, put between or cut off without being found."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from appliance.protocol.signing import KeySigner
from appliance.store import atna, audit, checkpoints
from appliance.store.audit import Verdict
from appliance.store.journal import Transaction
from appliance.store.keys import BoxKey
from tests.boxes import DEVICE, now, open_store

SIGNER = KeySigner(b"\7" * 32)
FIELDS = ("wall", "boot_id", "event", "subject", "detail", "chain")


class Log:
    """A small log as a thief with the journal's file has it, and the box's verdict on it."""

    def __init__(self, path: Path, witness: Any) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._witness = witness
        self._connection.execute("BEGIN")

    def verdict(self) -> Verdict:
        rows = self._connection.execute("SELECT * FROM audit ORDER BY sequence").fetchall()
        said = self._connection.execute("SELECT * FROM checkpoint ORDER BY sequence").fetchall()
        return audit.judge(rows, audit.head_of(self._connection), said, self._witness, {SIGNER.public})

    def after(self, sql: str, *values: object) -> Verdict:
        """The verdict after a change, which is undone again."""
        self._connection.execute("SAVEPOINT change")
        self._connection.execute(sql, values)
        verdict = self.verdict()
        self._connection.execute("ROLLBACK TO change")
        return verdict

    def rows(self, table: str = "audit") -> list[sqlite3.Row]:
        return self._connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()  # noqa: S608

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    store = open_store(tmp_path)
    for number in range(6):
        store.note("kept", f"capture-{number}", "é ✓ from the X-ray")
        if number in (1, 3):
            store.journal.write(lambda tx: checkpoints.make(tx, now(), DEVICE, SIGNER, store.outbox))
    witness = store.key.blind
    store.close()
    made = Log(tmp_path / "journal.sqlite", witness)
    yield made
    made.close()


def test_a_log_as_it_was_written_is_unbroken(log: Log) -> None:
    assert log.verdict() == Verdict(7, None, "unbroken, 2 checkpoints")


def test_every_byte_of_every_entry_counts(log: Log) -> None:
    tried = 0
    for row in log.rows():
        for field in FIELDS:
            raw = str(row[field]).encode()
            for at in range(len(raw)):
                for flip in (1, 0x20):
                    changed = raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :]
                    text = changed.decode("utf-8", "replace")
                    verdict = log.after(f"UPDATE audit SET {field} = ? WHERE sequence = ?", text, row["sequence"])  # noqa: S608
                    assert verdict.broken == row["sequence"], (field, at)
                    tried += 1
        verdict = log.after("UPDATE audit SET monotonic_ns = monotonic_ns + 1 WHERE sequence = ?", row["sequence"])
        assert verdict.broken == row["sequence"]
    assert tried > 1500


def test_every_removal_and_every_length_of_cut_is_found(log: Log) -> None:
    length = len(log.rows())
    for sequence in range(1, length + 1):
        assert log.after("DELETE FROM audit WHERE sequence = ?", sequence).broken is not None
        assert log.after("DELETE FROM audit WHERE sequence >= ?", sequence).broken == sequence
    assert log.after("DELETE FROM meta WHERE key = 'audit-head'").broken is not None


def test_every_byte_of_the_head_and_of_the_checkpoints_counts(log: Log) -> None:
    head = next(str(row["value"]) for row in log.rows("meta") if row["key"] == "audit-head")
    for at in range(len(head)):
        changed = head[:at] + chr(ord(head[at]) ^ 1) + head[at + 1 :]
        assert log.after("UPDATE meta SET value = ? WHERE key = 'audit-head'", changed).broken is not None
    for row in log.rows("checkpoint"):
        for field in ("payload", "signature", "public"):
            raw = bytes(row[field])
            for at in range(len(raw)):
                changed_bytes = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
                sql = f"UPDATE checkpoint SET {field} = ? WHERE sequence = ?"  # noqa: S608
                assert log.after(sql, changed_bytes, row["sequence"]).broken == row["sequence"], (field, at)


def test_a_log_rewritten_with_the_boxs_own_key_contradicts_its_checkpoints(tmp_path: Path, log: Log) -> None:
    """Who has the box's key can make a whole new chain and head, but no checkpoint."""
    secret = BoxKey((tmp_path / "box.key").read_bytes())
    connection = log._connection
    rows = [dict(row) for row in log.rows()]
    connection.execute("DELETE FROM audit")
    rows[1]["detail"] = "nothing happened"
    transaction = Transaction(connection, secret.blind)
    connection.execute("DELETE FROM sqlite_sequence WHERE name = 'audit'")
    for row in rows:
        audit.append(transaction, now(), row["event"], row["subject"], row["detail"])
    verdict = log.verdict()
    assert verdict.broken == 3
    assert "checkpoint" in verdict.words


def test_a_log_that_was_cut_while_the_box_was_off_says_so_for_ever(tmp_path: Path, log: Log) -> None:
    log._connection.execute("DELETE FROM audit WHERE sequence >= 6")
    log._connection.execute("UPDATE sqlite_sequence SET seq = 5 WHERE name = 'audit'")
    log._connection.execute("COMMIT")
    store = open_store(tmp_path)
    store.note("kept", "capture-9")
    entries = [(row["event"], row["detail"]) for row in audit.entries(store.journal)]
    store.close()
    assert ("broken", "the log ended at entry 7, and does not now") in entries
    reopened = Log(tmp_path / "journal.sqlite", BoxKey((tmp_path / "box.key").read_bytes()).blind)
    assert reopened.verdict().broken == 6
    reopened.close()


def test_a_checkpoint_waits_for_the_hub_like_any_message(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first = store.journal.write(lambda tx: checkpoints.make(tx, now(), DEVICE, SIGNER, store.outbox))
    again = store.journal.write(lambda tx: checkpoints.make(tx, now(), DEVICE, SIGNER, store.outbox))
    store.note("kept", "one")
    second = store.journal.write(lambda tx: checkpoints.make(tx, now(), DEVICE, SIGNER, store.outbox))
    waiting = [(item.id, item.leaf) for item in store.outbox.waiting()]
    store.close()
    assert first is not None
    assert again is None, "nothing new happened"
    assert second is not None
    assert (second.previous, second.sequence) == (first.sequence, first.sequence + 1)
    assert waiting == [(first.id, "checkpoint"), (second.id, "checkpoint")]


def test_every_entry_becomes_a_dicom_audit_message() -> None:
    entry = {"sequence": 3, "wall": "2026-01-01T00:00:00.000Z", "boot_id": "b", "monotonic_ns": 1}
    for name, event in {**atna.EVENTS, 'an "odd" <event>': atna._ACTIVITY}.items():
        text = atna.message({**entry, "event": name, "subject": "a&b", "detail": "<é>"}, DEVICE)
        root = ET.fromstring(text)  # noqa: S314 - our own
        assert "\n" not in text
        said = root.find("EventIdentification/EventID")
        assert said is not None
        assert (said.get("csd-code"), said.get("codeSystemName")) == (event.code, "DCM")
        kind = root.find("EventIdentification/EventTypeCode")
        assert kind is not None
        assert kind.get("csd-code") == name
        assert root.find("AuditSourceIdentification").get("AuditSourceID") == DEVICE  # type: ignore[union-attr]
        assert re.fullmatch(r"[CRUDE]", root.find("EventIdentification").get("EventActionCode") or "")  # type: ignore[union-attr]
