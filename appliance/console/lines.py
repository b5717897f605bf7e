"""What the console knows of a capture, gathered from the store: one ``Line`` for the list, the same for the page.

What this module keeps true: it only reads. A capture that can't be unsealed is shown as damaged, with what to do, and hides
no other. Whether a human has seen a capture comes from what the hub said (reviews, acknowledgements), never from delivery.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from appliance.protocol.messages import Command, ReviewMessage
from appliance.records import Capture, CaptureState, Modality, Moment, Patient, Reading, Record, Triage
from appliance.store.attachments import within
from appliance.store.captures import Entry
from appliance.store.errors import Damaged, StoreError
from appliance.store.store import Store

Level = Literal["critical", "urgent", "routine", "not-read", "reading", "damaged"]
Delivery = Literal["waiting", "sending", "delivered", "refused"]
Human = Literal["none", "noted", "accept", "modify", "reject"]

WAITING_KNOWN = 20_000
"""So many waiting messages are looked through for a result; beyond, a capture counts as waiting."""


class Found(Record, frozen=True, kw_only=True):
    """A positive finding for the list: its label, probability and confidence in a word."""

    label: str
    probability: float
    confidence: Literal["low", "moderate", "high"]
    experimental: bool = False


class Line(Record, frozen=True, kw_only=True):
    """One capture at a glance.

    ``level``: the triage of a reading, or why there is none. ``delivery``: where the result is; ``sent_share``: of the
    capture's pictures and sounds, what the hub holds (0 to 1). ``human``: the latest word. ``unseen``: critical, and no
    human has said that it was seen; ``escalated``: the hub or this box shows it again, and nobody has taken note since.
    ``visit``: the one that a person attached it to, whose patient is shown; empty while it waits for that, with whom the
    sender named. ``contradictions``: why ``conflicts_with`` is set, by code. ``word``: how often somebody has said whose it is.
    """

    id: str
    modality: Modality
    received: Moment
    state: CaptureState
    level: Level
    patient_id: str = ""
    patient_name: str = ""
    age_years: float | None = None
    age_until: float | None = None
    sex: str = ""
    view: str = ""
    position: str = ""
    description: str = ""
    positive: tuple[Found, ...] = ()
    reason: str = ""
    delivery: Delivery = "waiting"
    delivery_problem: str = ""
    sent_share: float = 0.0
    human: Human = "none"
    reviewer: str = ""
    unseen: bool = False
    escalated: bool = False
    conflicts_with: str = ""
    contradictions: tuple[str, ...] = ()
    visit: str = ""
    word: int = 0


class Whole(NamedTuple):
    """Everything of one capture."""

    entry: Entry
    line: Line
    reading: Reading | None
    reviews: list[ReviewMessage]
    commands: list[Command]


class Gatherer:
    """Reads what several lines share (what waits, what was refused) once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        waiting = store.outbox.waiting(WAITING_KNOWN)
        self._results_waiting = {item.capture_id for item in waiting if item.leaf == "result"}
        self._all_known = len(waiting) < WAITING_KNOWN
        self._refused = {row["capture_id"]: row["reason"] or row["state"] for row in store.outbox.set_aside()}

    def whole(self, entry: Entry) -> Whole:
        """Everything of a capture; raises ``StoreError`` when a record of it can't be read."""
        capture = entry.capture
        reading = reading_of(self._store, entry)
        reviews = self._store.inbox.reviews(capture.id)
        commands = self._store.inbox.commands(capture.id)
        return Whole(entry, self._line(entry, reading, reviews, commands), reading, reviews, commands)

    def line(self, entry: Entry) -> Line:
        """The line of a capture; one that says so when a record of it can't be read."""
        try:
            return self.whole(entry).line
        except StoreError as error:
            return _plain(entry, "damaged", reason=str(error))

    def _line(
        self, entry: Entry, reading: Reading | None, reviews: list[ReviewMessage], commands: list[Command]
    ) -> Line:
        capture = entry.capture
        level: Level = "not-read" if reading is None and entry.set_aside else _level(reading)
        noted, escalated = _commands(commands)
        latest = reviews[-1] if reviews else None
        word = self._store.attachments.current(capture.id)
        visit = self._store.patients.visit(word.visit) if word is not None and word.visit else None
        delivery, share = self._delivery(entry)
        problem = self._refused.get(capture.id, "")
        return _plain(
            entry,
            level,
            whom=within(capture, visit, word).patient,
            visit="" if visit is None else visit.id,
            word=0 if word is None else word.revision,
            reason=_reason(entry, reading),
            positive=tuple(_found(reading)),
            delivery="refused" if problem and delivery != "delivered" else delivery,
            delivery_problem=problem,
            sent_share=share,
            human=latest.decision if latest else "noted" if noted else "none",
            reviewer=latest.reviewer if latest else "",
            unseen=level == "critical" and latest is None and not noted,
            escalated=latest is None and (escalated or (entry.raised > 0 and not noted)),
        )

    def _delivery(self, entry: Entry) -> tuple[Delivery, float]:
        if entry.state is CaptureState.DELIVERED:
            return "delivered", 1.0
        here = entry.capture.id in self._results_waiting or not self._all_known
        if entry.state is not CaptureState.REPORTED or (here and not self._told(entry)):
            return "waiting", 0.0
        transfers = self._store.transfers.of_capture(entry.capture.id)
        size = sum(transfer.size for transfer, _ in transfers)
        return "sending", sum(transfer.confirmed for transfer, _ in transfers) / size if size else 1.0

    def _told(self, entry: Entry) -> bool:
        """Whether the hub has a result of it already, though another waits that says whose it is."""
        told = "SELECT 1 FROM outbox WHERE capture_id = ? AND leaf = 'result' AND state = 'delivered'"
        return self._store.journal.one(told, entry.capture.id) is not None


