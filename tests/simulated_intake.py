"""An intake in memory behind the interface of ``appliance.capture.intake``, that can be told to be full or to fail."""

from __future__ import annotations

import hashlib
import threading

from typing_extensions import Self

from appliance.capture.intake import Facts, StoreFull
from appliance.store.captures import Kept


class SimulatedIntake:
    """Keeps captures in ``kept`` (content, facts). ``room_for``: bytes that fit, None for any number."""

    def __init__(self, room_for: int | None = None) -> None:
        self.kept: list[tuple[bytes, Facts]] = []
        self.room_for = room_for
        self.fail_on_keep: Exception | None = None
        self.open_now = 0
        self.opened = 0
        self.lock = threading.Lock()
        self.ended: list[tuple[frozenset[str], bool]] = []

    def association_ended(self, study_uids: frozenset[str], *, in_order: bool) -> None:
        if study_uids:
            self.ended.append((frozenset(study_uids), in_order))

    def room(self, expected: int = 0) -> None:
        if self.room_for is not None and self.room_for <= expected:
            raise StoreFull("the disk is full; free some space")

    def open(self) -> SimulatedIncoming:
        self.room()
        with self.lock:
            self.open_now += 1
            self.opened += 1
        return SimulatedIncoming(self)


class SimulatedIncoming:
    def __init__(self, intake: SimulatedIntake) -> None:
        self._intake = intake
        self._data = bytearray()
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        if self._intake.room_for is not None and len(self._data) + len(data) > self._intake.room_for:
            raise StoreFull("the disk is full; free some space")
        self._data += data
        return len(data)

    def keep(self, facts: Facts) -> Kept:
        if self._intake.fail_on_keep is not None:
            raise self._intake.fail_on_keep
        content = bytes(self._data)
        with self._intake.lock:
            duplicate = any(content == known for known, _ in self._intake.kept)
            conflict = not duplicate and any(
                facts.instance_uid == known.instance_uid for _, known in self._intake.kept if facts.instance_uid
            )
            if not duplicate:
                self._intake.kept.append((content, facts))
        self.abort()
        return Kept(hashlib.sha256(content).hexdigest()[:32], duplicate, conflict)

    def abort(self) -> None:
        if self._open:
            self._open = False
            with self._intake.lock:
                self._intake.open_now -= 1
