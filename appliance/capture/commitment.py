"""Storage Commitment, push model (SCP): says which instances are safe here, after having looked.

What this module keeps true: a request is durable before it is accepted; an instance is called committed only if its row is in
the journal and the blob in the vault has been read and has the hash of the row, at the time of the report; the report is
offered until the sender has taken it, over any number of restarts. To a sender with an address in ``dicom.peers`` the box opens
an association of its own; to others it reports on the association of the request, or on the next one that they open.

PS3.4, annex J; event types and failure reasons J.3.3 and PS3.3, C.14.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import structlog
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode

from appliance.capture import dicom_tls
from appliance.capture.dicom_service import SYNTAXES, Count, failure, title_of
from appliance.capture.dimse_stream import Dimse
from appliance.capture.elements import Elements
from appliance.config import DicomConfig
from appliance.store.commitments import Reference, Request, Verdict, Waiting
from appliance.store.errors import IllegalTransition, StoreError
from appliance.store.store import Store

PUSH_MODEL, PUSH_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
ALL_COMMITTED, SOME_FAILED = 1, 2
MOST = 20_000
ATTEMPTS = 100
STATUSES: dict[int, str] = {
    0x0000: "the request is kept; its result follows",
    0x0110: "the request could not be kept",
    0x0112: "not addressed to the well-known instance",
    0x0115: "no transaction UID or no references, or the transaction UID was used before for other instances",
    0x0123: "no such action",
    0x0213: f"more than {MOST} references",
}
FAILURES: dict[int, str] = {
    0x0110: "its bytes can't be read back from the disk, or have another hash",
    0x0112: "no such instance is here (it never came, or was removed)",
    0x0119: "the instance is here, of another SOP Class",
}
_FIRST, _LONGEST = 10.0, 3600.0
_log = structlog.get_logger(__name__)


class Peer(NamedTuple):
    """Where a sender is told its results."""

    host: str
    port: int


def peers(config: DicomConfig) -> dict[str, Peer]:
    """The senders of ``dicom.peers`` by AE title."""
    found = {}
    for entry in config.peers:
        title, _, where = entry.partition("=")
        host, _, port = where.rpartition(":")
        found[title.strip()] = Peer(host, int(port))
    return found


class CommitmentService:
    """Takes requests, and reports from ``start`` to ``stop``."""

    def __init__(self, config: DicomConfig, store: Store) -> None:
        self._config = config
        self._store = store
        self._peers = peers(config)
        self._due: dict[str, float] = dict.fromkeys(self._peers, 0.0)
        self._pause: dict[str, float] = {}
        self._lock = threading.Condition()
        self._open: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
        self._asking: list[Any] = []
        self._numbers = itertools.count(1)
        self._stopping = False
        self._count: Count = lambda _: None
        self._thread = threading.Thread(target=self._run, name="commitment", daemon=True)

    @property
    def sop_classes(self) -> dict[str, str]:
        """Storage Commitment Push Model."""
        return {PUSH_MODEL: "Storage Commitment Push Model"}

    def handlers(self, count: Count) -> list[tuple[Any, Callable[[Any], Any]]]:
        """For N-ACTION, and for senders that come back for their results."""
        self._count = count
        return [(evt.EVT_N_ACTION, self._asked), (evt.EVT_ESTABLISHED, self._came_back)]

    def start(self) -> None:
        """Begin to report what waits."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was not taken waits for the next start."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()

    def _asked(self, event: Any) -> tuple[int | Dataset, None]:
        self._count("commitment")
        action = event.request
        if action.ActionTypeID != 1:
            return 0x0123, None
        if action.RequestedSOPInstanceUID != PUSH_INSTANCE:
            return 0x0112, None
        asked = Elements(event.action_information)
        named = asked.items(0x00081199)
        references = tuple(
            Reference(sop_class_uid=item.uid(0x00081150), instance_uid=item.uid(0x00081155)) for item in named[:MOST]
        )
        request = Request(requester=title_of(event.assoc), transaction_uid=asked.uid(0x00081195), references=references)
        if len(named) > MOST:
            return failure(0x0213, f"more than {MOST} references: ask in parts"), None
        if not request.transaction_uid or not references:
            return failure(0x0115, "no transaction UID or no references"), None
        wall = self._store.now().wall
        try:
            self._store.journal.write(lambda tx: self._store.commitments.ask(tx, request, wall))
        except IllegalTransition as error:
            return failure(0x0115, str(error)), None
        except StoreError as error:
            return failure(0x0110, str(error)), None
        with self._lock:
            if request.requester in self._peers:
                self._due[request.requester] = 0.0
            else:
                self._asking.append(event.assoc)
            self._lock.notify_all()
        return 0x0000, None

    def _came_back(self, event: Any) -> None:
        if any(context.abstract_syntax == PUSH_MODEL for context in event.assoc.accepted_contexts):
            with self._lock:
                if title_of(event.assoc) not in self._peers:
                    self._asking.append(event.assoc)
                    self._lock.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                wait = min(self._due.values(), default=time.monotonic() + _LONGEST) - time.monotonic()
                if not self._asking and not self._stopping and wait > 0:
                    self._lock.wait(wait)
                if self._stopping:
                    return
                associations, self._asking = self._asking, []
                now = time.monotonic()
                due = [title for title, when in self._due.items() if when <= now]
            try:
                for association in associations:
                    self._report_on(association)
                for title in due:
                    self._report_to(title)
            except Exception as error:  # noqa: BLE001 - the edge of this thread: one odd peer must not end the reporting
                self._count("commitment-errors")
                _log.error("storage commitment", cause=type(error).__name__)
                with self._lock:
                    self._due.update(dict.fromkeys(due, time.monotonic() + _FIRST))

    def _report_on(self, association: Any) -> None:
        """Offer what waits for this sender on an association that it opened."""
        if not isinstance(
            association.dimse, Dimse
        ):  # without the stream's internals only peers with an address are told
            return
        context = next((one for one in association.accepted_contexts if one.abstract_syntax == PUSH_MODEL), None)
        if context is None:
            return
        offered = self._open.setdefault(association, set())
        for waiting in self._store.commitments.waiting(title_of(association)):
            if waiting.id in offered or not association.is_established:
                continue
            offered.add(waiting.id)
            event_type, information = self._result(waiting.request)
            report = N_EVENT_REPORT()
            report.MessageID = next(self._numbers) % 0xFFFF + 1
            report.AffectedSOPClassUID, report.AffectedSOPInstanceUID = PUSH_MODEL, PUSH_INSTANCE
            report.EventTypeID = event_type
            syntax = context.transfer_syntax[0]
            report.EventInformation = BytesIO(
                encode(information, syntax.is_implicit_VR, syntax.is_little_endian) or b""
            )
            association.dimse.report(report, context.context_id, partial(self._answered, waiting))

    def _report_to(self, title: str) -> None:
        """Offer what waits for a sender with an address, on an association of the box's own."""
        waiting = self._store.commitments.waiting(title)
        told = not waiting or self._tell(title, waiting)
        with self._lock:
            if told:
                self._pause.pop(title, None)
                self._due[title] = time.monotonic() + _LONGEST
            else:
                pause = self._pause[title] = min(2 * self._pause.get(title, _FIRST / 2), _LONGEST)
                self._due[title] = time.monotonic() + pause

    def _tell(self, title: str, waiting: list[Waiting]) -> bool:
        """Report to a sender; whether it has taken everything."""
        peer, now = self._peers[title], self._store.now()
        ae = AE(self._config.ae_title)
        ae.connection_timeout, ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = 10, 15, 30, 60
        ae.add_requested_context(PUSH_MODEL, list(SYNTAXES))
        tls = (dicom_tls.client_context(self._config, now), peer.host) if self._config.tls else None
        roles = [build_role(PUSH_MODEL, scu_role=False, scp_role=True)]
        association = ae.associate(peer.host, peer.port, ae_title=title, ext_neg=roles, tls_args=tls)
        taken = 0
        try:
            for one in waiting:
                if not association.is_established or not association.accepted_contexts:
                    break
                event_type, information = self._result(one.request)
                status, _ = association.send_n_event_report(information, event_type, PUSH_MODEL, PUSH_INSTANCE)
                taken += self._answered(one, status.get("Status", 0x0110))
        finally:
            if association.is_established:
                association.release()
        for one in waiting if not association.accepted_contexts else ():
            self._not_taken(one)
        if taken < len(waiting):
            _log.warning("storage commitment not taken; it is offered again", peer=title, waiting=len(waiting) - taken)
        return taken == len(waiting)

    def _answered(self, waiting: Waiting, status: int) -> bool:
        """The sender's answer to a report; whether it has taken it (success or a warning)."""
        if status not in {0x0000, 0x0001, 0x0107, 0x0116}:
            self._not_taken(waiting)
            return False
        try:
            self._store.journal.write(lambda tx: self._store.commitments.reported(tx, waiting.id))
        except IllegalTransition:
            return True  # told twice at once; it has it
        self._count("commitment-reported")
        return True

    def _not_taken(self, waiting: Waiting) -> None:
        commitments = self._store.commitments
        step = commitments.given_up if waiting.attempts + 1 >= ATTEMPTS else commitments.attempted
        self._store.journal.write(lambda tx: step(tx, waiting.id))

    def _result(self, request: Request) -> tuple[int, Dataset]:
        """The event type and information for a request, as things are now."""
        return report_of(request, self._store.commitments.judge(request))


def report_of(request: Request, verdicts: list[Verdict]) -> tuple[int, Dataset]:
    """The event type and the event information of a report (PS3.4, table J.3-2)."""
    information = Dataset()
    information.TransactionUID = request.transaction_uid
    safe: list[Dataset] = []
    failed: list[Dataset] = []
    for verdict in verdicts:
        item = Dataset()
        item.ReferencedSOPClassUID = verdict.reference.sop_class_uid
        item.ReferencedSOPInstanceUID = verdict.reference.instance_uid
        if verdict.failure:
            item.FailureReason = verdict.failure
        (failed if verdict.failure else safe).append(item)
    if safe:
        information.ReferencedSOPSequence = safe
    if failed:
        information.FailedSOPSequence = failed
    return (SOME_FAILED if failed else ALL_COMMITTED), information
