"""One object on its way from the socket into the vault, and what is answered for it.

What this module keeps true: status 0x0000 goes out only after ``Incoming.keep`` has returned (promise 1); everything else is
answered with a failure status and a comment that names the cause; an object whose transfer ends early leaves nothing; the
kept file is a function of the data set's bytes and its three UIDs alone.

Statuses: PS3.4, table B.2-1, and PS3.7, annex C.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable
from typing import Any

from appliance.capture.facts import WANTED, facts_of_data_set
from appliance.capture.header import DataSetReader, NotDicom
from appliance.capture.intake import Incoming, Intake, IntakeError, StoreFull
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

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# These two names go into every kept file's meta information. They stay the same from version to version, so that the same
# object sent again after an update is still the same bytes.
IMPLEMENTATION_CLASS_UID = "2.25.301461528129217193276510226415337961853"
IMPLEMENTATION_VERSION_NAME = "BEDSIDE"


class Refused(Exception):  # noqa: N818 - the condition's name
    """An object is not taken: the status of the answer, a stable word to count by, and the comment."""

    def __init__(self, status: int, cause: str, comment: str) -> None:
        super().__init__(comment)
        self.status = status
        self.cause = cause


Settled = Callable[["Arrival", "Kept | Refused"], tuple[int, str]]
"""Counts and logs what became of an object; the status and comment to answer."""


class Arrival:
    """One object on its way from the socket into the vault: a sink that never raises, and says at the end what came of it."""

    def __init__(
        self, intake: Intake, largest: int, calling: str, context: tuple[str, str, str], settled: Settled
    ) -> None:
        self.calling = calling
        self.study_uid = ""
        self._settled = settled
        self._sop_class, self._instance, syntax = context
        self._largest = largest
        self._refused: Refused | None = None
        self._incoming: Incoming | None = None
        self._reader = DataSetReader(syntax, WANTED)
        with self._refusing():
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
                self.study_uid = facts.study_uid
                self._incoming = None
        lost = Refused(PROCESSING_FAILURE, "discarded", "the association ended; send the object again")
        return self._settled(self, kept or self._refused or lost)

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
