"""Tells portable units today's patients (Modality Worklist SCP), with or without the clinic's server.

What this module keeps true: the answer comes from what is on the box, at once; each unit gets its keys back, in a character set
that it named or, where that can't say a name, one that can. What it asks and gets is never logged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import evt

from appliance.capture.dicom_service import Count
from appliance.capture.elements import Elements
from appliance.capture.facts import CHARACTER_SET, encodings_of
from appliance.capture.worklist import WORKLIST_FIND, local
from appliance.capture.worklist_match import matches
from appliance.records import Patient
from appliance.store.store import Store
from appliance.store.worklist import ScheduledStep

PENDING, UNSUPPORTED_KEYS, CANCELLED, UNABLE = 0xFF00, 0xFF01, 0xFE00, 0xC001
STATUSES: dict[int, str] = {
    PENDING: "an entry that matches",
    UNSUPPORTED_KEYS: "an entry that matches; a key was asked for that the box doesn't have",
    0x0000: "these are all",
    CANCELLED: "the unit cancelled the question",
    UNABLE: "the keys can't be read or have more than 64 KiB, or the journal can't be read",
}
KEYS_MOST = 1 << 16
"""Bytes of a question: each of its values is compared with each entry."""
_LATIN = ("ISO_IR 100", "iso8859_1")
_UTF_8 = "ISO_IR 192"

Provider = Callable[[], Iterable[ScheduledStep]]
"""Today's patients, read anew for each question."""


def todays(store: Store) -> list[ScheduledStep]:
    """The clinic's worklist as kept, from today on, and the visits that are open on this box and not already in it."""
    now = store.now()
    today = "" if now.uncertainty_s is None else f"{local(now):%Y%m%d}"
    scheduled = [step for step in store.worklist.answer().steps if not step.date or step.date >= today]
    known = {(step.patient.id, step.accession_number) for step in scheduled}
    visits = (
        _of_visit(visit.id, visit.patient, visit.accession_number, visit.procedure)
        for visit in store.patients.open_visits()
    )
    return scheduled + [step for step in visits if (step.patient.id, step.accession_number) not in known]


class WorklistService:
    """Answers C-FIND from what ``provider`` gives."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    @property
    def sop_classes(self) -> dict[str, str]:
        """Modality Worklist Information Model - FIND."""
        return {WORKLIST_FIND: "Modality Worklist Information Model - FIND"}

    def handlers(self, count: Count) -> list[tuple[Any, Callable[[Any], Any]]]:
        """For C-FIND."""

        def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
            count("worklist")
            try:
                yield from self._answers(event)
            except Exception:  # noqa: BLE001 - the edge: whatever the keys are, the unit is answered
                count("worklist-unable")
                yield UNABLE, None

        return [(evt.EVT_C_FIND, find)]

    def start(self) -> None:
        """Nothing runs beside the associations."""

    def stop(self) -> None:
        """Nothing runs beside the associations."""

    def _answers(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.request.Identifier
        if asked is not None and len(asked.getbuffer()) > KEYS_MOST:
            raise ValueError("more keys than any unit has a use for")
        keys: Dataset = event.identifier
        named = encodings_of(Elements(keys).raw(CHARACTER_SET))
        term = Elements(keys).text(CHARACTER_SET)
        for step in self._provider():
            if event.is_cancelled:
                yield CANCELLED, None
                return
            entry = entry_of(step)
            if matches(entry, keys):
                answer, complete = _returned(entry, keys)
                _spell(answer, term, named)
                yield (PENDING if complete else UNSUPPORTED_KEYS), answer


def entry_of(step: ScheduledStep) -> Dataset:
    """A scheduled step as a data set of the worklist information model (PS3.4, table K.6-1)."""
    patient = step.patient
    entry, item = Dataset(), Dataset()
    item.ScheduledStationAETitle = step.station_ae_title
    item.ScheduledProcedureStepStartDate, item.ScheduledProcedureStepStartTime = step.date, step.time
    item.Modality = step.modality
    item.ScheduledPerformingPhysicianName = step.performer
    item.ScheduledProcedureStepDescription = (step.step or step.procedure)[:64]
    item.ScheduledStationName, item.ScheduledProcedureStepLocation = step.station[:16], ""
    item.ScheduledProcedureStepID = step.step_id[:16]
    entry.ScheduledProcedureStepSequence = [item]
    entry.RequestedProcedureID, entry.RequestedProcedureDescription = step.procedure_id[:16], step.procedure[:64]
    entry.StudyInstanceUID = step.study_uid
    entry.ReferencedStudySequence, entry.RequestedProcedureCodeSequence = [], []
    entry.RequestedProcedurePriority = entry.PatientTransportArrangements = ""
    entry.AccessionNumber = step.accession_number[:16]
    entry.RequestingPhysician, entry.ReferringPhysicianName = "", step.referrer
    entry.AdmissionID = entry.CurrentPatientLocation = ""
    entry.ReferencedPatientSequence = []
    entry.PatientName, entry.PatientID, entry.IssuerOfPatientID = patient.name, patient.id, patient.issuer
    entry.PatientBirthDate, entry.PatientSex = patient.birth_date, patient.sex
    entry.PatientAge = (
        f"{int(patient.age_years):03d}Y" if patient.age_years is not None and patient.age_years >= 1 else ""
    )
    entry.PatientWeight, entry.PatientState, entry.PregnancyStatus = None, "", None
    entry.MedicalAlerts = entry.Allergies = entry.SpecialNeeds = (
        entry.ConfidentialityConstraintOnPatientDataDescription
    ) = ""
    return entry


def _of_visit(visit: str, patient: Patient, accession_number: str, procedure: str) -> ScheduledStep:
    number = int(hashlib.sha256(f"study of visit\0{visit}".encode()).hexdigest()[:32], 16)
    return ScheduledStep(
        patient=patient,
        accession_number=accession_number,
        procedure=procedure,
        procedure_id=visit[:16],
        step=procedure,
        step_id=visit[:16],
        study_uid=f"2.25.{number}",  # the same for all units that image this visit
        source="console",
    )


def _returned(entry: Dataset, keys: Dataset) -> tuple[Dataset, bool]:
    """What of the entry was asked for, and whether it has all of that."""
    answer, complete = Dataset(), True
    for key in keys:
        if key.tag == CHARACTER_SET or key.tag.element == 0:
            continue
        if key.tag not in entry:
            complete = False
        elif key.VR == "SQ" and key.value and len(key.value[0]) and entry[key.tag].value:
            parts = [_returned(item, key.value[0]) for item in entry[key.tag].value]
            complete = complete and all(one for _, one in parts)
            answer.add_new(key.tag, "SQ", [part for part, _ in parts])
        else:
            answer.add(entry[key.tag])
    return answer, complete


def _spell(answer: Dataset, term: str, named: list[str]) -> None:
    """Set the character set: none for ASCII, the unit's own if it has the letters, Latin-1 or UTF-8 otherwise."""
    texts = "".join(str(element.value) for element in answer.iterall() if element.VR != "SQ")
    if texts.isascii():
        return
    own = (term, named[0]) if term and len(named) == 1 else _LATIN
    answer.SpecificCharacterSet = next((one for one, encoding in (own, _LATIN) if _spells(encoding, texts)), _UTF_8)


def _spells(encoding: str, texts: str) -> bool:
    try:
        texts.encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return True
