"""The ultrasound door: live video while somebody looks, freezes and clips that end in the one door.

What this module keeps true: the source is open only while somebody looks or a clip is recorded, and is opened again, anew and
with back-off, when it ends; a freeze is the frame that the person saw; a clip begins with the pre-roll, but never before the
patient was chosen; what was recorded when the source, the disk or the power failed waits for "keep" like any other, and what
nobody decides about is kept.
"""

from __future__ import annotations

import collections
import random
import threading
import time
import uuid
from collections.abc import Callable

import msgspec
import structlog

from appliance.capture.intake import Intake
from appliance.capture.video_area import rectangle
from appliance.capture.video_keeper import Keeper
from appliance.capture.video_messages import Heard, Message, Order, Picture, Ready, Settings
from appliance.capture.video_multiframe import NoFrames
from appliance.capture.video_process import Decoding
from appliance.capture.video_regions import Regions
from appliance.capture.video_scan import NotNow, Scan, scan_of
from appliance.capture.video_takes import Attach, Take, Takes, Whose
from appliance.config import UltrasoundConfig
from appliance.store.captures import Kept

_log = structlog.get_logger(__name__)

_LOOKED_AT_S = 25.0
_DECIDE_S = 600.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 15.0
_STEADY_S = 8.0
_REMEMBERED = 400
_SPARE_S = 2.0
_RAW_EVERY_S = 0.4
_SETTLED_S = 0.3
_MB = 1 << 20


