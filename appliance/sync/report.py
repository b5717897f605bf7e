"""What the hub is told of a reading: the message, whose capture it is by now, and when it is told again.

What this module keeps true: a result is of the patient and the visit that a person confirmed, and is told in the transaction
that makes it so. What was not read because the patient's age was missing is read once more when a person has said it: once
for each such word, never for another reason, and the audit log says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from appliance.capture.facts import age_at
from appliance.protocol import messages
from appliance.protocol.messages import CapturePart, FindingPart, MeasurePart, ModelPart, OverlayPart
from appliance.reading.requests import Known, known_of
from appliance.records import Capture, CaptureState, Finding, Reading
from appliance.store import audit
from appliance.store.attachments import Attachment, within
from appliance.store.identity import REASONS
from appliance.store.journal import Transaction
from appliance.store.outbox import Priority
from appliance.store.patients import Visit
from appliance.store.store import Store

Hide = Callable[[Capture], Capture] | None
"""What a hub that must not know the patient is told of a capture; its pictures then go only cleaned."""

AGE_NEEDED = "age-needed"
"""The code of a refusal for want of an age (see ``reading.quality``)."""
READ_AGAIN = "read-again"
"""The event in the audit log."""


class Entered(NamedTuple):
    """What a result is made of; ``sequence`` is the journal's."""

    capture: Capture
    reading: Reading
    sequence: int


def report_again(store: Store, tx: Transaction, device: str, capture_id: str, hide: Hide = None) -> None:
    """A person said whose capture it is: a reported one is reported once more, in the transaction that says so.

    The hub takes it as the next revision: the same reading, of the patient and the visit that were confirmed; or another one,
    where the reading wanted an age that is known now. What has not been reported yet will be with them anyway.
    """
    entry = store.captures.get(capture_id)
    row = tx.one("SELECT state FROM capture WHERE id = ?", capture_id)
    state = CaptureState.KEPT if row is None else CaptureState(row["state"])
    reading = store.captures.reading(capture_id)
    if reading is None or state not in (CaptureState.REPORTED, CaptureState.DELIVERED):
        return
    if read_again_if_due(store, tx, entry.capture, reading):
        return
    if state is CaptureState.DELIVERED:
        store.captures.reopen(tx, capture_id)
    put_result(store, tx, device, Entered(entry.capture, reading, entry.sequence), hide)


def read_again_if_due(store: Store, tx: Transaction, capture: Capture, reading: Reading) -> bool:
    """Send a reported capture back to be read, if its reading wanted an age that a person has said since; whether it was."""
    if reading.refusal is None or reading.refusal.code != AGE_NEEDED or not store.vault.has(capture.sha256):
        return False
    if tx.one("SELECT 1 FROM capture WHERE id = ? AND removed <> ''", capture.id):
        return False  # its file goes just now
    word, visit = _confirmed(store, tx, capture.id)
    if word is None or visit is None or known_now(store, capture, tx).age_years is None:
        return False
    reason = f"the age is known now: attachment={word.revision} patient={visit.known.revision} by={word.by}"
    if tx.one("SELECT 1 FROM audit WHERE subject = ? AND event = ? AND detail = ?", capture.id, READ_AGAIN, reason):
        return False
    store.captures.read_again(tx, capture.id)
    audit.append(tx, store.now(), READ_AGAIN, capture.id, reason)
    return True


def known_now(store: Store, capture: Capture, tx: Transaction | None = None) -> Known:
    """What a reading is told of a capture: the age of the patient that a person confirmed goes before the sender's."""
    known = known_of(capture)
    _, visit = _confirmed(store, tx, capture.id)
    if visit is None:
        return known
    patient = visit.patient
    age = patient.age_years
    if age is None:
        age = age_at(patient.birth_date, capture.received.wall[:10].replace("-", ""))
    return known if age is None else msgspec.structs.replace(known, age_years=age)


def _confirmed(store: Store, tx: Transaction | None, capture_id: str) -> tuple[Attachment | None, Visit | None]:
    word = store.attachments.current(capture_id, tx)
    return word, store.patients.visit(word.visit, tx) if word is not None and word.visit else None


