"""Walks each capture through its states: the one place where capture, reading and sync meet (promise 2).

What this module keeps true:

1. Every step begins from what the journal says and ends in one transaction; a restart at any instruction goes on from there
   and produces each result once. Nothing waits here that the journal doesn't know.
2. The attempt at a reading is counted in the journal while the reading runs in the worker process; a capture that kills the
   worker ``ATTEMPTS`` times is set aside, visibly, and is still reported to a human.
3. What was not read for want of an age is read once more when a person says it (``sync.report``): from ``kept`` on, as new.
4. A reading that can't be made (no model, engine failed, set aside) is reported as not read, with reason and advice.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet  # the builtin one only from Python 3.11 on
from typing import Protocol

import msgspec
import structlog

from appliance.config import LinkConfig
from appliance.inference.worker import Result
from appliance.reading.requests import Preview, ReadRequest
from appliance.records import (
    ADVICE_NOT_DIAGNOSIS,
    Capture,
    CaptureState,
    Modality,
    Reading,
    Refusal,
    Triage,
)
from appliance.store import audit
from appliance.store.captures import ATTEMPTS
from appliance.store.errors import StoreError
from appliance.store.journal import Transaction
from appliance.store.outbox import Priority
from appliance.store.store import Store
from appliance.sync import originals
from appliance.sync.report import Entered, Hide, known_now, put_result, read_again_if_due

_log = structlog.get_logger(__name__)

_URGENT_FIRST = {Modality.CHEST_XRAY: 0, Modality.LUNG_ULTRASOUND: 1}
_PAUSE = 1.0


class Readers(Protocol):
    """The reading process, as far as the pipeline needs it: see ``inference.worker.Worker``."""

    def submit(self, request: bytes, priority: int, timeout_s: float) -> Future[Result]: ...  # noqa: D102


class Pipeline:
    """One thread that takes captures from ``kept`` to ``reported``."""

    def __init__(
        self,
        store: Store,
        readers: Readers,
        device: str,
        config: LinkConfig,
        time_limit: float,
        reported: Callable[[], None] = lambda: None,
        hide: Hide = None,
    ) -> None:
        self._hide = hide
        self._store = store
        self._readers = readers
        self._device = device
        self._config = config
        self._time_limit = time_limit
        self._reported = reported
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="pipeline", daemon=True)
        self._waiting = False
        self.counts: Counter[str] = Counter()
        self.progress = 0

    @property
    def working(self) -> bool:
        """Whether there is work that should be moving."""
        return self._waiting

    def start(self) -> None:
        """Start the thread; it begins with what the journal holds from before."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the present transition, then end."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._time_limit + 5)

    def notify(self, _capture_id: str) -> None:
        """A capture was kept."""
        self._wake.set()

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                moved = self.step()
            except Exception:  # noqa: BLE001 - the edge of this task: nothing is lost, the journal knows where each stands
                self.counts["failed"] += 1
                _log.exception("a step of the pipeline failed; it is tried again")
                moved = False
                self._stop.wait(_PAUSE)
            if not moved:
                self._wake.wait(_PAUSE)

    def step(self) -> bool:
        """Advance every capture that can be advanced, one at a time; whether there were any."""
        unreported = self._store.captures.next(("checked", "read"))
        for capture_id in unreported:
            if self._stop.is_set():
                return False
            self._advance(capture_id)
        moved = bool(unreported)
        while not self._stop.is_set():
            kept = self._store.captures.next(("kept",), limit=1)
            self._waiting = bool(kept)
            if not kept:
                return moved
            self._advance(kept[0])
            moved = True
        return False

    def _advance(self, capture_id: str) -> None:
        entry = self._store.captures.get(capture_id)
        if entry.state in (CaptureState.KEPT, CaptureState.CHECKED):
            reading = self._read(entry.capture, entry.attempts, entry.set_aside)
            if reading is None:
                return
            self._record(reading, entry.state)
        self._report(entry.capture, entry.sequence)
        self.progress += 1

    def _read(self, capture: Capture, attempts: int, set_aside: str) -> Reading | None:
        """The reading of a capture, or ``None`` when it is to be tried again."""
        store = self._store
        if set_aside:
            return _not_read(capture, "set-aside", f"Reading was given up: {set_aside}.")
        if attempts >= ATTEMPTS:
            reason = f"the reading stopped {attempts} times"
            store.journal.write(lambda tx: store.captures.set_aside(tx, capture.id, reason))
            return _not_read(capture, "set-aside", f"Reading was given up: {reason}.")
        counted = store.journal.submit(lambda tx: store.captures.begin_attempt(tx, capture.id))
        answer = self._ask(capture, preview=False)
        counted.result()
        if answer is not None and answer.status == "ok":
            return msgspec.msgpack.decode(answer.body, type=Reading)
        self.counts["worker-died"] += 1
        reason = answer.reason if answer is not None else "the box is stopping"
        _log.warning("a reading failed", capture=capture.id, attempt=attempts + 1, reason=reason)
        if self._stop.is_set() or (answer is not None and answer.status == "stopped"):
            store.journal.write(lambda tx: store.captures.take_back_attempt(tx, capture.id))
        return None

    def _ask(self, capture: Capture, *, preview: bool) -> Result | None:
        known = known_now(self._store, capture)
        request = msgspec.msgpack.encode(ReadRequest(known=known, sha256=capture.sha256, preview=preview))
        future = self._readers.submit(request, _URGENT_FIRST.get(capture.modality, 2) - preview, self._time_limit)
        deadline = time.monotonic() + self._time_limit * 2 + 30
        while not self._stop.is_set() and time.monotonic() < deadline:
            try:
                return future.result(timeout=0.5)
            except NotYet:
                continue
        future.cancel()
        return None

    def _record(self, reading: Reading, state: CaptureState) -> None:
        """Two transitions, committed together: the disk is asked once."""
        store, wall = self._store, self._store.now().wall
        steps: list[Callable[[Transaction], None]] = []
        if state is CaptureState.KEPT:
            steps.append(lambda tx: store.captures.checked(tx, reading.capture_id))
        revision = store.captures.readings(reading.capture_id)
        steps.append(lambda tx: store.captures.read(tx, reading, wall, revision))
        for future in store.journal.submit_together(*steps):
            future.result()
        self.counts[reading.status] += 1

    def _report(self, capture: Capture, sequence: int) -> None:
        store = self._store
        reading = store.captures.reading(capture.id)
        if reading is None:
            raise StoreError(f"capture {capture.id} is read but has no reading; run bedside doctor")
        small = self._preview(capture)
        if self._hide is not None and small is not None and small.media_type == "image/jpeg":
            small = None  # a name may be burned in: the preview is made of the cleaned picture
        parts = [] if small is None else [(small.media_type, small.data), ("audio/ogg", small.sound)]
        blobs = [(media_type, store.vault.put(data)) for media_type, data in parts if data]
        moment = store.now()
        critical = reading.triage is Triage.CRITICAL

        def report(tx: Transaction) -> None:
            put_result(store, tx, self._device, Entered(capture, reading, sequence), self._hide)
            for media_type, blob in blobs:
                store.transfers.put(
                    tx,
                    capture_id=capture.id,
                    kind="preview",
                    priority=Priority.of("preview", reading.triage),
                    sha256=blob.sha256,
                    size=blob.size,
                    media_type=media_type,
                    critical=critical,
                )
            if self._sends_original(reading.triage) and store.vault.has(capture.sha256):
                priority, clean = Priority.of("original", reading.triage), self._hide is not None
                originals.queue(store, tx, capture, priority, critical=critical, clean=clean)
            store.captures.reported(tx, capture.id)
            audit.append(tx, moment, "reported", capture.id, f"{reading.status} {reading.triage.value}")
            read_again_if_due(store, tx, capture, reading)  # somebody may have said the age while it was read

        store.journal.write(report)
        self._reported()

    def _preview(self, capture: Capture) -> Preview | None:
        if not self._store.vault.has(capture.sha256):
            return None
        answer = self._ask(capture, preview=True)
        if answer is None or answer.status != "ok":
            return None
        return msgspec.msgpack.decode(answer.body, type=Preview)

    def _sends_original(self, triage: Triage) -> bool:
        wanted = self._config.send_originals
        return wanted == "all" or (wanted == "urgent" and triage is not Triage.ROUTINE)


def _not_read(capture: Capture, code: str, reason: str) -> Reading:
    advice = "A radiologist will still get it. If it matters now, take it again."
    return Reading(
        capture_id=capture.id,
        modality=capture.modality,
        status="not_read",
        triage=Triage.URGENT,
        advice=f"{advice} {ADVICE_NOT_DIAGNOSIS}",
        refusal=Refusal(code=code, reason=reason, advice=advice),
    )
