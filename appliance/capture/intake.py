"""The one door: keep, then say saved (promise 1).

What this module keeps true: ``Incoming.keep`` returns only when the blob is durable under its final name and the row is
committed; whatever goes wrong before leaves nothing behind and raises an error that names cause and remedy. What can't be
kept is refused here, at once, and never dropped later.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection
from types import TracebackType

import msgspec
import structlog
from typing_extensions import Self

from appliance.records import Capture, Modality, Patient, capture_id
from appliance.store import audit
from appliance.store.captures import Kept
from appliance.store.errors import StoreError
from appliance.store.errors import StoreFull as DiskFull
from appliance.store.journal import Transaction
from appliance.store.store import Store

_log = structlog.get_logger(__name__)


class IntakeError(Exception):
    """The capture can't be kept; ``code`` is stable, the message names cause and remedy."""

    code = "not-kept"


class StoreFull(IntakeError):  # noqa: N818 - the condition's name
    """Too little space; the sender must keep it and try again (DICOM 0xA700)."""

    code = "store-full"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the sender or the file says of a capture.

    ``study_instances``: how many instances it says the study has, 0 if it doesn't.
    """

    modality: Modality
    media_type: str
    source: str
    patient: Patient = Patient()
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""
    sop_class_uid: str = ""
    transfer_syntax_uid: str = ""
    study_date: str = ""
    body_part: str = ""
    view: str = ""
    accession_number: str = ""
    description: str = ""
    encounter_id: str = ""
    position: str = ""
    study_instances: int = 0


def _nothing_more(_tx: Transaction, _kept: Kept) -> None:
    """What is written with a capture's row when nobody asks for more."""


class Incoming:
    """A capture on its way in: ``write`` as bytes come, then ``keep``; leaving the block without ``keep`` leaves nothing."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        try:
            self._writer = intake.store.vault.writer()
        except OSError as error:
            raise intake.refused(error) from error
        self._open = True

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Add bytes; raises ``StoreFull`` or ``IntakeError`` when the disk does not take them."""
        try:
            return self._writer.write(data)
        except OSError as error:
            raise self._intake.refused(error) from error

    def keep(self, facts: Facts, also: Callable[[Transaction, Kept], None] = _nothing_more) -> Kept:
        """Make it durable and known; on return it is saved (promise 1).

        ``also`` is written in the same transaction. What it raises keeps the capture out: it had better not.
        """
        intake, store = self._intake, self._intake.store
        if not self._writer.size:
            intake.counts["empty"] += 1
            raise IntakeError("nothing came: the file or transmission is empty; send it again")
        try:
            blob = self._writer.finish()
        except OSError as error:
            raise intake.refused(error) from error
        self._open = False
        moment = store.now()
        capture = Capture(
            id=capture_id(intake.device, blob.sha256),
            sha256=blob.sha256,
            size=blob.size,
            received=moment,
            **{field: getattr(facts, field) for field in facts.__struct_fields__ if field != "study_instances"},
        )

        intake.ahead(capture)

        def keep(tx: Transaction) -> Kept:
            kept = store.captures.keep(tx, capture)
            door = _door(facts.source)
            if not kept.duplicate:
                detail = f"{capture.modality.value} {capture.size} bytes from {door}"
                audit.append(tx, moment, "kept", capture.id, " ".join((detail, *kept.reasons)))
            by_association = door == "dicom"
            store.studies.arrived(tx, capture.study_uid, facts.study_instances, by_association=by_association)
            also(tx, kept)
            return kept

        try:
            kept = store.journal.write(keep)
        except DiskFull as error:
            raise StoreFull(str(error)) from error
        except StoreError as error:
            raise IntakeError(str(error)) from error
        intake.counts["duplicate" if kept.duplicate else "kept"] += 1
        if not kept.duplicate:
            intake.notify(kept.capture_id)
        return kept

    def abort(self) -> None:
        """Leave nothing."""
        if self._open:
            self._open = False
            self._writer.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class Intake:
    """The door itself.

    ``device`` is ``site/name``; ``notify`` is told each new capture's id after it is saved, ``ahead`` each capture whose bytes
    are in the vault and whose row is about to be written (it may never be).
    """

    def __init__(
        self,
        store: Store,
        device: str,
        notify: Callable[[str], None] = lambda _: None,
        ahead: Callable[[Capture], None] = lambda _: None,
    ) -> None:
        self.store = store
        self.device = device
        self.notify = notify
        self.ahead = ahead
        self.counts: Counter[str] = Counter()

    def room(self, expected: int = 0) -> None:
        """Raise ``StoreFull`` when ``expected`` bytes more would pass the watermark."""
        short = expected - self.store.free()
        if short > 0:
            self.counts["store-full"] += 1
            raise StoreFull(
                f"the disk of {self.store.folder} is nearly full ({short // (1 << 20) + 1} MB short): captures are refused "
                "until delivered ones are removed or space is freed"
            )

    def open(self) -> Incoming:
        """Begin a capture; raises ``StoreFull`` when there is no room for any."""
        self.room()
        return Incoming(self)

    def association_ended(self, study_uids: Collection[str], *, in_order: bool) -> None:
        """The association that brought something of these studies is over; written soon, and not waited for."""
        if study_uids:
            with contextlib.suppress(StoreError):  # it is closing: at the next start what was open is called broken off
                self.store.journal.submit(lambda tx: self.store.studies.ended(tx, study_uids, in_order=in_order))

    def refused(self, error: OSError) -> IntakeError:
        """The error to raise for what the operating system said; counted and logged without content."""
        self.counts["not-written"] += 1
        _log.error("capture not written", error=error.strerror, errno=error.errno)
        message = f"the disk of {self.store.folder} did not take it ({error.strerror}); free space or replace the disk"
        full = error.errno in (28, 122)  # ENOSPC, EDQUOT
        return StoreFull(message) if full else IntakeError(message)


def _door(source: str) -> str:
    return source.split(":", 1)[0]
