"""A box's store for tests, and captures put into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.capture.intake import Facts, Intake
from appliance.config import StorageConfig
from appliance.records import Code, Finding, Modality, Moment, Patient, Reading, Triage
from appliance.store.captures import Kept
from appliance.store.files import Files
from appliance.store.store import Store

DEVICE = "site-1/box-1"


def now() -> Moment:
    """A moment that is always the same: order must not come from it."""
    return Moment(boot_id="boot", monotonic_ns=1, wall="2026-01-01T00:00:00.000Z", uncertainty_s=None)


def open_store(folder: Path, files: Files | None = None, **config: Any) -> Store:
    """A store in ``folder`` with small limits."""
    values = {"state": str(folder), "refuse_below": 16, "reserve": 4, **config}
    return Store(StorageConfig(**values), now, files)


def keep(store: Store, content: bytes, *, uid: str = "", patient: Patient | None = None) -> Kept:
    """Keep ``content`` through the one door."""
    with Intake(store, DEVICE).open() as incoming:
        incoming.write(content)
        return incoming.keep(
            Facts(
                modality=Modality.CHEST_XRAY,
                media_type="application/dicom",
                source="test",
                instance_uid=uid,
                patient=patient or Patient(),
            )
        )


def reading(capture_id: str, triage: Triage = Triage.ROUTINE) -> Reading:
    """A reading with one finding."""
    finding = Finding(
        id="pneumonia",
        label="lung opacity",
        code=Code(scheme="SCT", value="233604007", meaning="Pneumonia"),
        probability=0.9,
        positive=True,
        threshold=0.5,
    )
    return Reading(
        capture_id=capture_id,
        modality=Modality.CHEST_XRAY,
        status="read",
        triage=triage,
        advice="Advice for a health worker, not a diagnosis.",
        findings=(finding,),
    )


def report(store: Store, content: bytes, triage: Triage = Triage.ROUTINE, original: bytes = b"") -> str:
    """Keep, check, read and report ``content`` as the pipeline does; the capture's id."""
    from appliance.protocol import messages
    from appliance.store.outbox import Priority
    from appliance.sync.report import result_of

    kept = keep(store, content)
    entry = store.captures.get(kept.capture_id)
    said = reading(kept.capture_id, triage)
    store.journal.write(lambda tx: store.captures.checked(tx, kept.capture_id))
    store.journal.write(lambda tx: store.captures.read(tx, said, now().wall))
    payload = messages.encode(result_of(entry.capture, said, DEVICE, entry.sequence))
    blob = store.vault.put(original) if original else None

    def put(tx: Any) -> None:
        store.outbox.put(
            tx,
            message_id=messages.make_id("result", DEVICE, kept.capture_id, "0"),
            capture_id=kept.capture_id,
            leaf="result",
            priority=Priority.of("result", triage),
            sha256=messages.sha256(payload),
            payload=payload,
        )
        if blob is not None:
            store.transfers.put(
                tx,
                capture_id=kept.capture_id,
                kind="original",
                priority=Priority.of("original", triage),
                sha256=blob.sha256,
                size=blob.size,
                media_type="application/octet-stream",
            )
        store.captures.reported(tx, kept.capture_id)

    store.journal.write(put)
    return kept.capture_id
