"""The clinic's worklist as it last answered, kept so that it serves while the server can't be reached.

Rules: an answer replaces the one before it whole, in one transaction; a question that failed changes nothing but the reason
that is shown. What is kept of a patient is sealed. Only what changed is written: the same answer again costs one row.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from appliance.records import Moment, Patient, Record
from appliance.store.journal import Reader, Transaction
from appliance.store.keys import BoxKey

_SOURCE = "clinic"


class ScheduledStep(Record, frozen=True, kw_only=True):
    """What is planned for a patient: an entry of a modality worklist.

    Dates ``YYYYMMDD``, times ``HHMMSS``, local; all fields may be empty. ``source``: ``worklist`` (the clinic's server) or
    ``console`` (entered here).
    """

    patient: Patient = Patient()
    accession_number: str = ""
    procedure: str = ""
    procedure_id: str = ""
    study_uid: str = ""
    step: str = ""
    step_id: str = ""
    modality: str = ""
    station_ae_title: str = ""
    station: str = ""
    date: str = ""
    time: str = ""
    performer: str = ""
    referrer: str = ""
    source: str = "worklist"


class Answer(NamedTuple):
    """The last answer. ``taken``: when it came, ``None`` when none ever did; ``problem``: why there is no newer one."""

    steps: tuple[ScheduledStep, ...]
    taken: Moment | None
    problem: str


class Worklist:
    """The kept answer."""

    def __init__(self, journal: Reader, key: BoxKey) -> None:
        self._journal = journal
        self._key = key

    def replace(self, tx: Transaction, steps: Iterable[ScheduledStep], taken: Moment, problem: str = "") -> int:
        """Take a new answer (``problem``: what is wrong with it all the same); how many entries were written or removed."""
        new = {}
        for step in steps:
            encoded = msgspec.json.encode(step)
            new[self._key.blind(f"scheduled:{encoded.decode()}")] = encoded
        old = {row["id"] for row in tx.all("SELECT id FROM scheduled")}
        for name in old - new.keys():
            tx.run("DELETE FROM scheduled WHERE id = ?", name)
        for name in new.keys() - old:
            tx.insert("INSERT INTO scheduled VALUES (?, ?)", name, self._key.seal(new[name], f"scheduled:{name}"))
        self._note(tx, msgspec.json.encode(taken).decode(), problem)
        return len(old ^ new.keys())

    def failed(self, tx: Transaction, problem: str) -> None:
        """The server could not be asked: what was kept stays, and why it is not newer is shown."""
        row = tx.one("SELECT taken, problem FROM worklist_answer WHERE source = ?", _SOURCE)
        if row is None or row["problem"] != problem:
            self._note(tx, row["taken"] if row else "", problem)

    def answer(self) -> Answer:
        """What the server last said, in the order of date, time and patient."""
        row = self._journal.one("SELECT taken, problem FROM worklist_answer WHERE source = ?", _SOURCE)
        if row is None:
            return Answer((), None, "")
        steps = [
            msgspec.json.decode(self._key.unseal(one["sealed"], f"scheduled:{one['id']}"), type=ScheduledStep)
            for one in self._journal.all("SELECT id, sealed FROM scheduled")
        ]
        steps.sort(key=lambda step: (step.date, step.time, step.patient.name, step.step_id))
        taken = msgspec.json.decode(row["taken"], type=Moment) if row["taken"] else None
        return Answer(tuple(steps), taken, row["problem"])

    def _note(self, tx: Transaction, taken: str, problem: str) -> None:
        tx.run("INSERT OR REPLACE INTO worklist_answer VALUES (?, ?, ?)", _SOURCE, taken, problem[:500])


def age_s(taken: Moment, now: Moment) -> float | None:
    """How old an answer is in seconds, at most; ``None`` when no clock can tell (another run of the box, no trusted time)."""
    if taken.boot_id == now.boot_id:
        return max(0.0, (now.monotonic_ns - taken.monotonic_ns) / 1e9)
    if taken.uncertainty_s is None or now.uncertainty_s is None:
        return None
    walls = [dt.datetime.fromisoformat(moment.wall.replace("Z", "+00:00")) for moment in (taken, now)]
    return max(0.0, (walls[1] - walls[0]).total_seconds() + taken.uncertainty_s + now.uncertainty_s)
