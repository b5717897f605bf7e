"""Modality Performed Procedure Step (SCP): a modality says what it is doing, and what it made when it is done.

What this module keeps true: a step is durable before it is acknowledged; it begins IN PROGRESS, ends COMPLETED or DISCONTINUED
and is never changed after that; all that the modality said is kept as it said it. PS3.4, annex F.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from typing import Any, cast

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.dsutils import encode

from appliance.capture.dicom_service import Count, failure, title_of
from appliance.capture.elements import Elements
from appliance.store.errors import IllegalTransition, StoreError
from appliance.store.store import Store
from appliance.store.studies import PerformedStep, StepState

PERFORMED_STEP = "1.2.840.10008.3.1.2.3.3"
STATUSES: dict[int, str] = {
    0x0000: "the step is in the journal",
    0x0106: "the status is none that is allowed here (N-CREATE: IN PROGRESS)",
    0x0110: "the step has ended and may no longer be updated (Error ID A710), names too many instances, or the journal failed",
    0x0111: "there is a step of this UID",
    0x0112: "there is no step of this UID",
    0x0120: "the status is missing",
}
_ENDED = 0xA710
MOST = 20_000
"""Instances of a step, counted once for each study that it was scheduled for."""
_log = structlog.get_logger(__name__)


class PerformedStepService:
    """Takes N-CREATE and N-SET."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._count: Count = lambda _: None

    @property
    def sop_classes(self) -> dict[str, str]:
        """Modality Performed Procedure Step."""
        return {PERFORMED_STEP: "Modality Performed Procedure Step"}

    def handlers(self, count: Count) -> list[tuple[Any, Callable[[Any], Any]]]:
        """For N-CREATE and N-SET."""
        self._count = count
        return [(evt.EVT_N_CREATE, self._create), (evt.EVT_N_SET, self._set)]

    def start(self) -> None:
        """Nothing runs beside the associations."""

    def stop(self) -> None:
        """Nothing runs beside the associations."""

    def _create(self, event: Any) -> tuple[int | Dataset, Dataset | None]:
        self._count("step-begun")
        attributes: Dataset = event.attribute_list
        given = event.request.AffectedSOPInstanceUID
        uid = str(given) if given else f"2.25.{uuid.uuid4().int}"
        state = Elements(attributes).text(0x00400252).upper()
        if state != "IN PROGRESS":
            return failure(0x0106 if state else 0x0120, "Performed Procedure Step Status must be IN PROGRESS"), None
        wall = self._store.now().wall
        try:
            step = step_of(uid, title_of(event.assoc), attributes)
            self._store.journal.write(lambda tx: self._store.studies.begin(tx, step, wall))
        except IllegalTransition as error:
            return failure(0x0111, str(error)), None
        except StoreError as error:
            return failure(0x0110, str(error)), None
        if given:
            return 0x0000, None
        answer = Dataset()
        answer.AffectedSOPInstanceUID = uid
        return 0x0000, answer

    def _set(self, event: Any) -> tuple[int | Dataset, None]:
        self._count("step-updated")
        studies = self._store.studies
        known = studies.step(str(event.request.RequestedSOPInstanceUID))
        if known is None:
            return failure(0x0112, "no performed procedure step of this UID"), None
        if known.state != "IN PROGRESS":
            return _no_longer(), None
        changes: Dataset = event.modification_list
        state = Elements(changes).text(0x00400252).upper()
        if state not in {"", "IN PROGRESS", "COMPLETED", "DISCONTINUED"}:
            return failure(0x0106, "Performed Procedure Step Status is none that is known"), None
        attributes = dcmread(io.BytesIO(known.attributes), force=True)
        attributes.update(changes)
        try:
            step = step_of(known.uid, known.sender, attributes)
            self._store.journal.write(lambda tx: studies.update(tx, step))
        except IllegalTransition:
            return _no_longer(), None
        except StoreError as error:
            return failure(0x0110, str(error)), None
        if step.state != "IN PROGRESS":
            _log.info("performed procedure step ended", state=step.state, instances=len(step.instances))
        return 0x0000, None


def step_of(uid: str, sender: str, attributes: Dataset) -> PerformedStep:
    """What a step's attributes say; raises ``StoreError`` when they can't be written down again."""
    encoded = encode(attributes, False, True)  # explicit VR, little endian
    if encoded is None:
        raise StoreError("the attributes can't be encoded")
    top = Elements(attributes)
    scheduled = top.items(0x00400270)
    studies = tuple(dict.fromkeys(found for item in scheduled if (found := item.uid(0x0020000D))))
    made = dict.fromkeys(
        instance
        for series in top.items(0x00400340)
        for tag in (0x00081140, 0x00400220)
        for item in series.items(tag)
        if (instance := item.uid(0x00081155))
    )
    if len(studies) * len(made) > MOST:  # a message of 4 MB can name 50,000 of each
        raise StoreError(f"more than {MOST} instances and studies; end the step with fewer")
    instances = [(study, instance) for instance in made for study in studies]
    return PerformedStep(
        uid=uid,
        sender=sender,
        state=cast("StepState", top.text(0x00400252).upper()),
        patient=top.patient(),
        study_uids=studies,
        accession_numbers=tuple(dict.fromkeys(found for item in scheduled if (found := item.text(0x00080050)))),
        modality=top.text(0x00080060),
        station=top.text(0x00400241),
        description=top.text(0x00400254),
        started=top.text(0x00400244) + top.text(0x00400245)[:6],
        ended=top.text(0x00400250) + top.text(0x00400251)[:6],
        reason=next((code.text(0x00080104) for code in top.items(0x00400281)), ""),
        instances=tuple(instances),
        attributes=bytes(encoded),
    )


def _no_longer() -> Dataset:
    answer = failure(0x0110, "Performed Procedure Step Object may no longer be updated")
    answer.ErrorID = _ENDED
    return answer