class VideoDoor:
    """Live ultrasound by ``config``; takes go through ``intake``. ``attach``: see ``video_takes.Attach``."""

    def __init__(self, config: UltrasoundConfig, intake: Intake, attach: Attach = lambda _: None) -> None:
        self._config, self._intake = config, intake
        folder = intake.store.folder / "ring"
        self.takes = Takes(intake, folder, attach)
        self._regions = Regions(intake.store.files, folder / "regions.json")
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.decoding: Decoding | None = None
        self._scan = Scan()
        self._ready: Ready | None = None
        self._heard: Heard | None = None
        self._picture: Picture | None = None
        self._session = ""
        self._shown: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._open: dict[str, Take] = {}
        self._settling: set[str] = set()
        self._order = Order()
        self._looked = -_LOOKED_AT_S
        self.on_picture: Callable[[Picture], None] | None = None  # given pixels, now and then; must return at once
        self._raw_at = 0.0
        self._whose, self._since = "", 0

    def start(self) -> None:
        """Begin to serve, and to keep what a power cut left."""
        self._stopping.clear()
        for take in self.takes.all():
            ended = take.ended or ("" if take.to_ns else "power")
            self._open[take.id] = msgspec.structs.replace(take, ended=ended, to_ns=take.to_ns or 2**62)
        left = tuple(self._open)
        keeper = Keeper(self.keep, self._undecided, self._stopping)
        self._threads = [
            threading.Thread(target=self._supervise, name="ultrasound", daemon=True),
            threading.Thread(target=keeper.run, args=(left,), name="ultrasound-keeper", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Close the source; a clip that is recorded ends here and waits on the disk."""
        self._stopping.set()
        with self._changed:
            decoding = self.decoding
            self._changed.notify_all()
        if decoding is not None:
            decoding.stop()
        for thread in self._threads:
            thread.join(15)

    @property
    def stopping(self) -> bool:
        """Whether it is to end: nobody should wait for it."""
        return self._stopping.is_set()

    @property
    def progress(self) -> int:
        """Grows while it lives: several times a second while video runs."""
        return self._scan.serial

    # What a person does

    def present(self, encounter_id: str) -> None:
        """Somebody looks, for this visit (empty: for nobody yet): a pre-roll will not reach back before this."""
        with self._changed:
            self._look()
            if encounter_id != self._whose:
                self._whose, self._since = encounter_id, time.monotonic_ns()

    def scan(self, after: int = -1, timeout_s: float = 0.0) -> Scan:
        """How it is; waits up to ``timeout_s`` for a state newer than serial ``after``."""
        with self._changed:
            self._look()
            self._changed.wait_for(lambda: self._scan.serial > after or self._stopping.is_set(), timeout_s)
            return self._scan

    def picture(self, after: int, width: int, timeout_s: float) -> Picture | None:
        """A picture with another number than ``after``, ``width`` pixels wide at most; ``None`` when none came in time."""
        with self._changed:
            self._look()
            have = self._picture
            look = max(64, min(width, 1280))
            if have is None or have.number == after:
                self._send(look)
            self._changed.wait_for(
                lambda: (self._picture is not None and self._picture.number != after) or self._stopping.is_set(),
                timeout_s,
            )
            newest = self._picture
            if newest is None or newest.number == after:
                return None
            if newest is have:  # it is some moments old already: the next one is on its way when it is asked for
                self._send(look)
            return newest

    def freeze(self, whose: Whose, number: int = 0) -> Take:
        """Hold the frame that was shown as ``number``, else the newest one; raises ``NotNow`` or ``IntakeError``."""
        self._intake.room()
        with self._changed:
            heard = self._live()
            t_ns = self._shown.get(number, heard.t_ns)
            return self._begin("still", whose, t_ns, t_ns)

    def record(self, whose: Whose) -> Take:
        """Begin a clip, with the pre-roll before it; raises ``NotNow`` or ``IntakeError``."""
        self._intake.room()
        with self._changed:
            self._live()
            if any(not take.to_ns for take in self._open.values()):
                raise NotNow("a clip is being recorded already: end it first")
            begin = time.monotonic_ns() - int(self._config.pre_roll * 1e9)
            return self._begin("clip", whose, max(begin, self._since), 0)

    def finish(self, ended: str = "") -> Take | None:
        """End the clip that is recorded: it waits for "keep" or "discard"; ``None`` when there is none."""
        with self._changed:
            take = next((one for one in self._open.values() if not one.to_ns), None)
            if take is None:
                return None
            done = msgspec.structs.replace(take, to_ns=time.monotonic_ns(), ended=ended)
            self._open[take.id] = done
            self.takes.put(done)
            self._send()
            self._publish()
            return done

    def keep(self, take_id: str) -> Kept:
        """Keep a freeze or clip, durable on return; raises ``NotNow``, ``IntakeError`` or ``NoFrames``."""
        take = self._settle(take_id)
        time.sleep(
            max(0.0, _SETTLED_S - abs(time.monotonic_ns() - take.to_ns) / 1e9)
        )  # its last frames are on their way
        try:
            kept = self.takes.keep(take)
        except NoFrames:
            self._forgotten(take_id)
            raise
        finally:
            with self._changed:
                self._settling.discard(take_id)
        self._forgotten(take_id)
        return kept

    def discard(self, take_id: str) -> None:
        """Let a freeze or clip go for good; raises ``NotNow``."""
        take = self._settle(take_id)
        try:
            self._intake.store.note("discarded", take_id, f"{take.kind} of ultrasound, never kept")
            self.takes.forget(take)
        finally:
            with self._changed:
                self._settling.discard(take_id)
        self._forgotten(take_id)

    def confirm_area(self, shares: tuple[float, float, float, float] | None = None) -> None:
        """A person says that the area shown (or ``shares``: top, left, bottom, right) is the picture and holds no name.

        It is remembered for this device. Raises ``NotNow``.
        """
        with self._changed:
            if (ready := self._ready) is None:
                raise NotNow("no video source is open: plug it in first")
            if shares is not None:
                region = rectangle(ready.height, ready.width, shares)
            elif self._heard is not None and self._heard.region is not None:
                region = msgspec.structs.replace(self._heard.region, confirmed=True)
            else:
                raise NotNow("no area has been found yet: give it by numbers, or show the live picture without menus")
            self._regions.remember(ready.id, region)
            self._order = msgspec.structs.replace(self._order, region=region)
            self._send()

    def search_area(self) -> None:
        """Forget this device's area and look for it anew."""
        with self._changed:
            if self._ready is not None:
                self._regions.forget(self._ready.id)
            self._order = msgspec.structs.replace(self._order, region=None, search=self._order.search + 1)
            self._send()

    # What the threads do

    def _supervise(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            if not self._wanted():
                self._publish("asleep")
                self.takes.tidy()
                with self._changed:
                    self._changed.wait_for(lambda: self._wanted() or self._stopping.is_set(), 30.0)
                continue
            began = time.monotonic()
            reason = self._run()
            failures = 0 if time.monotonic() - began > _STEADY_S else failures + 1
            if reason and not self._stopping.is_set():
                _log.warning("ultrasound source ended", reason=reason)
                self._publish("gone", reason)
                delay = min(_FIRST_DELAY_S * 2**failures, _LONGEST_DELAY_S) * random.uniform(0.8, 1.2)  # noqa: S311
                self._stopping.wait(delay)

    def _run(self) -> str:
        """One run of the decoder; why it ended."""
        self._publish("opening")
        try:
            self._session, folder, key = self.takes.begin_session()
        except OSError as error:
            return f"the disk did not take the pre-roll ({error.strerror}): free space"
        settings = Settings(
            source=self._config.source,
            folder=str(folder),
            key=key,
            keep_s=self._config.pre_roll + _SPARE_S,
            most=self._config.ring * _MB,
            rate_limit=self._config.frame_rate,
            fixed=self._config.area or None,  # type: ignore[arg-type]  # four numbers, checked by the config
            regions=self._regions.known(),
        )
        decoding = Decoding(settings)
        with self._changed:
            self.decoding, self._order = decoding, Order()
        reason = decoding.run(self._hear)
        with self._changed:
            self.decoding = self._ready = self._heard = self._picture = None
            self._shown.clear()
            crashes = self._scan.crashes + decoding.crashed
            self._scan = msgspec.structs.replace(self._scan, opened=self._scan.opened + 1, crashes=crashes)
        self.finish("source")
        self._session = ""
        self.takes.tidy()
        return reason

    def _hear(self, message: Message) -> None:
        with self._changed:
            if isinstance(message, Ready):
                self._ready = message
                self._send()
            elif isinstance(message, Picture):
                self._picture = message
                if message.pixels and self.on_picture is not None:
                    self.on_picture(message)
                if not message.whole:
                    self._shown[message.number] = message.t_ns
                    while len(self._shown) > _REMEMBERED:
                        self._shown.popitem(last=False)
                self._changed.notify_all()
                return
            elif isinstance(message, Heard):
                self._heard = message
                self._watch(message)
            self._publish("live")

    def _watch(self, heard: Heard) -> None:
        """End a clip that is long enough or can't go on, stop at a full disk, sleep when nobody looks."""
        take = next((one for one in self._open.values() if not one.to_ns), None)
        if take is not None:
            if time.monotonic_ns() - take.taken.monotonic_ns > self._config.longest_clip * 1e9:
                self.finish("limit")
            elif not heard.durable:
                self.finish("disk")
        spool = self._intake.store.free() > 0
        if spool != self._order.spool:
            self._order = msgspec.structs.replace(self._order, spool=spool)
            self._send()
        if not self._wanted() and self.decoding is not None:
            self.decoding.stop()

    def _undecided(self) -> list[str]:
        """What has waited for too long."""
        before = time.monotonic_ns() - int(_DECIDE_S * 1e9)
        with self._changed:
            return [one.id for one in self._open.values() if 0 < one.to_ns < before and one.id not in self._settling]

    # What they share (called with the lock held)

    def _look(self) -> None:
        asleep, self._looked = not self._wanted(), time.monotonic()
        if asleep:
            self._changed.notify_all()

    def _wanted(self) -> bool:
        recording = any(not take.to_ns for take in self._open.values())
        return recording or time.monotonic() - self._looked < _LOOKED_AT_S

    def _live(self) -> Heard:
        heard = self._heard
        if heard is None or self.decoding is None:
            raise NotNow(self._scan.reason or "the picture is not there yet: wait a moment")
        if heard.reason:
            raise NotNow(heard.reason)
        if not heard.kept:
            raise NotNow("the first frames are on their way to the disk: wait a moment")
        return heard

    def _begin(self, kind: str, whose: Whose, from_ns: int, to_ns: int) -> Take:
        ready = self._ready
        take = Take(
            id=uuid.uuid4().hex,
            kind="clip" if kind == "clip" else "still",
            session=self._session,
            from_ns=from_ns,
            to_ns=to_ns,
            taken=self._intake.store.now(),
            whose=whose,
            device=ready.name if ready else "",
            lossy=ready.lossy if ready else True,
            method=ready.method if ready else "",
        )
        self._open[take.id] = take
        self._send()
        try:
            self.takes.put(take)
        except OSError as error:
            del self._open[take.id]
            self._send()
            raise self._intake.refused(error) from error
        self._publish()
        return take

    def _settle(self, take_id: str) -> Take:
        with self._changed:
            take = self._open.get(take_id)
            if take is None or take_id in self._settling:
                raise NotNow("this freeze or clip has been kept or discarded already")
            if not take.to_ns:
                raise NotNow("this clip is still being recorded: end it first")
            self._settling.add(take_id)
            return take

    def _forgotten(self, take_id: str) -> None:
        with self._changed:
            self._open.pop(take_id, None)
            self._send()
            self._publish()
        self.takes.tidy(self._session)

    def _send(self, look: int = 0) -> None:
        pins = tuple((take.from_ns, take.to_ns) for take in self._open.values() if take.session == self._session)
        self._order = msgspec.structs.replace(self._order, pins=pins)
        if self.decoding is not None:
            raw = bool(look) and self.on_picture is not None and time.monotonic() - self._raw_at > _RAW_EVERY_S
            self._raw_at = time.monotonic() if raw else self._raw_at
            self.decoding.order(msgspec.structs.replace(self._order, look=look, raw=raw))

    def _publish(self, phase: str = "", reason: str = "") -> None:
        """Make the state that viewers see, and wake them."""
        with self._changed:
            takes = [take for take in self._open.values() if take.id not in self._settling]
            reason = reason or ("" if phase else self._scan.reason)
            before = msgspec.structs.replace(self._scan, phase=phase or self._scan.phase, reason=reason)
            self._scan = scan_of(before, self._ready, self._heard, takes)
            self._changed.notify_all()