def reading_of(store: Store, entry: Entry) -> Reading | None:
    """The reading of a capture; raises ``Damaged`` where there was one that can't be unsealed."""
    reading = store.captures.reading(entry.capture.id)
    if reading is None and entry.state not in (CaptureState.KEPT, CaptureState.CHECKED):
        raise Damaged(f"the reading of capture {entry.capture.id} can't be unsealed; it was changed on disk")
    return reading


def _plain(entry: Entry, level: Level, whom: Patient | None = None, **rest: object) -> Line:
    capture: Capture = entry.capture
    patient = whom or capture.patient
    return Line(
        id=capture.id,
        modality=capture.modality,
        received=capture.received,
        state=entry.state,
        level=level,
        patient_id=patient.id,
        patient_name=person(patient.name),
        age_years=patient.age_years,
        age_until=patient.age_until,
        sex=patient.sex,
        view=capture.view,
        position=capture.position,
        description=capture.description,
        conflicts_with=entry.conflicts_with,
        contradictions=entry.reasons,
        **rest,  # type: ignore[arg-type]  # the fields that the callers above name
    )


def person(name: str) -> str:
    """A DICOM person name (PS3.5 6.2.1: family^given^middle^prefix^suffix) as people write it: given before family."""
    family, _, rest = name.split("=", maxsplit=1)[0].partition("^")
    given = " ".join(part for part in rest.split("^")[:2] if part.strip())
    return " ".join(part for part in (given.strip(), family.strip()) if part)


def _level(reading: Reading | None) -> Level:
    if reading is None:
        return "reading"
    if reading.status == "not_read":
        return "not-read"
    levels: dict[Triage, Level] = {
        Triage.CRITICAL: "critical",
        Triage.URGENT: "urgent",
        Triage.ROUTINE: "routine",
    }
    return levels[reading.triage]


def _reason(entry: Entry, reading: Reading | None) -> str:
    if reading is not None and reading.refusal is not None:
        return reading.refusal.reason
    return entry.set_aside


def _found(reading: Reading | None) -> Iterable[Found]:
    if reading is None:
        return
    for finding in sorted(reading.findings, key=lambda one: (one.experimental, -one.probability)):
        if finding.positive:
            yield Found(
                label=finding.label,
                probability=finding.probability,
                confidence=finding.confidence,
                experimental=finding.experimental,
            )


def _commands(commands: list[Command]) -> tuple[bool, bool]:
    """Whether a human took note, and whether it was escalated after that."""
    kinds = [command.kind for command in commands if command.kind in {"acknowledged", "escalate"}]
    return "acknowledged" in kinds, bool(kinds) and kinds[-1] == "escalate"
