"""The DICOM door: C-STORE and C-ECHO.

What this module keeps true: status 0x0000 goes out only after ``Incoming.keep`` has returned (promise 1); everything else is
answered with a failure status and a comment that names the cause, or the association is rejected or aborted; each refusal
is counted by its cause; an object whose transfer ends early leaves nothing. No log line holds anything of a patient.

Statuses: PS3.4, table B.2-1, and PS3.7, annex C.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import struct
import threading
from collections import Counter
from typing import Any

import structlog
from pydicom.dataset import Dataset
from pynetdicom import AE, evt, register_uid
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from appliance.capture import dimse_server, dimse_stream
from appliance.capture.facts import WANTED, facts_of_data_set
from appliance.capture.header import DataSetReader, NotDicom
from appliance.capture.intake import Incoming, Intake, IntakeError, StoreFull
from appliance.config import DicomConfig
from appliance.store.captures import Kept

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
OUT_OF_RESOURCES = 0xA700
NOT_OF_ITS_CLASS = 0xA900
NOT_UNDERSTOOD = 0xC000

STATUSES: dict[int, str] = {
    SUCCESS: "the object is on the disk and its row is committed; also for one that was kept before (kept once), and for"
    " other bytes under a known SOP Instance UID (kept beside the first and flagged)",
    PROCESSING_FAILURE: "the disk or the journal failed; the object was not kept",
    OUT_OF_RESOURCES: "the disk is nearly full, or the object is larger than `dicom.maximum_object`; it was not kept",
    NOT_OF_ITS_CLASS: "the data set names another SOP Class or SOP Instance than the request; it was not kept",
    NOT_UNDERSTOOD: "the data set can't be read or is cut off; it was not kept",
}

ACSE_TIMEOUT = 30.0
IDLE_TIMEOUT = 120.0
STALL_TIMEOUT = 60.0
_PATIENCE = 5.0
_CONNECTIONS_BEYOND = 20
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# These two names go into every kept file's meta information. They stay the same from version to version, so that the same
# object sent again after an update is still the same bytes.
IMPLEMENTATION_CLASS_UID = "2.25.301461528129217193276510226415337961853"
IMPLEMENTATION_VERSION_NAME = "BEDSIDE"

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


class Refused(Exception):  # noqa: N818 - the condition's name
    """An object is not taken: the status of the answer, a stable word to count by, and the comment."""

    def __init__(self, status: int, cause: str, comment: str) -> None:
        super().__init__(comment)
        self.status = status
        self.cause = cause


class DicomDoor:
    """Listens from ``start`` to ``stop``. ``counts`` says what happened, by cause."""

    def __init__(self, config: DicomConfig, intake: Intake) -> None:
        self._config = config
        self._intake = intake
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
    def port(self) -> int:
        """The port really bound."""
        return int(self._server.server_address[1]) if self._server is not None else self._config.port

    def start(self) -> None:
        """Begin to listen; raises ``OSError`` when the address or port can't be had."""
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
        ]
        address = (self._config.address, self._config.port)
        unusable = dimse_stream.usable()
        if unusable:
            _log.warning("objects are received in memory", cause=unusable, remedy="install the locked pynetdicom")
            self._server = ae.start_server(address, block=False, evt_handlers=handlers)
            return
        self._server = ae.make_server(
            address,
            evt_handlers=handlers,
            server_class=dimse_server.StreamingServer,
            open_sink=self._open,
            note=self._note,
            admit=self._admit,
            stall_timeout=STALL_TIMEOUT,
        )
        ae._servers.append(self._server)  # noqa: SLF001 - its shutdown() removes it there
        threading.Thread(target=self._server.serve, name="dicom-door", daemon=True).start()

    def stop(self) -> None:
        """Close the door. What is being transferred is dropped (the sender is not told it was kept)."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            dimse_server.hang_up(server, _PATIENCE)

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
        calling = str(association.requestor.ae_title).strip()
        return Arrival(
            self._intake, self._config.maximum_object * 1_000_000, calling, (sop_class, instance, syntax), self
        )

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

    def settled(self, arrival: Arrival, outcome: Kept | Refused) -> tuple[int, str]:
        """Count and log what became of an object; the status and comment to answer."""
        if isinstance(outcome, Refused):
            comment = str(outcome).encode("ascii", "replace").decode("ascii").replace("\\", "/")[:64]
            self._count(f"refused-{outcome.cause}")
            status = f"0x{outcome.status:04X}"
            _log.warning("object refused", status=status, cause=str(outcome), sender=arrival.calling)
            return outcome.status, comment
        self._count("conflict" if outcome.conflict else "duplicate" if outcome.duplicate else "kept")
        if outcome.conflict:
            _log.warning("other bytes under a known SOP Instance UID, kept aside", capture=outcome.capture_id)
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


class Arrival:
    """One object on its way from the socket into the vault: a sink that never raises, and says at the end what came of it."""

    def __init__(
        self, intake: Intake, largest: int, calling: str, context: tuple[str, str, str], door: DicomDoor
    ) -> None:
        self.calling = calling
        self._door = door
        self._sop_class, self._instance, syntax = context
        self._largest = largest
        self._refused: Refused | None = None
        self._incoming: Incoming | None = None
        self._reader = DataSetReader(syntax, WANTED)
        with self._refusing():
            intake.room()
            self._incoming = intake.open()
            self._incoming.write(file_meta(self._sop_class, self._instance, syntax))

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the data set. After a refusal they are read and dropped, so that it can be answered."""
        if self._incoming is None:
            return
        with self._refusing():
            self._reader.feed(data)
            if self._reader.size > self._largest:
                largest = f"{self._largest // 1_000_000} MB"
                raise Refused(OUT_OF_RESOURCES, "too-large", f"larger than {largest}: raise dicom.maximum_object")
            self._incoming.write(data)

    def finish(self) -> tuple[int, str]:
        """Make it durable, or refuse it: the status and comment to answer."""
        kept: Kept | None = None
        with self._refusing():
            if self._incoming is not None:
                values = self._reader.finish()
                reader = self._reader
                source = f"dicom:{self.calling}"
                facts = facts_of_data_set(values, reader.transfer_syntax_uid, source, reader.waveform)
                if (facts.sop_class_uid, facts.instance_uid) != (self._sop_class, self._instance):
                    raise Refused(
                        NOT_OF_ITS_CLASS, "other-class", "data set and C-STORE name another SOP class or instance"
                    )
                kept = self._incoming.keep(facts)
                self._incoming = None
        lost = Refused(PROCESSING_FAILURE, "discarded", "the association ended; send the object again")
        return self._door.settled(self, kept or self._refused or lost)

    def discard(self) -> None:
        """Leave nothing."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.abort()

    @contextlib.contextmanager
    def _refusing(self) -> Any:
        try:
            yield
        except Refused as refused:
            self._refused = refused
        except NotDicom as error:
            self._refused = Refused(NOT_UNDERSTOOD, "not-dicom", str(error))
        except StoreFull as error:
            self._refused = Refused(OUT_OF_RESOURCES, "full", str(error))
        except IntakeError as error:
            self._refused = Refused(PROCESSING_FAILURE, "store", str(error))
        except OSError as error:
            full = error.errno in _NO_SPACE
            status, cause = (OUT_OF_RESOURCES, "full") if full else (PROCESSING_FAILURE, "store")
            self._refused = Refused(status, cause, f"the disk refuses: {error.strerror}")
        if self._refused is not None:
            self.discard()


def file_meta(sop_class: str, instance: str, syntax: str) -> bytes:
    """Preamble and file meta information (PS3.10, 7.1) of an object: a function of its three UIDs and nothing else."""
    elements = b"".join(
        (
            b"\x02\x00\x01\x00OB\x00\x00" + struct.pack("<I", 2) + b"\x00\x01",
            _element(0x0002, b"UI", sop_class, b"\0"),
            _element(0x0003, b"UI", instance, b"\0"),
            _element(0x0010, b"UI", syntax, b"\0"),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID, b"\0"),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME, b" "),
        )
    )
    group_length = b"\x02\x00\x00\x00UL" + struct.pack("<HI", 4, len(elements))
    return bytes(128) + b"DICM" + group_length + elements


def _element(number: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    value += padding * (len(value) % 2)
    return struct.pack("<HH2sH", 0x0002, number, vr, len(value)) + value
