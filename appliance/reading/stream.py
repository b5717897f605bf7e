"""Running results while a video runs or a recording goes on: the newest state, never a queue.

What this module keeps true: what is live is read by the same process, the same preprocessing and the same engines as captures,
after every capture that waits; frames that nobody has looked at yet are dropped for newer ones and counted, sounds are
heard without a gap; ``offer`` never waits. **A live result is a preview: it is not stored, not reported and not sent. What is
captured goes through ``capture.intake`` like everything else, and is never dropped.**

For those who capture::

    live = PreviewReader(daemon.worker, Modality.LUNG_ULTRASOUND, heard=screen.show)   # or without ``heard``
    for number, frame in enumerate(camera):
        live.offer(Frame(number=number, rows=480, columns=640, channels=1, pixels=frame.tobytes()))
        result = live.newest                                                          # Live | None, at any time
    live.close()

    live = PreviewSound(daemon.worker, Modality.HEART_SOUND, rate_hz=4000)
    live.offer(block)        # bytes: float32 little-endian, one channel, ±1; blocks of any length, as the device gives them
    live.newest              # a result each ``hop_s`` of sound, of all that was heard so far (at most the bundle's ``most_s``)
    live.close()

Both are safe to use from any one thread; ``heard`` is called on the worker's thread and must return at once. The last
``Live.reading`` stays in ``newest`` after ``close``.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import msgspec

from appliance.inference.worker import Result
from appliance.reading.requests import Known, LiveAnswer, LiveFrame, LiveSound, ReadRequest
from appliance.records import Modality, Reading

PRIORITY = 100
"""After every capture: the pipeline asks with −1 to 2."""
TIME_LIMIT_S = 20.0
STRIKES = 3
"""After so many requests that took the process with them there are no further ones: captures need it."""
KEPT_S = 40.0
"""Seconds of sound kept here, for a process that was started anew; no bundle hears more."""
_SAMPLE = 4


class Submits(Protocol):
    """The worker, as far as it is needed here: see ``appliance.inference.worker.Worker.submit``."""

    def submit(  # noqa: D102
        self, request: bytes, priority: int, timeout_s: float, *, preview: str = ""
    ) -> Future[Result]: ...


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """A frame as it was grabbed. ``pixels``: ``rows × columns`` grey or (``channels`` 3) RGB bytes, row by row.

    ``grabbed`` is ``time.monotonic()`` when it was; latency counts from there.
    """

    number: int
    rows: int
    columns: int
    channels: int
    pixels: bytes
    grabbed: float = msgspec.field(default_factory=time.monotonic)


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """The newest result.

    ``number``: the frame it is of, or the recording's samples heard. ``latency_s``: from the frame's or the last sample's
    arrival to this result. ``reading.status`` is ``not_read`` with reason and advice while there is nothing to read yet.
    """

    reading: Reading
    number: int
    latency_s: float


class _Live:
    """What frames and sounds share: one name at the worker, the newest result, strikes."""

    def __init__(
        self, worker: Submits, modality: Modality, age_years: float | None, heard: Callable[[Live], None] | None
    ) -> None:
        self._worker = worker
        self._known = Known(modality=modality, age_years=age_years)
        self._heard = heard
        self._lock = threading.Lock()
        self._name = f"live-{uuid.uuid4().hex}"
        self._closed = False
        self._strikes = 0
        self.newest: Live | None = None
        self.results = 0
        self.problem = ""
        """Why there are no results, in words; empty while there are."""

    def close(self) -> None:
        """No further results; what is on its way is not waited for."""
        self._closed = True

    @property
    def _off(self) -> bool:
        return self._closed or self._strikes >= STRIKES

    def _submit(self, live: LiveFrame | LiveSound) -> Future[Result]:
        request = msgspec.msgpack.encode(ReadRequest(known=self._known, live=live))
        return self._worker.submit(request, PRIORITY, TIME_LIMIT_S, preview=self._name)

    def _answer(self, result: Result) -> LiveAnswer | None:
        """The answer in a result; a failure is remembered in words."""
        if result.status == "ok":
            self._strikes = 0
            self.problem = ""
            return msgspec.msgpack.decode(result.body, type=LiveAnswer)
        if result.status in ("died", "timed-out"):
            self._strikes += 1
        if result.status in ("died", "timed-out", "failed"):
            given_up = "; live results have stopped, captures are still read" if self._strikes >= STRIKES else ""
            self.problem = f"the live reading failed: {result.reason}{given_up}"
        return None

    def _tell(self, reading: Reading, number: int, since: float) -> None:
        self.newest = Live(reading=reading, number=number, latency_s=time.monotonic() - since)
        self.results += 1
        if self._heard is not None and not self._closed:
            self._heard(self.newest)


class PreviewReader(_Live):
    """Reads the newest frame of a video.

    Args:
        worker: The reading process.
        modality: What the video is of, e.g. ``LUNG_ULTRASOUND``.
        age_years: The patient's, where it is known.
        at_most_hz: Frames a second that are read at most, so that a fast box is not kept busy by a preview.
        heard: Told of each result, on the worker's thread.

    Attributes:
        newest: The newest result, ``None`` before the first.
        offered, dropped: Frames given to ``offer``; those that were passed over for a newer one.
    """

    def __init__(
        self,
        worker: Submits,
        modality: Modality = Modality.LUNG_ULTRASOUND,
        *,
        age_years: float | None = None,
        at_most_hz: float = 5.0,
        heard: Callable[[Live], None] | None = None,
    ) -> None:
        super().__init__(worker, modality, age_years, heard)
        self._pause = 1.0 / at_most_hz
        self._next = 0.0
        self._offered = 0
        self._dropped = 0

    @property
    def offered(self) -> int:
        """Frames given to ``offer``."""
        return self._offered

    @property
    def dropped(self) -> int:
        """Frames passed over for a newer one."""
        return self._dropped

    def offer(self, frame: Frame) -> bool:
        """Read this frame unless a newer one comes before its turn; returns at once, whether it was taken.

        Raises:
            ValueError: ``pixels`` is not as long as rows, columns and channels say.
        """
        if len(frame.pixels) != frame.rows * frame.columns * frame.channels or frame.channels not in (1, 3):
            raise ValueError(
                f"frame {frame.number}: {len(frame.pixels)} bytes are not {frame.rows} × {frame.columns} × "
                f"{frame.channels}; give grey (1 channel) or RGB (3) bytes"
            )
        now = time.monotonic()
        with self._lock:
            self._offered += 1
            if self._off or now < self._next:
                self._dropped += 1
                return False
            self._next = now + self._pause
        pixels = bytes(frame.pixels)
        live = LiveFrame(rows=frame.rows, columns=frame.columns, channels=frame.channels, pixels=pixels)
        self._submit(live).add_done_callback(lambda future: self._done(future, frame.number, frame.grabbed))
        return True

    def _done(self, future: Future[Result], number: int, grabbed: float) -> None:
        result = future.result()
        answer = self._answer(result)
        if answer is None or answer.reading is None:
            with self._lock:
                self._dropped += 1
            return
        self._tell(answer.reading, number, grabbed)


class PreviewSound(_Live):
    """Hears a recording while it goes on, window by window.

    Windows that were heard once are not run again; what looks at the whole recording (features, heart rate, quality) is
    done anew at each hop. The level is that of what was heard so far, so the final reading may differ a little.

    Args:
        worker: The reading process.
        modality: ``HEART_SOUND`` or ``LUNG_SOUND``.
        rate_hz: Samples a second, as the device gives them.
        age_years: The patient's, where it is known.
        hop_s: Seconds of new sound between two results; more when the process is busy.
        heard: Told of each result, on the worker's thread.
    """

    def __init__(
        self,
        worker: Submits,
        modality: Modality,
        *,
        rate_hz: float,
        age_years: float | None = None,
        hop_s: float = 1.0,
        heard: Callable[[Live], None] | None = None,
    ) -> None:
        super().__init__(worker, modality, age_years, heard)
        self._rate = rate_hz
        self._hop = max(1, round(hop_s * rate_hz))
        self._most = round(KEPT_S * rate_hz) * _SAMPLE
        self._kept = bytearray()
        self._first = 0  # number of the first sample kept
        self._sent = 0  # samples that the process has
        self._asked = 0  # samples there were at the last request
        self._arrived = time.monotonic()
        self._busy = False

    @property
    def samples(self) -> int:
        """Samples offered so far."""
        return self._first + len(self._kept) // _SAMPLE

    def offer(self, samples: bytes | bytearray | memoryview) -> None:
        """Add samples (float32 little-endian, one channel, ±1); returns at once.

        Raises:
            ValueError: Not whole samples.
        """
        if len(samples) % _SAMPLE:
            raise ValueError(f"{len(samples)} bytes are no whole float32 samples; give blocks of 4 bytes a sample")
        with self._lock:
            self._kept += samples
            surplus = len(self._kept) - self._most
            if surplus > 0:
                del self._kept[:surplus]
                self._first += surplus // _SAMPLE
            self._arrived = time.monotonic()
        self._ask()

    def _ask(self, *, again: bool = False) -> None:
        """Send what the process has not got, when a hop of it is there and no request is on its way."""
        with self._lock:
            there = self.samples
            if self._off or self._busy or not (again or there - self._asked >= self._hop):
                return
            self._busy = True
            self._asked = there
            arrived = self._arrived
            first = max(self._sent, self._first)
            samples = bytes(self._kept[(first - self._first) * _SAMPLE :])
            whole = first == self._first
        live = LiveSound(session=self._name, rate_hz=self._rate, first=first, samples=samples, whole=whole)
        self._submit(live).add_done_callback(lambda future: self._done(future, there, arrived))

    def _done(self, future: Future[Result], there: int, arrived: float) -> None:
        answer = self._answer(future.result())
        lacking = answer is not None and answer.reading is None
        with self._lock:
            self._busy = False
            self._sent = 0 if answer is None else answer.have
        if answer is not None and answer.reading is not None:
            self._tell(answer.reading, there, arrived)
        self._ask(again=lacking)
