"""Freezes and clips that wait for "keep" or "discard", and what a power cut left of them.

What this module keeps true: a take is on the disk, sealed, before its first frame is promised to stay; whose it is was
settled when it began, and a later choice of patient does not touch it; keeping goes through the one door, and only when the
door has said "saved" does the take go; what a start finds is kept, because nobody said "discard".
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from appliance import __version__
from appliance.capture.facts import FileReader
from appliance.capture.intake import Intake, IntakeError
from appliance.capture.video_multiframe import NoFrames, Shot, write_object
from appliance.capture.video_ring import SUFFIX, RingFrame, Span, read_ring
from appliance.records import Modality, Moment, Patient
from appliance.store.captures import Kept
from appliance.store.errors import Damaged
from appliance.store.files import durable
from appliance.store.journal import Transaction

SOURCE = "ultrasound"
_HEAD = "head"
_TAKE = ".take"

Also = Callable[[Transaction, Kept], None]


class Whose(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a take is of, as it was settled before it began; empty when that is for later.

    ``ticket`` with ``by`` and ``session`` is the console's word that two identifiers were confirmed; it is judged again by
    ``Attach`` when the take is kept.
    """

    patient: Patient = Patient()
    encounter_id: str = ""
    accession_number: str = ""
    ticket: str = ""
    by: str = ""
    session: str = ""


Attach = Callable[[Whose], Also | None]
"""What to write with a kept capture so that it is attached; ``None`` when it may not be (any more)."""

Kind = Literal["still", "clip"]


class Take(msgspec.Struct, frozen=True, kw_only=True):
    """A freeze or a clip. Times are CLOCK_MONOTONIC ns; ``to_ns`` 0 while it is recorded.

    ``ended``: why it ended before a person said so (``limit``, ``source``, ``power``, ``disk``), empty otherwise.
    """

    id: str
    kind: Kind
    session: str
    from_ns: int
    to_ns: int
    taken: Moment
    whose: Whose
    device: str = ""
    lossy: bool = False
    method: str = ""
    ended: str = ""

    @property
    def span(self) -> Span:
        """The frames that belong to it."""
        return Span(self.from_ns, self.to_ns)


class _Head(msgspec.Struct, frozen=True):
    key: bytes


class Takes:
    """The takes and the ring's sessions below ``folder``. ``attach`` decides whether a take's word on whose it is holds."""

    def __init__(self, intake: Intake, folder: Path, attach: Attach = lambda _: None) -> None:
        self._intake, self._store = intake, intake.store
        self._folder = folder
        self.attach = attach

    def begin_session(self) -> tuple[str, Path, bytes]:
        """A session of the ring: its id, its folder and its key; durable."""
        name, key = uuid.uuid4().hex, os.urandom(32)
        folder = self._folder / name
        self._store.files.make_folder(folder)
        with durable(self._store.files, folder / _HEAD) as file:
            file.write(self._store.key.seal(msgspec.msgpack.encode(_Head(key)), f"ring:{name}"))
        return name, folder, key

    def put(self, take: Take) -> Take:
        """Write a take down, or what became of it; durable."""
        sealed = self._store.key.seal(msgspec.msgpack.encode(take), f"take:{take.id}")
        self._store.files.make_folder(self._folder)
        with durable(self._store.files, self._folder / f"{take.id}{_TAKE}") as file:
            file.write(sealed)
        return take

    def all(self) -> list[Take]:
        """The takes there are, oldest first; one that can't be read is left where it is."""
        found = []
        for path in self._folder.glob(f"*{_TAKE}"):
            with contextlib.suppress(Damaged, msgspec.DecodeError, OSError):
                plain = self._store.key.unseal(path.read_bytes(), f"take:{path.stem}")
                found.append(msgspec.msgpack.decode(plain, type=Take))
        return sorted(found, key=lambda take: (take.taken.boot_id, take.taken.monotonic_ns))

    def frames(self, take: Take) -> Iterator[RingFrame]:
        """The frames of a take; none when its session's key is gone for good. ``OSError``: it can't be read now."""
        folder = self._folder / take.session
        try:
            plain = self._store.key.unseal((folder / _HEAD).read_bytes(), f"ring:{take.session}")
        except (FileNotFoundError, Damaged):
            return iter(())
        return read_ring(folder, msgspec.msgpack.decode(plain, type=_Head).key, take.span)

    def keep(self, take: Take) -> Kept:
        """Keep a take through the one door, then let it go; raises ``IntakeError``, or ``NoFrames`` (it is gone then)."""
        also = self.attach(take.whose) if take.whose.ticket else None
        whose = take.whose if also is not None or not take.whose.ticket else Whose()
        shot = Shot(
            id=take.id,
            clip=take.kind == "clip",
            taken=take.taken,
            patient=whose.patient,
            encounter_id=whose.encounter_id,
            accession_number=whose.accession_number,
            device=take.device,
            lossy=take.lossy,
            method=take.method,
            version=__version__,
        )
        reader = FileReader(SOURCE, Modality.LUNG_ULTRASOUND)
        with self._intake.open() as incoming:

            def write(data: bytes) -> None:
                reader.feed(data)
                incoming.write(data)

            try:
                write_object(shot, lambda: self.frames(take), write)
            except NoFrames:
                self.forget(take)
                raise
            except OSError as error:  # the disk may give it back the next time: the take stays
                raise IntakeError(f"it can't be read back now ({error.strerror}); try again") from error
            facts = msgspec.structs.replace(reader.finish(), encounter_id=whose.encounter_id, patient=whose.patient)
            kept = incoming.keep(facts) if also is None else incoming.keep(facts, also)
        self.forget(take)
        return kept

    def forget(self, take: Take) -> None:
        """The take is kept or was discarded; its frames go with their session, or are recycled by it."""
        self._store.files.remove(self._folder / f"{take.id}{_TAKE}")

    def tidy(self, running: str = "") -> None:
        """Remove the sessions that nobody needs: not ``running``, and without a take. The key goes first."""
        needed = {take.session for take in self.all()} | {running}
        damaged = {path.stem for path in self._folder.glob(f"*{_TAKE}")} - {take.id for take in self.all()}
        if damaged:  # whose frames they are can't be told
            return
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            if folder.is_dir() and folder.name not in needed:
                self._store.files.remove(folder / _HEAD)
                for path in (*folder.glob(f"*{SUFFIX}"), *folder.glob(".*.part")):
                    self._store.files.remove(path)
                with contextlib.suppress(OSError):
                    folder.rmdir()
