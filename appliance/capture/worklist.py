"""Asks the clinic's worklist server (Modality Worklist SCU) now and then, and keeps the answer for when it can't be reached.

What this module keeps true: an answer replaces the one before only when it came whole; whatever a server sends costs bounded
memory and time (``BYTES_MOST``, ``DEADLINE``); an entry that can't be read is left out and counted, the others are taken. It
is asked for today and tomorrow, so that a link lost over night leaves the morning's patients; without a trusted clock, for all.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import Counter
from typing import Any

import structlog
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from appliance.capture import dicom_tls
from appliance.capture.dicom_service import SYNTAXES, keep_quiet
from appliance.capture.elements import Elements
from appliance.config import DicomConfig, WorklistConfig
from appliance.records import Moment
from appliance.store.errors import StoreError
from appliance.store.store import Store
from appliance.store.worklist import ScheduledStep

WORKLIST_FIND = "1.2.840.10008.5.1.4.31"
BYTES_MOST = 16_000_000
DEADLINE = 120.0
_CONNECT, _ANSWER = 10.0, 30.0
_SEQUENCE, _PROCEDURE_CODE = 0x00400100, 0x00321064
_log = structlog.get_logger(__name__)


class WorklistError(Exception):
    """The server could not be asked, or what it said is no answer; the message names cause and remedy."""


class WorklistClient:
    """Asks from ``start`` to ``stop``, every ``refresh`` seconds and when told to."""

    def __init__(self, config: WorklistConfig, dicom: DicomConfig, store: Store) -> None:
        self._config = config
        self._dicom = dicom
        self._store = store
        self._due = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="worklist", daemon=True)
        self.counts: Counter[str] = Counter()

    def start(self) -> None:
        """Begin to ask."""
        keep_quiet()
        self._due.set()
        self._thread.start()

    def stop(self) -> None:
        """End; a question under way is broken off within its time limits, and not waited for."""
        self._stopping = True
        self._due.set()

    def ask_soon(self) -> None:
        """Ask now, without waiting for the answer."""
        self._due.set()

    def ask(self) -> int:
        """Ask, and keep the answer; the number of its entries. Raises ``WorklistError``, which is noted with the old answer."""
        store, moment = self._store, self._store.now()
        try:
            steps, cut = self._question(moment)
        except WorklistError as error:
            reason = str(error)
            store.journal.write(lambda tx: store.worklist.failed(tx, reason))
            raise
        problem = f"the server has more than {self._config.most} entries; narrow it down or raise worklist.most"
        taken = store.now()
        store.journal.write(lambda tx: store.worklist.replace(tx, steps, taken, problem if cut else ""))
        return len(steps)

    def _run(self) -> None:
        while True:
            self._due.wait(self._config.refresh)
            self._due.clear()
            if self._stopping:
                return
            try:
                self.counts["entries"] = self.ask()
                self.counts["answers"] += 1
            except (WorklistError, StoreError) as error:
                self.counts["failed"] += 1
                if not self._stopping:
                    _log.warning("worklist not renewed; the last answer serves on", cause=str(error))
            except Exception as error:  # noqa: BLE001 - the edge of this thread: an odd answer must not end the asking
                self.counts["errors"] += 1
                _log.error("worklist", cause=type(error).__name__)

    def _question(self, moment: Moment) -> tuple[list[ScheduledStep], bool]:
        """The entries of an answer, and whether there were more than are taken."""
        association = self._associate(moment)
        steps: list[ScheduledStep] = []
        deadline = time.monotonic() + DEADLINE
        whole = cut = False
        try:
            for status, entry in association.send_c_find(query(self._config, moment), WORKLIST_FIND):
                code = status.get("Status")
                if code is None:
                    break
                if code not in {0xFF00, 0xFF01}:
                    if code != 0x0000:
                        comment = Elements(status).text(0x00000902)
                        raise WorklistError(f"the worklist server refused (status {code:04X}) {comment}".strip())
                    whole = True
                    break
                self._take(entry, steps)
                cut = len(steps) >= self._config.most
                if cut or time.monotonic() > deadline:
                    break
        finally:
            if association.is_established and whole:
                association.release()
            else:
                association.abort()
        if not (whole or cut):
            raise WorklistError("the worklist server's answer broke off; it is asked again")
        return steps, cut

    def _associate(self, moment: Moment) -> Any:
        config = self._config
        ae = AE(self._dicom.ae_title)
        ae.connection_timeout, ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = (
            _CONNECT,
            _CONNECT,
            _ANSWER,
            _ANSWER,
        )
        ae.add_requested_context(WORKLIST_FIND, list(SYNTAXES))
        came = 0

        def limit(event: Any) -> None:
            nonlocal came
            came += len(event.data)
            if came > BYTES_MOST:
                event.assoc.dul.socket.close()

        try:
            tls = (dicom_tls.client_context(self._dicom, moment), config.host) if config.tls else None
        except OSError as error:
            raise WorklistError(f"dicom.ca_file, certificate_file or key_file can't be used: {error}") from error
        where = f"{config.host}:{config.port}"
        association = ae.associate(
            config.host,
            config.port,
            ae_title=config.ae_title,
            tls_args=tls,
            evt_handlers=[(evt.EVT_DATA_RECV, limit)],
        )
        if association.is_rejected:
            raise WorklistError(f"the worklist server {where} rejects {self._dicom.ae_title}: enter it there")
        if association.rejected_contexts:
            raise WorklistError(f"{where} offers no worklist: look at worklist.host, port and ae_title")
        if not association.is_established:
            raise WorklistError(f"the worklist server {where} can't be reached: look at cable, worklist.host and port")
        return association

    def _take(self, entry: Dataset | None, steps: list[ScheduledStep]) -> None:
        if entry is None:
            self.counts["unreadable"] += 1
            return
        found = scheduled_steps(entry)
        if not found:
            self.counts["nameless"] += 1
        steps += found


def query(config: WorklistConfig, now: Moment) -> Dataset:
    """The question: what is returned, and only what is scheduled for the configured station and modality, these two days."""
    keys, step = Dataset(), Dataset()
    for keyword in (
        *("AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID", "IssuerOfPatientID"),
        *(
            "PatientBirthDate",
            "PatientSex",
            "StudyInstanceUID",
            "RequestedProcedureDescription",
            "RequestedProcedureID",
        ),
    ):
        setattr(keys, keyword, "")
    keys.RequestedProcedureCodeSequence = []
    for keyword in (
        *("ScheduledStationName", "ScheduledProcedureStepStartTime", "ScheduledPerformingPhysicianName"),
        *("ScheduledProcedureStepDescription", "ScheduledProcedureStepID"),
    ):
        setattr(step, keyword, "")
    step.Modality, step.ScheduledStationAETitle = config.modality, config.station_ae_title
    step.ScheduledProcedureStepStartDate = ""
    if now.uncertainty_s is not None:
        today = local(now)
        step.ScheduledProcedureStepStartDate = f"{today:%Y%m%d}-{today + dt.timedelta(days=1):%Y%m%d}"
    keys.ScheduledProcedureStepSequence = [step]
    return keys


def local(moment: Moment) -> dt.datetime:
    """The wall time of a moment where the box stands."""
    return dt.datetime.fromisoformat(moment.wall.replace("Z", "+00:00")).astimezone()


def scheduled_steps(entry: Dataset) -> list[ScheduledStep]:
    """What an entry of an answer schedules; none when it names no patient."""
    top = Elements(entry)
    patient = top.patient()
    if not patient.id and not patient.name:
        return []
    meanings = [code.text(0x00080104) for code in top.items(_PROCEDURE_CODE)]
    return [
        ScheduledStep(
            patient=patient,
            accession_number=top.text(0x00080050),
            procedure=top.text(0x00321060) or next(iter(meanings), ""),
            procedure_id=top.text(0x00401001),
            study_uid=top.uid(0x0020000D),
            referrer=top.text(0x00080090),
            step=step.text(0x00400007),
            step_id=step.text(0x00400009),
            modality=step.text(0x00080060).upper(),
            station_ae_title=step.text(0x00400001),
            station=step.text(0x00400010),
            date=_digits(step.text(0x00400002), 8),
            time=_digits(step.text(0x00400003), 6),
            performer=step.text(0x00400006),
        )
        for step in top.items(_SEQUENCE)[:20] or [Elements(Dataset())]
    ]


def _digits(text: str, most: int) -> str:
    """A date or time without the punctuation of old or careless writers; empty when it is none."""
    digits = (
        text.partition("+")[0].replace(":", "").replace(".", "" if most == 8 else " ").replace("-", "").split(" ")[0]
    )
    return digits[:most] if digits.isascii() and digits.isdigit() else ""
