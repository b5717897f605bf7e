"""Captures: their states, in order, and the only legal steps between them.

Rules, in the order of a capture's life:

1. ``keep``: the blob is durable before the row is written; the same bytes are the same capture, once. The same SOP Instance
   UID with other bytes is another capture, kept, and marked as conflicting with the first; so is one whose patient contradicts
   what was kept under the same number or study (``identity`` has the reason codes). Nothing is ever merged.
2. ``begin_attempt`` is written *before* a reading starts, so that a capture that takes the process down is counted even when
   the whole box goes down. The third failed attempt sets it aside: it is not tried again, it still goes to a human.
3. ``checked`` needs ``kept``, ``read`` needs ``checked``, ``reported`` needs ``read``, ``delivered`` needs ``reported`` and
   that nothing of the capture waits in the outbox, among the transfers or to become one.
4. A result is written once per revision; doing a step again that is already done is an ``IllegalTransition``
   for the caller to notice, and changes nothing.
5. A row that can't be unsealed disturbs no other: it is left out, counted in ``damaged`` and logged, its file stays.
6. ``read_again`` needs ``reported`` or ``delivered`` and goes back to ``kept``: for a reason that was not known before, which
   the caller writes into the audit log in the same transaction. Earlier readings stay; the newest one counts.
7. ``removed`` needs ``delivered``: the files may go once this is committed, never before. The row, its readings and its
   reviews stay; the same bytes coming again are the same capture, which the hub has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import msgspec
import structlog

from appliance.records import Capture, CaptureState, Reading, Triage
from appliance.store.errors import Damaged, IllegalTransition, StoreError
from appliance.store.identity import INSTANCE, Keys, conflict, identity
from appliance.store.journal import Reader, Row, Transaction
from appliance.store.keys import BoxKey

_log = structlog.get_logger(__name__)

ATTEMPTS = 3

_UNREAD = (CaptureState.KEPT, CaptureState.CHECKED)
_ORDER = tuple(state.value for state in CaptureState)


class Kept(NamedTuple):
    """The answer of ``keep``. ``duplicate``: these bytes were kept before. ``conflict``: same instance, other bytes.

    ``reasons``: all that it contradicts, by the codes of ``identity.REASONS``.
    """

    capture_id: str
    duplicate: bool
    conflict: bool
    reasons: tuple[str, ...] = ()


class Entry(NamedTuple):
    """A capture with where it stands.

    ``removed``: when its files went (RFC 3339), empty while they are here. ``raised``: how often it was raised because it is
    critical and nobody had taken note; 0 once somebody has. ``reasons``: why ``conflicts_with`` is set, by the codes of
    ``identity.REASONS``.
    """

    sequence: int
    capture: Capture
    state: CaptureState
    attempts: int
    set_aside: str
    conflicts_with: str
    removed: str = ""
    raised: int = 0
    reasons: tuple[str, ...] = ()


class Captures:
    """The state machine of captures in a journal."""

    def __init__(self, journal: Reader, key: BoxKey) -> None:
        self._journal = journal
        self._key = key
        self.damaged: set[str] = set()

    def keep(self, tx: Transaction, capture: Capture, urgency: int = 1) -> Kept:
        """Write the row of a capture whose blob is durable. Lower ``urgency`` is read first."""
        if tx.one("SELECT 1 FROM capture WHERE id = ?", capture.id):
            return Kept(capture.id, duplicate=True, conflict=False)
        patient = capture.patient
        keys = Keys(
            self._blind("instance", capture.instance_uid),
            self._blind("study", capture.study_uid),
            self._blind("patient", f"{patient.issuer}\0{patient.id}" if patient.id else ""),
            self._blind("identity", identity(patient)),
        )
        found = conflict(tx, keys, patient, lambda row: self._unsealed(row).patient)
        tx.insert(
            "INSERT INTO capture (id, sha256, size, modality, state, urgency, study_key, instance_key, patient_key,"
            " identity_key, conflicts_with, conflict, boot_id, monotonic_ns, wall, sealed)"
            " VALUES (?, ?, ?, ?, 'kept', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            capture.id,
            capture.sha256,
            capture.size,
            capture.modality.value,
            urgency,
            keys.study,
            keys.instance,
            keys.patient,
            keys.identity,
            found.capture_id,
            " ".join(found.reasons),
            capture.received.boot_id,
            capture.received.monotonic_ns,
            capture.received.wall,
            self._key.seal(msgspec.json.encode(capture), sealed_as(capture.id)),
        )
        return Kept(capture.id, duplicate=False, conflict=INSTANCE in found.reasons, reasons=found.reasons)

    def begin_attempt(self, tx: Transaction, capture_id: str) -> int:
        """Count an attempt at reading before it starts; returns its number, from 1."""
        row = self._need(tx, capture_id, *_UNREAD)
        if row["set_aside"] or row["attempts"] >= ATTEMPTS:
            raise IllegalTransition(f"capture {capture_id}: already tried {row['attempts']} times")
        tx.run("UPDATE capture SET attempts = attempts + 1 WHERE id = ?", capture_id)
        return int(row["attempts"]) + 1

    def take_back_attempt(self, tx: Transaction, capture_id: str) -> None:
        """Uncount an attempt that ended for a reason that isn't the capture's (the box is stopping)."""
        self._need(tx, capture_id, *_UNREAD)
        tx.run("UPDATE capture SET attempts = max(0, attempts - 1) WHERE id = ?", capture_id)

    def checked(self, tx: Transaction, capture_id: str) -> None:
        """The capture was decoded and its quality judged (or it was set aside)."""
        self._advance(tx, capture_id, CaptureState.KEPT, CaptureState.CHECKED)

    def read(self, tx: Transaction, reading: Reading, wall: str, revision: int = 0) -> None:
        """There is a reading, or the reason why there is none."""
        self._advance(tx, reading.capture_id, CaptureState.CHECKED, CaptureState.READ)
        tx.insert(
            "INSERT INTO reading (capture_id, revision, triage, status, wall, sealed) VALUES (?, ?, ?, ?, ?, ?)",
            reading.capture_id,
            revision,
            reading.triage.value,
            reading.status,
            wall,
            self._key.seal(msgspec.json.encode(reading), f"reading:{reading.capture_id}:{revision}"),
        )

    def set_aside(self, tx: Transaction, capture_id: str, reason: str) -> None:
        """Give up reading it, visibly; it is still reported to a human."""
        self._need(tx, capture_id, *_UNREAD)
        tx.run("UPDATE capture SET set_aside = ? WHERE id = ?", reason, capture_id)

    def reported(self, tx: Transaction, capture_id: str) -> None:
        """Result and transfers stand in the outbox (same transaction)."""
        if tx.one("SELECT 1 FROM outbox WHERE capture_id = ? AND leaf = 'result'", capture_id) is None:
            raise IllegalTransition(f"capture {capture_id}: reported without a result in the outbox")
        self._advance(tx, capture_id, CaptureState.READ, CaptureState.REPORTED)

    def delivered_if_complete(self, tx: Transaction, *capture_ids: str) -> list[str]:
        """Mark those delivered of which nothing waits any more; which these are."""
        marks = ", ".join("?" * len(capture_ids))
        rows = tx.all(
            f"UPDATE capture SET state = 'delivered' WHERE id IN ({marks}) AND +state = 'reported'"  # noqa: S608 - marks only
            " AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.capture_id = capture.id AND o.state <> 'delivered')"
            " AND NOT EXISTS (SELECT 1 FROM transfer t WHERE t.capture_id = capture.id AND t.state <> 'delivered')"
            " AND NOT EXISTS (SELECT 1 FROM original WHERE original.capture_id = capture.id) RETURNING id",
            *capture_ids,
        )
        return [row[0] for row in rows]

    def reopen(self, tx: Transaction, capture_id: str) -> None:
        """The hub lost what it had confirmed (restored from a backup): delivered becomes reported again."""
        self._advance(tx, capture_id, CaptureState.DELIVERED, CaptureState.REPORTED)

    def read_again(self, tx: Transaction, capture_id: str) -> None:
        """Something is known now that the reading wanted: it is read once more, with all its attempts."""
        if self._need(tx, capture_id, CaptureState.REPORTED, CaptureState.DELIVERED)["removed"]:
            raise IllegalTransition(f"capture {capture_id}: its files were removed, it can't be read again")
        tx.run("UPDATE capture SET state = 'kept', attempts = 0, set_aside = '' WHERE id = ?", capture_id)

    def removed(self, tx: Transaction, capture_id: str, wall: str) -> None:
        """The files of a delivered capture go now (``wall``: the time of it, RFC 3339)."""
        if self._need(tx, capture_id, CaptureState.DELIVERED)["removed"]:
            raise IllegalTransition(f"capture {capture_id}: its files were removed before")
        tx.run("UPDATE capture SET removed = ? WHERE id = ?", wall, capture_id)

    def raise_again(self, tx: Transaction, capture_id: str) -> None:
        """Nobody has taken note of a critical capture: count that it is raised."""
        if not tx.run(
            "UPDATE capture SET raised = raised + 1 WHERE id = ? AND state IN ('reported', 'delivered')", capture_id
        ):
            raise IllegalTransition(f"capture {capture_id}: raised before it was reported")

    def calm(self, tx: Transaction, capture_id: str) -> None:
        """Somebody has taken note."""
        tx.run("UPDATE capture SET raised = 0 WHERE id = ?", capture_id)

    def unanswered(self) -> list[Entry]:
        """Reported captures whose newest reading is critical and that nobody has reviewed here or at the hub."""
        rows = self._journal.all(
            "SELECT c.* FROM capture c JOIN reading r ON r.capture_id = c.id AND r.triage = 'critical'"
            " WHERE c.state IN ('reported', 'delivered')"
            " AND r.revision = (SELECT max(revision) FROM reading WHERE capture_id = c.id)"
            " AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.capture_id = c.id AND i.leaf = 'review')"
            " AND NOT EXISTS (SELECT 1 FROM audit a WHERE a.subject = c.id AND a.event = 'agreement') ORDER BY c.sequence"
        )
        return list(self._entries(rows))

    def raised(self) -> list[str]:
        """The captures that are raised now."""
        return [row["id"] for row in self._journal.all("SELECT id FROM capture WHERE raised > 0")]

    def removable(self) -> Iterator[Entry]:
        """Delivered captures whose files are here, in the order they came."""
        yield from self._walk("SELECT * FROM capture WHERE state = 'delivered' AND removed = '' AND sequence > ?", 0)

    def after(self, sequence: int) -> Iterator[Entry]:
        """The captures that came after one, in the order they came."""
        yield from self._walk("SELECT * FROM capture WHERE sequence > ?", sequence)

    def _walk(self, query: str, sequence: int) -> Iterator[Entry]:
        while rows := self._journal.all(f"{query} ORDER BY sequence LIMIT 50", sequence):
            yield from self._entries(rows)
            sequence = rows[-1]["sequence"]

    def next(self, states: tuple[Literal["kept", "checked", "read"], ...], limit: int = 100) -> list[str]:
        """Ids of captures in these states: those not tried before first, most urgent first, then in the order they came."""
        marks = ", ".join("?" * len(states))
        rows = self._journal.all(
            f"SELECT id FROM capture WHERE state IN ({marks}) ORDER BY attempts, urgency, sequence LIMIT ?",  # noqa: S608 - marks only
            *states,
            limit + len(self.damaged),
        )
        return [row["id"] for row in rows if row["id"] not in self.damaged][:limit]

    def get(self, capture_id: str) -> Entry:
        """One capture; raises ``StoreError`` if there is none of this id."""
        row = self._journal.one("SELECT * FROM capture WHERE id = ?", capture_id)
        if row is None:
            raise StoreError(f"no capture {capture_id!r} on this box")
        return self._entry(row)

    def latest(self, limit: int = 100) -> list[Entry]:
        """The captures that came last, newest first."""
        return list(self._entries(self._journal.all("SELECT * FROM capture ORDER BY sequence DESC LIMIT ?", limit)))

    def of_patient(self, patient_id: str, issuer: str = "") -> list[Entry]:
        """All captures of a patient, in the order they came."""
        key = self._blind("patient", f"{issuer}\0{patient_id}")
        return list(
            self._entries(self._journal.all("SELECT * FROM capture WHERE patient_key = ? ORDER BY sequence", key))
        )

    def reading(self, capture_id: str) -> Reading | None:
        """The newest reading of a capture; ``None`` also if it can't be unsealed."""
        row = self._journal.one(
            "SELECT revision, sealed FROM reading WHERE capture_id = ? ORDER BY revision DESC LIMIT 1", capture_id
        )
        if row is None:
            return None
        try:
            plain = self._key.unseal(row["sealed"], f"reading:{capture_id}:{row['revision']}")
        except Damaged as error:
            self._note(capture_id, error)
            return None
        return msgspec.json.decode(plain, type=Reading)

    def readings(self, capture_id: str) -> int:
        """How often a capture was read, which is the next reading's revision."""
        row = self._journal.one("SELECT count(*) AS n FROM reading WHERE capture_id = ?", capture_id)
        return int(row["n"]) if row else 0

    def counts(self) -> dict[str, int]:
        """How many captures stand in each state, ``set_aside`` and ``conflicts`` beside."""
        counts = dict.fromkeys(_ORDER, 0)
        for row in self._journal.all("SELECT state, count(*) AS n FROM capture GROUP BY state"):
            counts[row["state"]] = row["n"]
        sums = self._journal.one("SELECT sum(set_aside <> '') AS a, sum(conflicts_with <> '') AS c FROM capture")
        counts["set_aside"] = (sums["a"] or 0) if sums else 0
        counts["conflicts"] = (sums["c"] or 0) if sums else 0
        return counts

    def triage_counts(self) -> dict[Triage, int]:
        """The newest readings by triage level."""
        rows = self._journal.all(
            "SELECT triage, count(*) AS n FROM reading r"
            " WHERE revision = (SELECT max(revision) FROM reading WHERE capture_id = r.capture_id) GROUP BY triage"
        )
        return {Triage(row["triage"]): row["n"] for row in rows}

    def _need(self, tx: Transaction, capture_id: str, *states: CaptureState) -> Row:
        row = tx.one("SELECT * FROM capture WHERE id = ?", capture_id)
        if row is None:
            raise StoreError(f"no capture {capture_id!r} on this box")
        if row["state"] not in {state.value for state in states}:
            wanted = " or ".join(state.value for state in states)
            raise IllegalTransition(f"capture {capture_id} is {row['state']}, not {wanted}")
        return row

    def _advance(self, tx: Transaction, capture_id: str, before: CaptureState, after: CaptureState) -> None:
        self._need(tx, capture_id, before)
        tx.run("UPDATE capture SET state = ? WHERE id = ?", after.value, capture_id)

    def _entries(self, rows: Iterable[Row]) -> Iterator[Entry]:
        for row in rows:
            with contextlib.suppress(Damaged):
                yield self._entry(row)

    def _note(self, capture_id: str, error: Damaged) -> None:
        if capture_id not in self.damaged:
            self.damaged.add(capture_id)
            _log.error("a capture can't be read from the journal", capture=capture_id, reason=str(error))

    def _entry(self, row: Row) -> Entry:
        return Entry(
            sequence=row["sequence"],
            capture=self._unsealed(row),
            state=CaptureState(row["state"]),
            attempts=row["attempts"],
            set_aside=row["set_aside"],
            conflicts_with=row["conflicts_with"],
            removed=row["removed"],
            raised=row["raised"],
            reasons=tuple(row["conflict"].split()) or ((INSTANCE,) if row["conflicts_with"] else ()),
        )

    def _unsealed(self, row: Row) -> Capture:
        try:
            plain = self._key.unseal(row["sealed"], sealed_as(row["id"]))
        except Damaged as error:
            self._note(row["id"], error)
            raise
        return msgspec.json.decode(plain, type=Capture)

    def _blind(self, kind: str, text: str) -> str:
        return self._key.blind(f"{kind}:{text}") if text else ""


def sealed_as(capture_id: str) -> str:
    """The context in which a capture's record is sealed."""
    return f"capture:{capture_id}"
