"""Whether a study is complete, from what was said about it and never from when its files came.

Rules, the strongest word first:

1. The modality's performed procedure steps (MPPS) of the study: while one is in progress, so is the study; when all have ended,
   it is complete if every instance that they name was kept, and incomplete otherwise.
2. The number of instances that the objects themselves give (0020,1208).
3. How the last association that brought something of it ended: broken off, the study is incomplete; hung up in order, the
   sender has sent what it meant to send then, which is ``ended`` and no more than that.
4. Otherwise nobody knows, and that is what is answered.

A performed step begins in progress and ends completed or discontinued; after that it is never changed (PS3.4, F.7).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from appliance.records import Patient, Record
from appliance.store.errors import IllegalTransition
from appliance.store.journal import Reader, Transaction
from appliance.store.keys import BoxKey

StepState = Literal["IN PROGRESS", "COMPLETED", "DISCONTINUED"]
_COUNT_MOST = 1_000_000


class Completeness(NamedTuple):
    """``kept`` instances of ``expected`` (``None``: nobody said how many), and whose word ``state`` rests on."""

    state: Literal["complete", "incomplete", "in-progress", "ended", "unknown"]
    basis: Literal["performed-step", "count", "association", "none"]
    kept: int
    expected: int | None


class PerformedStep(Record, frozen=True, kw_only=True):
    """A modality's performed procedure step. ``attributes``: all that it said, an explicit little-endian data set."""

    uid: str
    sender: str
    state: StepState
    patient: Patient = Patient()
    study_uids: tuple[str, ...] = ()
    accession_numbers: tuple[str, ...] = ()
    modality: str = ""
    station: str = ""
    description: str = ""
    started: str = ""
    ended: str = ""
    reason: str = ""
    instances: tuple[tuple[str, str], ...] = ()
    attributes: bytes = b""


