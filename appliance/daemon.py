"""The daemon: makes the parts, joins them, starts and stops them in order. Nothing else happens here.

What this module keeps true: the doors open last and close first, so that nothing is taken that could not be kept; a door
that can't open (its port in use) is said with its remedy and tried again, and everything else serves: keeping and sending go
on without models, reading and keeping go on without a link.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import msgspec
import structlog

from appliance import __version__
from appliance.capture import footprint
from appliance.capture.dicom import DicomDoor
from appliance.capture.dicom_offer import services
from appliance.capture.folder import FolderDoor
from appliance.capture.intake import Intake
from appliance.capture.stethoscope import Stethoscope
from appliance.capture.stethoscope_judge import Judge
from appliance.capture.video import VideoDoor
from appliance.capture.worklist import WorklistClient
from appliance.config import Config
from appliance.console.listener import ConsoleError
from appliance.console.server import ConsoleServer
from appliance.health import notify, telemetry
from appliance.health.clock import Clock, kernel_synchronised
from appliance.health.escalation import Escalation
from appliance.health.status import say_serving
from appliance.health.watchdog import Watchdog
from appliance.health.writes import DiskWrites
from appliance.inference import trust
from appliance.inference.worker import Result, Worker
from appliance.pipeline import Pipeline
from appliance.protocol.messages import Command, ReviewMessage, Status, encode
from appliance.protocol.topics import Address
from appliance.reading.ahead import LookAhead
from appliance.reading.requests import Described, ReadRequest, ReadSettings
from appliance.reading.stream import PreviewSound
from appliance.records import Modality
from appliance.store import notes, usage
from appliance.store.errors import StoreError
from appliance.store.retention import Retention
from appliance.store.store import Store
from appliance.sync.carried import take_carried
from appliance.sync.inbox import Downlink
from appliance.sync.link import Link
from appliance.sync.originals import MEMORY as ENCODER_MEMORY
from appliance.sync.originals import EncodeSettings, Originals
from appliance.sync.report import Hide
from appliance.sync.standing import Standing
from appliance.sync.uplink import Uplink
from appliance.view import attaching, bedside_view

_log = structlog.get_logger(__name__)

_TIME_UNCERTAINTY = 5.0
_PATIENCE = 120.0
_DESCRIBE_EVERY = 60.0
_TIDY_EVERY = 60.0
_TELL_EVERY = 900.0
_MB = 1 << 20


class Door(Protocol):
    """A way in."""

    def start(self) -> None:
        """Open; ``OSError`` when that is not possible now."""

    def stop(self) -> None:
        """Close; captures on their way in are finished or leave nothing."""


class Daemon:
    """All parts of the appliance, wired."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.address = Address(config.device.site, config.device.name)
        self.clock = Clock()
        self.store = Store(config.storage, self.clock.now)
        self.worker = Worker(
            "appliance.reading.process:serve",
            msgspec.msgpack.encode(
                ReadSettings(
                    models=str(config.models_directory),
                    installed=str(config.models_installed),
                    trust=trust.settings_of(config),
                    cache=str(config.models_cache),
                    engine=config.models.engine,
                    vault=str(self.store.vault.folder),
                    key=str(self.store.folder),
                )
            ),
            memory_limit=config.models.memory_limit * _MB,
        )
        self.uplink = Uplink(self.store, config.link, time.monotonic, self._day)
        self._told = float("-inf")
        self._writes = DiskWrites(self.store, config.storage.write_budget, self._day)
        self.downlink = Downlink(self.store, self.uplink, self.clock, self._reply, self._arrived)
        self.standing = Standing(self.store, self.address, self._say, self.downlink.received, self.wake_link)
        self.link = self._make_link() if config.link.enabled else None
        self.hide = self._hiding()
        self.originals = Originals(self.store, self._encoder(), self.wake_link, clean=self.hide is not None)
        self.pipeline = Pipeline(
            self.store, self.worker, self.address.key, config.link, config.models.time_limit, self._reported, self.hide
        )
        look_ahead = LookAhead(self.worker, config.models.time_limit, lambda: self.pipeline.working)
        self.intake = Intake(self.store, self.address.key, self.pipeline.notify, look_ahead)
        self.doors: dict[str, Door] = {}
        if config.dicom.enabled:
            self.doors["dicom"] = DicomDoor(config.dicom, self.intake, services(config.dicom, self.store))
        if config.worklist.enabled:
            self.doors["worklist"] = WorklistClient(config.worklist, config.dicom, self.store)
        if config.folder.enabled:
            self.doors["folder"] = FolderDoor(config.folder, self.intake)
        self.ultrasound = VideoDoor(config.ultrasound, self.intake) if config.ultrasound.enabled else None
        if self.ultrasound is not None:
            self.ultrasound.takes.attach = attaching(self.store, self.clock.now)
            self.doors["ultrasound"] = self.ultrasound
        self.stethoscope = self._stethoscope() if config.stethoscope.enabled else None
        if self.stethoscope is not None:
            self.doors["stethoscope"] = self.stethoscope
        self.closed_doors: dict[str, str] = {}
        self.described = Described(serving=(), problems=())
        self._described_at = 0.0
        if config.console.enabled:
            self.doors["console"] = ConsoleServer(config.console, bedside_view(self))
        self._notifier = notify.from_environment()
        self._watchdog = Watchdog(self._stages(), self._notifier, _PATIENCE)
        self._stopping = threading.Event()
        self._retention = Retention(self.store, config.storage.keep_days)
        self._escalation = Escalation(self.store, config.escalation.after)
        self._tidied = time.monotonic()

    def run(self) -> None:
        """Start everything and serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        self.start()
        try:
            while not self._stopping.wait(5.0):
                self._tend()
        finally:
            self.stop()

    def start(self) -> None:
        """Start the parts, the doors last."""
        repair = self.store.repair
        if not repair.clean:
            _log.warning("store repaired", unfinished=repair.unfinished, orphans=repair.orphans, missing=repair.missing)
        self.store.vault.prepare()
        self.worker.start()
        self._describe()
        self.pipeline.start()
        self.originals.start()
        if self.link is not None:
            self.link.start()
        for name in self.doors:
            self._open(name)
        footprint.give_back()
        self._watchdog.start()
        self._notifier.ready(f"serving as {self.address.key}")
        _log.info("serving", device=self.address.key, version=__version__, doors=sorted(self.doors))

    def stop(self) -> None:
        """Stop the parts, the doors first."""
        self._notifier.stopping()
        self._watchdog.stop()
        for name, door in self.doors.items():
            if name not in self.closed_doors:
                door.stop()
        self.pipeline.stop()
        self.worker.stop()
        self.originals.stop()
        if self.link is not None:
            self.link.stop()
        self.store.close()
        _log.info("stopped")

    def status(self, online: bool) -> Status:
        """The retained status message."""
        messages, message_bytes = self.store.outbox.totals()
        transfers, transfer_bytes = self.store.transfers.totals()
        return Status(
            online=online,
            version=__version__,
            boot_id=self.clock.boot_id,
            bundles={one.bundle: one.version for one in self.described.serving},
            waiting_messages=messages + transfers,
            waiting_bytes=message_bytes + transfer_bytes,
            captures=sum(self.store.captures.triage_counts().values()),
            free_bytes=max(0, self.store.free()),
            clock_uncertainty_s=self.clock.uncertainty(),
            problems=self.problems(),
        )

    def problems(self) -> list[str]:
        """What a technician should know, each with its remedy."""
        found = [f"The {name} door is closed: {why}" for name, why in self.closed_doors.items()]
        found += self.described.problems
        if self.worker.problem:
            found.append(f"Reading has stopped: {self.worker.problem}")
        if self.store.free() <= 0:
            found.append("The disk is nearly full: new captures are refused until space is freed.")
        if not self.store.repair.clean and self.store.repair.missing:
            found.append(f"{len(self.store.repair.missing)} captures lost their file on the disk; check the disk.")
        if worn := self._writes.problem():
            found.append(worn)
        if damaged := len(self.store.captures.damaged):
            found.append(f"{damaged} captures can't be read from the journal; replace the disk, send them again.")
        if self.link is not None and (count := self.link.counts["not-believed"]):
            found.append(
                f"{count} messages that its hub had not signed were refused: somebody interferes, or enrol again."
            )
        return [*found, *self.standing.problems()]

    def _open(self, name: str) -> None:
        try:
            self.doors[name].start()
        except (OSError, ConsoleError) as error:
            why = f"{getattr(error, 'strerror', None) or error}; free its port or change {name}.port, it is tried again"
            if self.closed_doors.get(name) != why:
                _log.error("door closed", door=name, reason=why)
            self.closed_doors[name] = why
        else:
            self.closed_doors.pop(name, None)

    def _tend(self) -> None:
        """What is looked at now and then: closed doors, the clock, the reserve, the captures."""
        for name in list(self.closed_doors):
            self._open(name)
        if self.worker.alive and time.monotonic() - self._described_at > _DESCRIBE_EVERY:
            self._describe()
        if self.stethoscope is not None:
            self.stethoscope.tend()
        console = self.doors.get("console")
        if isinstance(console, ConsoleServer):
            console.tend()
        error = kernel_synchronised()
        if error is not None and error < _TIME_UNCERTAINTY:
            self.clock.anchor(time.time(), error)
        if self.store.free() > self.store.reserve.size:
            self.store.reserve.hold()
        try:
            notes.take(self.store)
            self.standing.tend()
            if take_carried(self.store.folder, self.downlink.received):
                self.store.note("carried", "receipts", "from a stick")
            if time.monotonic() - self._tidied >= _TIDY_EVERY:
                self._tidied = time.monotonic()
                footprint.give_back()
                self._escalation.tend()
                self._retention.tend()
                self._writes.tend()
                self._tell_numbers()
        except (StoreError, OSError) as error:
            _log.error("could not tend the captures; it is tried again", error=str(error))

    def _tell_numbers(self) -> None:
        """Send telemetry now and then while the link stands; what is lost of it is not sent again."""
        if self.link is None or not self.link.online or time.monotonic() - self._told < _TELL_EVERY:
            return
        self._told = time.monotonic()
        written, kept = usage.written_on(self.store.journal, self._day())
        counts = {
            "written_bytes_today": written,
            "written_bytes_today_besides_captures": written - kept,
            "sent_bytes": self.uplink.sent_bytes,
            "sent_again_bytes": self.uplink.sent_again_bytes,
        }
        self.link.say("telemetry", encode(telemetry.message(telemetry.measure(self.store.folder), counts)))

    def _describe(self) -> None:
        """Ask the reading process what serves in it; it takes up what is new."""
        self._described_at = time.monotonic()
        request = msgspec.msgpack.encode(ReadRequest(describe=True))
        result = self.worker.submit(request, 0, self.config.models.time_limit)  # asked as soon as it is ready

        def done(answered: Future[Result]) -> None:
            if not answered.cancelled() and answered.result().status == "ok":
                before, self.described = self.described, msgspec.msgpack.decode(answered.result().body, type=Described)
                if self.described != before:
                    with contextlib.suppress(OSError):  # only ``bedside status`` would miss it
                        say_serving(self.store.folder, self.described)

        result.add_done_callback(done)

    def _stethoscope(self) -> Stethoscope:
        def judge(modality: Modality, rate_hz: int) -> Judge:
            from appliance.reading.listening import listener  # numpy and soxr: only a box that records needs them

            return listener(modality, rate_hz)

        def preview(modality: Modality, rate_hz: int, age: float | None) -> PreviewSound:
            return PreviewSound(self.worker, modality, rate_hz=rate_hz, age_years=age)

        return Stethoscope(
            self.config.stethoscope,
            self.intake,
            judge,
            preview=preview,
            attach=attaching(self.store, self.clock.now),
        )

    def _stages(self) -> dict[str, Callable[[], tuple[int, bool]]]:
        stages: dict[str, Callable[[], tuple[int, bool]]] = {
            "pipeline": lambda: (self.pipeline.progress + self.worker.answered, self.pipeline.working),
            "journal": lambda: (self.store.journal.groups, self.store.journal.busy),
            "originals": lambda: (self.originals.progress, self.originals.working),
        }
        ultrasound = self.ultrasound
        if ultrasound is not None:
            stages["ultrasound"] = lambda: (ultrasound.progress, ultrasound.decoding is not None)
        link = self.link
        if link is not None:
            stages["link"] = lambda: (link.progress, link.online)
        return stages

    def _day(self) -> str:
        return self.clock.now().wall[:10]

    def _reply(self, payload: bytes) -> None:
        if self.link is not None:
            self.link.reply(payload)

    def _hiding(self) -> Hide:
        """What hides the patient from the hub, where the site wants that."""
        if self.config.deidentify.hub == "identified":
            return None
        from appliance.interop.outgoing import hidden, options_of

        options, blind = options_of(self.config.deidentify), self.store.key.blind
        return lambda capture: hidden(capture, blind, options)

    def _make_link(self) -> Link:
        standing = self.standing
        return Link(
            self.config.link,
            self.address,
            self.uplink,
            standing.received,
            self.status,
            self.clock.now,
            standing.identity,
        )

    def _say(self, leaf: str, payload: bytes) -> None:
        if self.link is not None:
            self.link.say(leaf, payload)

    def _encoder(self) -> Worker:
        vault, key = str(self.store.vault.folder), str(self.store.folder)
        entry, settings = "appliance.sync.originals:serve", msgspec.msgpack.encode(EncodeSettings(vault=vault, key=key))
        if self.hide is not None:
            from appliance.interop.outgoing import options_of
            from appliance.sync.pseudonymous import CleanSettings

            entry, options = "appliance.sync.pseudonymous:serve", options_of(self.config.deidentify)
            settings = msgspec.msgpack.encode(CleanSettings(vault=vault, key=key, options=options))
        return Worker(entry, settings, memory_limit=ENCODER_MEMORY, niceness=15)

    def _reported(self) -> None:
        self.originals.notify()
        self.wake_link()

    def wake_link(self) -> None:
        """There is something to send."""
        if self.link is not None:
            self.link.wake()

    def _arrived(self, message: ReviewMessage | Command) -> None:
        _log.info("from the hub", kind=type(message).__name__, capture=message.capture_id)
        if isinstance(message, Command) and message.kind == "resend":
            self._reported()