def put_result(store: Store, tx: Transaction, device: str, entered: Entered, hide: Hide) -> None:
    """Put the message into the outbox, as the next revision of this capture's."""
    capture, reading = entered.capture, entered.reading
    row = tx.one("SELECT count(*) AS n FROM outbox WHERE capture_id = ? AND leaf = 'result'", capture.id)
    revision = int(row["n"]) if row else 0
    word, visit = _confirmed(store, tx, capture.id)
    told = within(capture, visit, word)
    if hide is not None:
        from appliance.interop.outgoing import unquoted

        reading = unquoted(reading)
    said = msgspec.structs.replace(reading, warnings=(*reading.warnings, *cautions(store, capture)))
    result = result_of(hide(told) if hide is not None else told, said, device, entered.sequence, revision)
    payload = messages.encode(result)
    store.outbox.put(
        tx,
        message_id=result.id,
        capture_id=capture.id,
        leaf="result",
        priority=Priority.of("result", reading.triage),
        sha256=messages.sha256(payload),
        payload=payload,
    )


def cautions(store: Store, capture: Capture) -> list[str]:
    """What the radiologist should know beside the reading: whom the capture contradicts, and what of its study is missing."""
    reasons = store.captures.get(capture.id).reasons
    found = [f"Check whose this is: there is {REASONS[one]}." for one in reasons if one in REASONS]
    study = store.studies.completeness(capture.study_uid)
    if study.state == "incomplete":
        expected = f" of {study.expected}" if study.expected else ""
        found.append(
            f"The study was not complete at the bedside when this was sent: {study.kept}{expected} were there."
        )
    return found


def result_of(capture: Capture, reading: Reading, device: str, sequence: int, revision: int = 0) -> messages.Result:
    """The message that reports a reading. ``device`` is ``site/name``; ``sequence`` the journal's.

    ``revision``: how often this capture was reported before.
    """
    shared = {name: _clipped(getattr(capture, name)) for name in CapturePart.__struct_fields__}
    refusal = reading.refusal
    return messages.Result(
        id=messages.make_id("result", device, capture.id, str(revision)),
        sequence=sequence,
        revision=revision,
        capture=CapturePart(**shared),
        status=reading.status,
        triage=reading.triage,
        advice=reading.advice,
        findings=[_finding(one) for one in reading.findings],
        refusal_code=refusal.code if refusal else "",
        reason=refusal.reason if refusal else "",
        measures=[
            MeasurePart(id=one.id, label=one.label, value=round(one.value, 4), unit=one.unit)
            for one in reading.measures
        ],
        warnings=list(reading.warnings),
        model=_model(reading),
        overlay=_overlay(reading),
        milliseconds=round(reading.milliseconds, 1),
    )


def _finding(finding: Finding) -> FindingPart:
    return FindingPart(
        id=finding.id,
        label=finding.label,
        code=finding.code,
        probability=round(finding.probability, 4),
        positive=finding.positive,
        threshold=round(finding.threshold, 4),
        confidence=finding.confidence,
        experimental=finding.experimental,
    )


def _model(reading: Reading) -> ModelPart | None:
    engine = reading.engine
    if engine is None or not reading.bundle:
        return None
    return ModelPart(
        bundle=reading.bundle,
        version=reading.bundle_version,
        sha256=reading.bundle_sha256,
        engine=engine.engine,
        provider=engine.provider,
        device=engine.device[:128],
        precision=engine.precision,
        golden=engine.golden,
    )


def _overlay(reading: Reading) -> OverlayPart | None:
    if not reading.overlay:
        return None
    rows, columns = reading.overlay_shape
    return OverlayPart(
        finding=reading.overlay_finding,
        rows=rows,
        columns=columns,
        data=reading.overlay,
        box=reading.overlay_box,
    )


def _clipped(value: Any) -> Any:
    """Texts as long as the wire allows: a sender's odd header must not keep a result from being delivered."""
    return value[:128] if type(value) is str else value
