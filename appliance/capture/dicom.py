"""The DICOM door: who may connect, what is offered, and what came of it. Storage is ``dicom_arrival``; the rest are services.

What this module keeps true: whatever is not taken is answered with its cause, or the association is rejected or aborted; each
refusal is counted by its cause; how an association ended is told to the intake. No log line holds anything of a patient.
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import structlog
from pydicom.dataset import Dataset
from pynetdicom import AE, evt, register_uid
from pynetdicom.pdu_primitives import A_RELEASE
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from appliance.capture import dicom_tls, dimse_server, dimse_stream
from appliance.capture.dicom_arrival import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    SUCCESS,
    Arrival,
    Refused,
)
from appliance.capture.dicom_service import SYNTAXES, Service, keep_quiet, title_of
from appliance.capture.intake import Intake
from appliance.config import DicomConfig
from appliance.store.captures import Kept

ACSE_TIMEOUT = 30.0
IDLE_TIMEOUT = 120.0
STALL_TIMEOUT = 60.0
_PATIENCE = 5.0
_CONNECTIONS_BEYOND = 20

VERIFICATION = "1.2.840.10008.1.1"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
STORAGE_CLASSES: dict[str, str] = {
    _STORAGE + "1": "Computed Radiography Image Storage",
    _STORAGE + "1.1": "Digital X-Ray Image Storage - For Presentation",
    _STORAGE + "1.1.1": "Digital X-Ray Image Storage - For Processing",
    _STORAGE + "6.1": "Ultrasound Image Storage",
    _STORAGE + "3.1": "Ultrasound Multi-frame Image Storage",
    _STORAGE + "6": "Ultrasound Image Storage (Retired)",
    _STORAGE + "3": "Ultrasound Multi-frame Image Storage (Retired)",
    _STORAGE + "7": "Secondary Capture Image Storage",
    _STORAGE + "7.1": "Multi-frame Single Bit Secondary Capture Image Storage",
    _STORAGE + "7.2": "Multi-frame Grayscale Byte Secondary Capture Image Storage",
    _STORAGE + "7.3": "Multi-frame Grayscale Word Secondary Capture Image Storage",
    _STORAGE + "7.4": "Multi-frame True Color Secondary Capture Image Storage",
    _STORAGE + "9.4.2": "General Audio Waveform Storage",
}
# In the order in which they are chosen when a sender offers several in one context: what costs no decoding first, what
# loses nothing next; a lossy syntax is only the sender's own.
TRANSFER_SYNTAXES: dict[str, str] = {
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.5": "RLE Lossless",
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000 (Lossless Only)",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000 with RPCL Options (Lossless Only)",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless, First-Order Prediction (Process 14, Selection Value 1)",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless (Process 14)",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 (Lossless Only)",
    "1.2.840.10008.1.2.1.99": "Deflated Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian (Retired)",
    "1.2.840.10008.1.2.4.81": "JPEG-LS Near-Lossless",
    "1.2.840.10008.1.2.4.50": "JPEG Baseline (Process 1)",
    "1.2.840.10008.1.2.4.51": "JPEG Extended (Process 2 and 4)",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
}
_log = structlog.get_logger(__name__)


class DicomDoor:
    """Listens from ``start`` to ``stop``. ``counts`` says what happened, by cause."""

    def __init__(self, config: DicomConfig, intake: Intake, services: Sequence[Service] = ()) -> None:
        self._config = config
        self._intake = intake
        self._services = services
        self._studies: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
        self._tls: ssl.SSLContext | None = None
        self._networks = tuple(ipaddress.ip_network(network, strict=False) for network in config.allowed_addresses)
        self._server: Any = None
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Counter[str]:
        """A copy: ``kept``, ``duplicate``, ``conflict``, ``aborted``, ``malformed``, ``refused-…``, ``rejected-…``."""
        with self._lock:
            return self._counts.copy()

    @property
    def under_way(self) -> int:
        """How many associations there are now."""
        return len(self._server.active_associations) if self._server is not None else 0

    @property
    def port(self) -> int:
        """The port really bound."""
        return int(self._server.server_address[1]) if self._server is not None else self._config.port

    def start(self) -> None:
        """Begin to listen; raises ``OSError`` when the address or port can't be had, or a file of TLS can't be used."""
        keep_quiet()
        self._tls = dicom_tls.server_context(self._config) if self._config.tls else None
        ae = AE(self._config.ae_title)
        ae.maximum_pdu_size = dimse_stream.PDU_SIZE
        ae.maximum_associations = self._config.maximum_associations
        ae.require_called_aet = self._config.check_called_ae_title
        ae.require_calling_aet = list(self._config.allowed_ae_titles)
        ae.acse_timeout = ae.dimse_timeout = ACSE_TIMEOUT
        ae.network_timeout = IDLE_TIMEOUT
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.add_supported_context(VERIFICATION)
        for sop_class in STORAGE_CLASSES:
            if uid_to_service_class(sop_class) is not StorageServiceClass:
                register_uid(sop_class, "Retired" + sop_class.replace(".", "_"), StorageServiceClass)
            ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_ABORTED, self._aborted),
            (evt.EVT_ACSE_RECV, self._released),
            (evt.EVT_CONN_CLOSE, lambda event: self._ended(event.assoc, in_order=False)),
        ]
        for service in self._services:
            for sop_class in service.sop_classes:
                ae.add_supported_context(sop_class, list(SYNTAXES))
            handlers += service.handlers(self._count)
        self._listen(ae, handlers)
        for service in self._services:
            service.start()

    def _listen(self, ae: Any, handlers: list[Any]) -> None:
        address = (self._config.address, self._config.port)
        unusable = dimse_stream.usable()
        if unusable:
            _log.warning("objects are received in memory", cause=unusable, remedy="install the locked pynetdicom")
            self._server = ae.start_server(address, block=False, evt_handlers=handlers, ssl_context=self._tls)
            return
        self._server = ae.make_server(
            address,
            evt_handlers=handlers,
            server_class=dimse_server.StreamingServer,
            open_sink=self._open,
            note=self._note,
            admit=self._admit,
            stall_timeout=STALL_TIMEOUT,
            tls=self._context if self._tls is not None else None,
        )
        ae._servers.append(self._server)  # noqa: SLF001 - its shutdown() removes it there
        threading.Thread(target=self._server.serve, name="dicom-door", daemon=True).start()

    def stop(self) -> None:
        """Close the door. What is being transferred is dropped (the sender is not told it was kept)."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            dimse_server.hang_up(server, _PATIENCE)
            for service in self._services:
                service.stop()

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            raise OSError("TLS is not configured")
        return dicom_tls.dated(self._tls, self._intake.store.now())

    def _count(self, cause: str) -> None:
        with self._lock:
            self._counts[cause] += 1

    def _note(self, cause: str, message: str) -> None:
        self._count(cause)
        _log.warning("association aborted", cause=message)

    def _admit(self, address: str) -> bool:
        peer = ipaddress.ip_address(address)
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped:
            peer = peer.ipv4_mapped
        if self._networks and not any(peer in network for network in self._networks):
            self._count("rejected-address")
            _log.warning("connection refused", cause="address not in dicom.allowed_addresses", address=address)
            return False
        # A few beyond the limit still get a proper rejection; a flood is cut off before it costs threads.
        if len(self._server.active_associations) >= self._config.maximum_associations + _CONNECTIONS_BEYOND:
            self._count("rejected-limit")
            return False
        return True

    def _open(self, association: Any, sop_class: str, instance: str, syntax: str) -> Arrival:
        largest, context = self._config.maximum_object * 1_000_000, (sop_class, instance, syntax)

        def settled(arrival: Arrival, outcome: Kept | Refused) -> tuple[int, str]:
            if arrival.study_uid:
                with self._lock:
                    self._studies.setdefault(association, set()).add(arrival.study_uid)
            return self._settled(arrival, outcome)

        return Arrival(self._intake, largest, title_of(association), context, settled)

    def _released(self, event: Any) -> None:
        if isinstance(event.primitive, A_RELEASE):
            self._ended(event.assoc, in_order=True)

    def _ended(self, association: Any, *, in_order: bool) -> None:
        with self._lock:
            studies = self._studies.pop(association, set())
        self._intake.association_ended(studies, in_order=in_order)

    def _echo(self, _event: Any) -> int:
        self._count("echo")
        return SUCCESS

    def _store(self, event: Any) -> int | Dataset:
        """The fallback: an object that pynetdicom received in memory."""
        request = event.request
        sop_class, instance = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        arrival = self._open(event.assoc, sop_class, instance, str(event.context.transfer_syntax))
        arrival.write(request.DataSet.getbuffer())
        answer = Dataset()
        answer.Status, comment = arrival.finish()
        if comment:
            answer.ErrorComment = comment
        return answer

    def _settled(self, arrival: Arrival, outcome: Kept | Refused) -> tuple[int, str]:
        """Count and log what became of an object; the status and comment to answer."""
        if isinstance(outcome, Refused):
            comment = str(outcome).encode("ascii", "replace").decode("ascii").replace("\\", "/")[:64]
            self._count(f"refused-{outcome.cause}")
            status = f"0x{outcome.status:04X}"
            _log.warning("object refused", status=status, cause=str(outcome), sender=arrival.calling)
            return outcome.status, comment
        self._count("conflict" if outcome.conflict else "duplicate" if outcome.duplicate else "kept")
        for reason in outcome.reasons:
            self._count(f"conflict-{reason}")
        if outcome.reasons:
            _log.warning("kept, and flagged", capture=outcome.capture_id, reasons=outcome.reasons)
        return SUCCESS, ""

    def _rejected(self, event: Any) -> None:
        wanted = event.assoc.requestor.primitive
        if self._config.check_called_ae_title and wanted.called_ae_title != self._config.ae_title.strip():
            cause, remedy = "called-ae-title", f"call this box {self._config.ae_title}, or set dicom.ae_title"
        elif self._config.allowed_ae_titles and wanted.calling_ae_title not in self._config.allowed_ae_titles:
            cause, remedy = "calling-ae-title", "add the sender to dicom.allowed_ae_titles"
        else:
            cause, remedy = "limit", "too many senders at a time: see dicom.maximum_associations"
        self._count(f"rejected-{cause}")
        calling, called = wanted.calling_ae_title, wanted.called_ae_title
        _log.warning("association rejected", cause=cause, remedy=remedy, calling=calling, called=called)

    def _aborted(self, _event: Any) -> None:
        self._count("aborted")
