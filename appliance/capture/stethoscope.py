"""The stethoscope: one recording at a time, on the disk while it goes on, through the one door when it is kept.

What this module keeps true:

1. A sample is in memory alone for at most about a second: pieces go to the spool (durable, encrypted) as they come. After a
   power cut at second 9 the next start keeps 9 seconds.
2. A recording ends in the vault (``Intake``, promise 1) or is thrown away by a person's word, which stands in the audit log;
   nothing else removes it. What nobody decides about is kept.
3. Samples that were lost are counted; where their number is known, silence stands in their place, so that beats keep their
   time. The counts stand in the capture's description and in the file.
4. Whose a recording is stands in it from the beginning and is judged again when it is kept (``Attach``): also after a power cut
   it goes to whom it was confirmed for, or to nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec
import structlog

from appliance.capture.intake import Facts, Intake, IntakeError
from appliance.capture.stethoscope_finish import (
    Begun,
    Ended,
    Finished,
    begin_piece,
    describe,
    end_piece,
    finish,
)
from appliance.capture.stethoscope_judge import Heard, Judge, Preview
from appliance.capture.stethoscope_messages import Counts, Failure, Trouble, Wanted
from appliance.capture.stethoscope_positions import PLACES, Place
from appliance.capture.stethoscope_source import NoSound, ProcessSource, Source
from appliance.capture.video_takes import Attach, Whose
from appliance.config import StethoscopeConfig
from appliance.records import Modality, Reading, Record
from appliance.store.captures import Kept
from appliance.store.errors import StoreError
from appliance.store.spool import Spool, SpoolWriter

_log = structlog.get_logger(__name__)

UNDECIDED_S = 180.0
"""A stopped recording that nobody keeps or throws away is kept after so long."""

_UNEXPECTED = Failure(
    code="library", what="the recorder failed", remedy="start again; if it stays, look at the log of the daemon"
)
Phase = Literal["idle", "starting", "recording", "stopped"]
Why = Literal["", "hand", "enough", "longest", "device", "disk"]


class Busy(Exception):  # noqa: N818 - the condition's name
    """The stethoscope is in use, or the recording asked for is not the present one."""


class Live(Record, frozen=True, kw_only=True, omit_defaults=False):
    """What a screen shows.

    ``wave``: the last ``PEAKS`` pairs of least and greatest sample (per mille of full scale), ``PEAKS_PER_S`` pairs a second,
    of ``wave_end`` so far. ``kept``: the capture that the last recording became.
    ``preview``: what the models say so far; never the answer.
    """

    phase: Phase = "idle"
    recording: str = ""
    place: str = ""
    device: str = ""
    rate_hz: int = 0
    seconds: float = 0.0
    heard: Heard = Heard()
    overflows: int = 0
    lost_s: float = 0.0
    why: Why = ""
    trouble: Trouble | Literal[""] = ""
    problem: str = ""
    remedy: str = ""
    kept: str = ""
    patient_id: str = ""
    encounter_id: str = ""
    preview: Reading | None = None
    wave: tuple[int, ...] = ()
    wave_end: int = 0


OpenSource = Callable[[Wanted], Source]
MakeJudge = Callable[[Modality, int], Judge]
MakePreview = Callable[[Modality, int, float | None], Preview]


class Stethoscope:
    """The box's stethoscope. ``open_source`` gives a source of sound; the default records the box's own input."""

    def __init__(
        self,
        config: StethoscopeConfig,
        intake: Intake,
        judge: MakeJudge,
        *,
        preview: MakePreview | None = None,
        attach: Attach = lambda _: None,
        open_source: OpenSource = ProcessSource,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._intake = intake
        self._judge = judge
        self._preview = preview
        self._attach = attach
        self._open_source = open_source
        self._clock = clock
        self.spool = Spool(intake.store.folder / "spool", intake.store.key, intake.store.files)
        self._lock = threading.RLock()
        self._live = Live()
        self._whose = Whose()
        self._running: Preview | None = None
        self._source: Source | None = None
        self._thread: threading.Thread | None = None
        self._why: Why = ""
        self._stopped_at = 0.0

    def live(self) -> Live:
        """How it stands now."""
        live, running = self._live, self._running  # no lock: who looks never waits for who keeps
        newest = running.newest if running is not None else None
        return live if newest is None else msgspec.structs.replace(live, preview=newest.reading)

    def begin(self, place: str, whose: Whose | None = None) -> None:
        """Begin to record at a place of ``PLACES``; a stopped recording that waits is kept first.

        Raises ``Busy`` while one is going on, and ``IntakeError`` when it could not be kept.
        """
        with self._lock:
            if self._live.phase in {"starting", "recording"}:
                raise Busy("the stethoscope is recording already; stop that first")
            if self._live.phase == "stopped":
                self.keep(self._live.recording)
            rate = self._config.rate or 48000
            self._intake.room(self._config.longest * rate * 8)
            self._whose = whose or Whose()
            self._why = ""
            self._running = None
            self._live = Live(
                phase="starting",
                place=PLACES[place].id,
                patient_id=self._whose.patient.id,
                encounter_id=self._whose.encounter_id,
            )
            self._source = self._open_source(Wanted(device=self._config.device, rate_hz=self._config.rate))
            self._thread = threading.Thread(
                target=self._record, args=(self._source, PLACES[place]), name="stethoscope", daemon=True
            )
            self._thread.start()

    def end(self) -> None:
        """End the recording; what is on its way is still taken. Nothing happens when there is none."""
        self._end("hand")

    def keep(self, recording: str) -> Kept:
        """Put the stopped recording through the door; saved on return. Raises ``Busy``, ``IntakeError``."""
        with self._lock:
            self._need(recording)
            kept = self._through_the_door(recording)
            if kept is None:
                raise Busy("there is nothing in this recording")
            self._running = None
            self._live = Live(kept=kept.capture_id, place=self._live.place)
            return kept

    def discard(self, recording: str, by: str = "") -> None:
        """Throw the stopped recording away: somebody (an id) said so. Raises ``Busy``."""
        with self._lock:
            self._need(recording)
            self._intake.store.note("discarded", recording, f"{self._live.place} {self._live.seconds:.1f} s by={by}")
            self.spool.remove(recording)
            self._running = None
            self._live = Live(place=self._live.place)

    def recover(self) -> list[str]:
        """Keep what a power cut or a restart left in the spool; the captures' ids. Called before anything is recorded."""
        kept = []
        for name in self.spool.names():
            try:
                finished = self._through_the_door(name)
            except (StoreError, IntakeError, OSError) as error:
                _log.error(
                    "a recording could not be finished; it stays and is tried at the next start", error=str(error)
                )
                continue
            if finished is not None:
                kept.append(finished.capture_id)
        return kept

    def tend(self) -> None:
        """Keep a stopped recording that nobody decides about."""
        with self._lock:
            live = self._live
            if live.phase == "stopped" and self._clock() - self._stopped_at > UNDECIDED_S:
                try:
                    self.keep(live.recording)
                except (StoreError, IntakeError, OSError, Busy) as error:
                    self._live = msgspec.structs.replace(live, problem=str(error), remedy="")
                    self._stopped_at = self._clock()

    def start(self) -> None:
        """Open the way in: what was left in the spool is kept first."""
        for capture_id in self.recover():
            _log.info("kept a recording that was not finished", capture=capture_id)

    def stop(self) -> None:
        """Close the way in: what goes on ends and stays in the spool, and is kept at the next start."""
        self._end("hand")
        thread = self._thread
        if thread is not None:
            thread.join(10.0)

    # ---- the recording thread

    def _record(self, source: Source, place: Place) -> None:
        from appliance.capture.stethoscope_taking import Taking  # numpy: only a box that records needs it

        writer: SpoolWriter | None = None
        failure: Failure | None = _UNEXPECTED
        try:
            opened = source.open()
            begun = Begun(
                place=place.id,
                device=opened.device,
                rate_hz=opened.rate_hz,
                moment=self._intake.store.now(),
                whose=self._whose,
            )
            writer = self.spool.begin(begin_piece(begun))
            self._set(phase="recording", recording=writer.name, device=opened.device, rate_hz=opened.rate_hz)
            preview = self._make_preview(place.modality, opened.rate_hz)
            judge = self._judge(place.modality, opened.rate_hz)
            Taking(source.blocks(), writer, opened.rate_hz, judge, preview, self._clock, self._show).run()
            failure = None
        except NoSound as error:
            self._why, failure = "device", error.failure
        except OSError as error:
            self._why = "disk"
            failure = Failure(
                code="disk", what=f"the disk did not take it ({error.strerror})", remedy="free space on the disk"
            )
        finally:
            self._finished(writer, source.close(), failure)

    def _finished(self, writer: SpoolWriter | None, counts: Counts, failure: Failure | None) -> None:
        if writer is not None:
            try:
                writer.append(end_piece(Ended(why=self._why, overflows=counts.overflows, lost=counts.lost)))
            except OSError as error:  # what was recorded is there; only the account of it is missing
                _log.error("the end of a recording was not written", error=error.strerror)
            writer.close()
        problem = {}
        if failure is not None:
            problem = {"trouble": failure.code, "problem": failure.what, "remedy": failure.remedy}
            _log.warning("a recording ended in trouble", trouble=failure.code, reason=failure.what)
        with self._lock:
            self._source = None
            self._stopped_at = self._clock()
            live = self._live
            rate = live.rate_hz or 1
            if writer is None or live.seconds <= 0:
                if writer is not None:
                    self.spool.remove(writer.name)
                self._live = Live(place=live.place)
                self._set(why=self._why, **problem)
                return
            self._set(
                phase="stopped",
                why=self._why,
                overflows=counts.overflows,
                lost_s=round(counts.lost / rate, 2),
                **problem,
            )

    def _make_preview(self, modality: Modality, rate_hz: int) -> Preview | None:
        make = self._preview
        self._running = make(modality, rate_hz, self._whose.patient.age_years) if make is not None else None
        return self._running

    def _show(self, seconds: float, heard: Heard, wave: tuple[int, ...], wave_end: int) -> None:
        self._set(seconds=round(seconds, 2), heard=heard, wave=wave, wave_end=wave_end)
        if heard.enough and self._config.automatic_stop:
            self._end("enough")
        elif seconds >= self._config.longest:
            self._end("longest")

    def _end(self, why: Why) -> None:
        with self._lock:
            if self._source is not None and not self._why:
                self._why = why
                self._source.stop()

    def _set(self, **changes: object) -> None:
        with self._lock:
            self._live = msgspec.structs.replace(self._live, **changes)

    def _need(self, recording: str) -> None:
        if self._live.phase != "stopped" or self._live.recording != recording:
            raise Busy("this recording is not the one that waits here; look at the page again")

    def _through_the_door(self, name: str) -> Kept | None:
        finished = finish(self.spool.pieces(name))
        if finished is None:
            self.spool.remove(name)
            return None
        said = finished.begun.whose
        also = self._attach(said) if said.ticket else None
        facts = _facts(finished, said if also is not None or not said.ticket else Whose())
        with self._intake.open() as incoming:
            incoming.write(finished.flac)
            kept = incoming.keep(facts) if also is None else incoming.keep(facts, also)
        self.spool.remove(name)
        return kept


def _facts(finished: Finished, whose: Whose) -> Facts:
    begun = finished.begun
    place = PLACES[begun.place]
    return Facts(
        modality=place.modality,
        media_type="audio/flac",
        source=f"stethoscope:{begun.device}",
        patient=whose.patient,
        encounter_id=whose.encounter_id,
        accession_number=whose.accession_number,
        position=place.id,
        body_part="HEART" if place.modality is Modality.HEART_SOUND else "CHEST",
        description=describe(finished),
    )