class Studies:
    """What is known about studies as wholes."""

    def __init__(self, journal: Reader, key: BoxKey) -> None:
        self._journal = journal
        self._key = key

    def arrived(self, tx: Transaction, study_uid: str, expected: int, *, by_association: bool) -> None:
        """An instance of the study is kept in this transaction; ``expected``: how many it says there are (0: it doesn't)."""
        if not study_uid:
            return
        tx.run(
            "INSERT INTO study (study_key, expected, ended) VALUES (?1, ?2, ?3) ON CONFLICT (study_key) DO UPDATE SET"
            " expected = max(expected, ?2), ended = ?3 WHERE expected < ?2 OR ended <> ?3",
            self._study(study_uid),
            min(max(0, expected), _COUNT_MOST),
            "open" if by_association else "",
        )

    def ended(self, tx: Transaction, study_uids: Iterable[str], *, in_order: bool) -> None:
        """The association that brought something of these studies is over."""
        for study_uid in study_uids:
            tx.run(
                "UPDATE study SET ended = ? WHERE study_key = ?",
                "released" if in_order else "broken",
                self._study(study_uid),
            )

    def interrupted(self, tx: Transaction) -> int:
        """The program starts: what was open then broke off. Returns of how many studies."""
        return tx.run("UPDATE study SET ended = 'broken' WHERE ended = 'open'")

    def begin(self, tx: Transaction, step: PerformedStep, wall: str) -> None:
        """A modality has begun a step; raises ``IllegalTransition`` when it is known or not in progress."""
        if step.state != "IN PROGRESS":
            raise IllegalTransition(f"a performed step begins in progress, not {step.state}")
        step_id = self._step(step.uid)
        if tx.one("SELECT 1 FROM performed_step WHERE id = ?", step_id):
            raise IllegalTransition("this performed step exists already")
        tx.insert(
            "INSERT INTO performed_step (id, state, wall, sealed) VALUES (?, ?, ?, ?)",
            step_id,
            step.state,
            wall,
            self._sealed(step, step_id),
        )
        self._relate(tx, step, step_id)

    def update(self, tx: Transaction, step: PerformedStep) -> None:
        """A modality has said more, or ended it; raises ``IllegalTransition`` unless the step is in progress."""
        step_id = self._step(step.uid)
        changed = tx.run(
            "UPDATE performed_step SET state = ?, sealed = ? WHERE id = ? AND state = 'IN PROGRESS'",
            step.state,
            self._sealed(step, step_id),
            step_id,
        )
        if not changed:
            raise IllegalTransition("the performed step has ended, or there is none of this UID")
        tx.run("DELETE FROM performed_study WHERE step_id = ?", step_id)
        tx.run("DELETE FROM performed_instance WHERE step_id = ?", step_id)
        self._relate(tx, step, step_id)

    def step(self, uid: str) -> PerformedStep | None:
        """The step of this SOP Instance UID."""
        step_id = self._step(uid)
        row = self._journal.one("SELECT sealed FROM performed_step WHERE id = ?", step_id)
        return None if row is None else self._unsealed(row["sealed"], step_id)

    def steps_of(self, study_uid: str) -> list[PerformedStep]:
        """The performed steps of a study, in the order of their ids."""
        rows = self._journal.all(
            "SELECT id, sealed FROM performed_step WHERE id IN (SELECT step_id FROM performed_study WHERE study_key = ?)"
            " ORDER BY id",
            self._study(study_uid),
        )
        return [self._unsealed(row["sealed"], row["id"]) for row in rows]

    def completeness(self, study_uid: str) -> Completeness:
        """What is known of whether the study is complete."""
        key = self._study(study_uid)
        if not study_uid:
            return Completeness("unknown", "none", 0, None)
        row = self._journal.one(
            "SELECT count(DISTINCT instance_key) AS n FROM capture WHERE study_key = ? AND study_key <> ''", key
        )
        kept = int(row["n"]) if row else 0
        steps = self._journal.all(
            "SELECT state FROM performed_step WHERE id IN (SELECT step_id FROM performed_study WHERE study_key = ?)",
            key,
        )
        if steps:
            return self._by_steps(key, kept, [step["state"] for step in steps])
        study = self._journal.one("SELECT expected, ended FROM study WHERE study_key = ?", key)
        if study is None:
            return Completeness("unknown", "none", kept, None)
        if study["expected"]:
            enough = kept >= study["expected"]
            return Completeness("complete" if enough else "incomplete", "count", kept, study["expected"])
        if not study["ended"]:
            return Completeness("unknown", "none", kept, None)
        return Completeness(_BY_ASSOCIATION[study["ended"]], "association", kept, None)

    def _by_steps(self, key: str, kept: int, states: list[str]) -> Completeness:
        row = self._journal.one(
            "SELECT count(*) AS named, coalesce(sum(EXISTS (SELECT 1 FROM capture c WHERE c.instance_key = p.instance_key"
            " AND c.instance_key <> '')), 0) AS here"
            " FROM (SELECT DISTINCT instance_key FROM performed_instance WHERE study_key = ?) p",
            key,
        )
        named, here = (int(row["named"]), int(row["here"])) if row else (0, 0)
        if "IN PROGRESS" in states:
            return Completeness("in-progress", "performed-step", kept, None)
        return Completeness("complete" if here == named else "incomplete", "performed-step", kept, named)

    def _relate(self, tx: Transaction, step: PerformedStep, step_id: str) -> None:
        for study_uid in step.study_uids:
            tx.run("INSERT OR IGNORE INTO performed_study VALUES (?, ?)", self._study(study_uid), step_id)
        for study_uid, instance_uid in step.instances:
            instance = self._key.blind(f"instance:{instance_uid}")
            tx.run(
                "INSERT OR IGNORE INTO performed_instance VALUES (?, ?, ?)", self._study(study_uid), instance, step_id
            )

    def _sealed(self, step: PerformedStep, step_id: str) -> bytes:
        return self._key.seal(msgspec.msgpack.encode(step), f"performed-step:{step_id}")

    def _unsealed(self, sealed: bytes, step_id: str) -> PerformedStep:
        plain = self._key.unseal(sealed, f"performed-step:{step_id}")
        return msgspec.msgpack.decode(plain, type=PerformedStep)

    def _study(self, study_uid: str) -> str:
        return self._key.blind(f"study:{study_uid}")

    def _step(self, uid: str) -> str:
        return self._key.blind(f"performed-step:{uid}")


_BY_ASSOCIATION: dict[str, Literal["in-progress", "ended", "incomplete"]] = {
    "open": "in-progress",
    "released": "ended",
    "broken": "incomplete",
}
