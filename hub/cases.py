"""What is asked of the database for people: the worklist by urgency then waiting time, one case with its history, devices.

What this module keeps true: nothing here writes; what it returns is typed and frozen, and is at once the JSON of the
interface and what the pages show. Times leave as RFC 3339 in UTC.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from sqlalchemy import Connection, Row, func, select

from appliance.protocol.messages import Result, ReviewMessage, decode
from appliance.records import Triage
from hub import outbox, tables
from hub.arrivals import rfc3339

_capture, _result, _transfer = tables.capture.c, tables.result.c, tables.transfer.c
TRIAGES = tuple(Triage)
_DAY_MS = 86_400_000
SEARCHED = 2000

LATE_MS = {Triage.CRITICAL: 15 * 60_000, Triage.URGENT: 60 * 60_000, Triage.ROUTINE: _DAY_MS}
"""A case that has waited longer is marked as late."""

Shown = Literal["open", "reviewed", "all"]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which cases a worklist shows; what is empty does not narrow it."""

    shown: Shown = "open"
    device: str = ""
    site: str = ""
    modality: Literal["", "chest-xray", "lung-ultrasound", "heart-sound", "lung-sound", "other"] = ""
    triage: Literal["", "critical", "urgent", "routine"] = ""
    claimed: Literal["", "yes", "no"] = ""
    text: Annotated[str, Meta(max_length=100)] = ""


EVERYTHING_OPEN = Wanted()


class CaseNotFound(Exception):  # noqa: N818 - the state of things, told to who asked
    """There is no such case."""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what the interface returns."""


class CaseSummary(_Answer, frozen=True, kw_only=True):
    """A line of the worklist. ``waiting_since``: by the bedside's clock where that can be trusted, else by the hub's."""

    id: str
    device: str
    modality: str
    triage: Triage
    status: Literal["read", "not_read"]
    reason: str
    positive: list[str]
    patient_id: str
    patient_name: str
    patient_age: float | None
    patient_sex: str
    waiting_since: str
    received: str
    waiting_seconds: float
    late: bool
    escalation: int
    open: bool
    acknowledged_by: str | None
    claimed_by: str | None
    decision: str | None


class BlobPart(_Answer, frozen=True, kw_only=True):
    """An image or recording of a case, or how much of it is here."""

    kind: str
    sha256: str
    media_type: str
    encoding: str
    total: int
    durable: int
    state: str


class ReviewPart(_Answer, frozen=True, kw_only=True):
    """A review with its way back to the bedside. ``delivery``: ``waiting``, ``stored``, ``conflict`` or ``refused``."""

    review: ReviewMessage
    result_id: str
    delivery: str
    delivered: str | None
    attempts: int


class EventPart(_Answer, frozen=True, kw_only=True):
    """One line of the audit log."""

    at: str
    actor: str
    action: str
    detail: str


class Case(_Answer, frozen=True, kw_only=True):
    """Everything about one capture. ``result`` is the highest revision; ``superseded`` holds the earlier results."""

    summary: CaseSummary
    result: Result
    superseded: list[str]
    blobs: list[BlobPart]
    reviews: list[ReviewPart]
    conflicts: int
    history: list[EventPart]


def worklist(
    connection: Connection, now_ms: int, wanted: Wanted = EVERYTHING_OPEN, *, limit: int = 200
) -> list[CaseSummary]:
    """The cases by urgency, then waiting time (longest first); reviewed ones by last change.

    Text is looked for in names, numbers, findings and ids of the ``SEARCHED`` first cases.
    """
    query = select(tables.capture, _result.payload).join(tables.result, _result.id == _capture.result_id)
    if wanted.shown != "all":
        query = query.where(_capture.open.is_(wanted.shown == "open"))
    if wanted.device:
        query = query.where(_capture.device == wanted.device)
    if wanted.site:
        query = query.where(_capture.device.startswith(f"{wanted.site}/", autoescape=True))
    if wanted.modality:
        query = query.where(_capture.modality == wanted.modality)
    if wanted.triage:
        query = query.where(_capture["rank"] == Triage(wanted.triage).rank)
    if wanted.claimed:
        query = query.where(
            _capture.claimed_by.is_not(None) if wanted.claimed == "yes" else _capture.claimed_by.is_(None)
        )
    if wanted.shown == "reviewed":
        query = query.order_by(_capture.changed_ms.desc(), _capture.id)
    else:
        query = query.order_by(_capture["rank"], _capture.waiting_ms, _capture.id)
    rows = connection.execute(query.limit(SEARCHED if wanted.text else limit))
    found = (_summary(row, decode(row.payload, Result), now_ms) for row in rows)
    words = wanted.text.casefold().split()
    return list(itertools.islice((one for one in found if all(word in _words(one) for word in words)), limit))


def _words(one: CaseSummary) -> str:
    parts = (
        one.patient_name.replace("^", " "),
        one.patient_id,
        one.device,
        one.modality,
        one.reason,
        one.id,
        *one.positive,
    )
    return " ".join((*parts, one.claimed_by or "")).casefold()


def sites(connection: Connection) -> list[str]:
    """The sites that boxes are of."""
    query = select(tables.device.c.site).distinct().order_by(tables.device.c.site)
    return list(connection.execute(query).scalars())


def totals(connection: Connection, now_ms: int) -> dict[str, int]:
    """How many cases are open, by triage word, and how many were ``reviewed`` (or else closed) in the last day."""
    still = select(_capture["rank"], func.count().label("n")).where(_capture.open).group_by(_capture["rank"])
    counts = dict.fromkeys([*(t.value for t in TRIAGES), "reviewed"], 0)
    for row in connection.execute(still):
        counts[TRIAGES[row.rank].value] = row.n
    closed = select(func.count()).select_from(tables.capture).where(_capture.open.is_(False))
    counts["reviewed"] = connection.execute(closed.where(_capture.changed_ms > now_ms - _DAY_MS)).scalar_one()
    return counts


def case(connection: Connection, capture_id: str, now_ms: int) -> Case:
    """One case; raises ``CaseNotFound``."""
    query = select(tables.capture, _result.payload).join(tables.result, _result.id == _capture.result_id)
    row = connection.execute(query.where(_capture.id == capture_id)).one_or_none()
    if row is None:
        raise CaseNotFound(capture_id)
    result = decode(row.payload, Result)
    others = select(_result.id).where(_result.capture_id == capture_id, _result.id != row.result_id)
    conflicts = (
        select(func.count())
        .select_from(tables.conflict)
        .where(
            tables.conflict.c.id.in_(select(_result.id).where(_result.capture_id == capture_id).scalar_subquery()),
        )
    )
    return Case(
        summary=_summary(row, result, now_ms),
        result=result,
        superseded=list(connection.execute(others.order_by(_result.revision)).scalars()),
        blobs=_blobs(connection, capture_id),
        reviews=_reviews(connection, capture_id, row.review_id),
        conflicts=connection.execute(conflicts).scalar_one(),
        history=_history(connection, capture_id),
    )


def last_change(connection: Connection) -> str:
    """A word that changes whenever the worklist may have changed; cheap, however many cases there are."""
    words = []
    for is_open in (True, False):
        rows = select(_capture.changed_ms, _capture.id).where(_capture.open.is_(is_open))
        words.append(str(connection.execute(rows.order_by(_capture.changed_ms.desc(), _capture.id).limit(1)).first()))
    return hashlib.sha256("".join(words).encode()).hexdigest()[:16]


def has_blob(connection: Connection, sha256: str) -> bool:
    """Whether this content is here, whole."""
    return connection.execute(select(tables.blob.c.sha256).where(tables.blob.c.sha256 == sha256)).first() is not None


def stored_blob(connection: Connection, capture_id: str, kind: str) -> BlobPart | None:
    """The newest whole transfer of this kind of a case."""
    return next((b for b in _blobs(connection, capture_id) if b.kind == kind and b.state == "stored"), None)


def _summary(row: Row[Any], result: Result, now_ms: int) -> CaseSummary:
    patient = result.capture.patient
    strongest = sorted((f for f in result.findings if f.positive), key=lambda f: -f.probability)
    return CaseSummary(
        id=row.id,
        device=row.device,
        modality=row.modality,
        triage=TRIAGES[row.rank],
        status=row.status,
        reason=result.reason,
        positive=[finding.label for finding in strongest],
        patient_id=patient.id,
        patient_name=patient.name,
        patient_age=patient.age_years,
        patient_sex=patient.sex,
        waiting_since=rfc3339(row.waiting_ms),
        received=rfc3339(row.received_ms),
        waiting_seconds=max(0.0, (now_ms - row.waiting_ms) / 1000),
        late=bool(row.open) and now_ms - row.waiting_ms >= LATE_MS[TRIAGES[row.rank]],
        escalation=row.escalation,
        open=row.open,
        acknowledged_by=row.acknowledged_by,
        claimed_by=row.claimed_by,
        decision=row.decision,
    )


def _blobs(connection: Connection, capture_id: str) -> list[BlobPart]:
    query = select(tables.transfer).where(_transfer.capture_id == capture_id).order_by(_transfer.created_ms.desc())
    return [
        BlobPart(
            kind=row.kind,
            sha256=row.original or row.sha256,
            media_type=row.media_type,
            encoding="" if row.original else row.encoding,
            total=row.total,
            durable=row.durable,
            state=row.state,
        )
        for row in connection.execute(query)
    ]


def _reviews(connection: Connection, capture_id: str, last: str | None) -> list[ReviewPart]:
    """The last first; each names the one before it."""
    query = select(tables.review).where(tables.review.c.capture_id == capture_id)
    rows = {row.id: row for row in connection.execute(query)}
    sent = outbox.delivery(connection, list(rows))
    parts = []
    while last is not None:
        row = rows[last]
        closed_ms, outcome, attempts = sent.get(row.id, (None, None, 0))
        parts.append(
            ReviewPart(
                review=decode(row.payload, ReviewMessage),
                result_id=row.result_id,
                delivery=outcome or "waiting",
                delivered=rfc3339(closed_ms) if closed_ms else None,
                attempts=attempts,
            )
        )
        last = row.previous
    return parts


def _history(connection: Connection, capture_id: str) -> list[EventPart]:
    event = tables.audit_event.c
    query = select(tables.audit_event).where(event.subject == capture_id).order_by(event.id.desc()).limit(50)
    return [
        EventPart(at=rfc3339(row.at_ms), actor=row.actor, action=row.action, detail=row.detail)
        for row in connection.execute(query)
    ]
