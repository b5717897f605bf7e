"""Claims about live results: the newest frame, a recording without a gap, never at a capture's expense."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import msgspec
import numpy as np
import pytest

from appliance.config import shipped_models
from appliance.inference.bundle import load
from appliance.inference.worker import Result, Worker
from appliance.reading.live import LiveReader
from appliance.reading.reader import Reader
from appliance.reading.requests import Known, LiveAnswer, LiveSound, ReadRequest, ReadSettings
from appliance.reading.stream import STRIKES, Frame, PreviewReader, PreviewSound
from appliance.records import Modality, Reading
from tests.simulated_models import SimulatedModels, SimulatedServed

RATE = 4000.0


class SlowWorker:
    """Holds every request until it is told to answer the newest; one of the same name supersedes the waiting one."""

    def __init__(self, answer: Callable[[ReadRequest], Result]) -> None:
        self.waiting: list[tuple[ReadRequest, int, Future[Result]]] = []
        self._answer = answer

    def submit(self, request: bytes, priority: int, timeout_s: float, *, preview: str = "") -> Future[Result]:
        assert preview
        assert timeout_s > 0
        for _, _, older in self.waiting:
            older.set_result(Result("superseded"))
        future: Future[Result] = Future()
        self.waiting = [(msgspec.msgpack.decode(request, type=ReadRequest), priority, future)]
        return future

    def work(self) -> ReadRequest:
        request, _, future = self.waiting.pop()
        future.set_result(self._answer(request))
        return request


def reading(request: ReadRequest) -> Reading:
    return Reading(
        capture_id="", modality=request.known.modality or Modality.OTHER, status="read", triage="routine", advice=""
    )


def answered(request: ReadRequest, have: int = 0) -> Result:
    return Result("ok", body=msgspec.msgpack.encode(LiveAnswer(reading=reading(request), have=have)))


def frame(number: int) -> Frame:
    return Frame(number=number, rows=2, columns=3, channels=1, pixels=bytes(6))


def test_only_the_newest_frame_is_read_and_those_passed_over_are_counted() -> None:
    worker = SlowWorker(answered)
    live = PreviewReader(worker, at_most_hz=1e6)
    for number in range(5):
        live.offer(frame(number))
    worker.work()
    assert live.newest is not None
    assert (live.newest.number, live.offered, live.dropped, live.results) == (4, 5, 4, 1)
    assert live.newest.latency_s >= 0


def test_a_preview_comes_after_every_capture() -> None:
    worker = SlowWorker(answered)
    PreviewReader(worker).offer(frame(0))
    assert worker.waiting[0][1] > 2


def test_frames_beyond_the_rate_are_passed_over_without_asking() -> None:
    worker = SlowWorker(answered)
    live = PreviewReader(worker, at_most_hz=0.001)
    assert live.offer(frame(0))
    assert not live.offer(frame(1))
    assert live.dropped == 1


def test_after_three_dead_processes_captures_get_the_process_for_themselves() -> None:
    worker = SlowWorker(lambda _: Result("died", reason="killed by SIGSEGV"))
    live = PreviewReader(worker, at_most_hz=1e6)
    for number in range(STRIKES):
        assert live.offer(frame(number))
        worker.work()
    assert not live.offer(frame(9))
    assert "SIGSEGV" in live.problem
    assert "captures are still read" in live.problem


def test_a_frame_whose_bytes_do_not_fit_its_size_is_refused() -> None:
    live = PreviewReader(SlowWorker(answered))
    with pytest.raises(ValueError, match="give grey"):
        live.offer(Frame(number=0, rows=2, columns=3, channels=3, pixels=bytes(6)))


class Hearing:
    """Answers sounds as the reading process does, and can forget everything as a new process has."""

    def __init__(self) -> None:
        self.have = 0
        self.heard = np.zeros(0, np.float32)

    def __call__(self, request: ReadRequest) -> Result:
        live = request.live
        assert isinstance(live, LiveSound)
        if live.first > self.have and not live.whole:
            return Result("ok", body=msgspec.msgpack.encode(LiveAnswer(reading=None)))
        new = np.frombuffer(live.samples, "<f4")[max(0, self.have - live.first) :]
        self.heard = np.concatenate([self.heard, new])
        self.have = live.first + len(live.samples) // 4
        return answered(request, self.have)


def test_a_recording_is_heard_without_a_gap_however_slow_the_process() -> None:
    hearing = Hearing()
    worker = SlowWorker(hearing)
    live = PreviewSound(worker, Modality.HEART_SOUND, rate_hz=100, hop_s=0.5)
    sound = np.arange(1000, dtype="<f4") / 1000
    for number, block in enumerate(np.split(sound, 50)):
        live.offer(block.tobytes())
        if number % 7 == 6 and worker.waiting:
            worker.work()
    while worker.waiting:
        worker.work()
    np.testing.assert_array_equal(hearing.heard, sound[: len(hearing.heard)])
    assert len(hearing.heard) > 900
    assert live.newest is not None
    assert live.newest.number == len(hearing.heard)


def test_a_process_that_was_started_anew_gets_the_recording_again() -> None:
    hearing = Hearing()
    worker = SlowWorker(hearing)
    live = PreviewSound(worker, Modality.LUNG_SOUND, rate_hz=100, hop_s=0.5)
    live.offer(np.ones(100, "<f4").tobytes())
    worker.work()
    hearing.have, hearing.heard = 0, np.zeros(0, np.float32)
    live.offer(np.ones(100, "<f4").tobytes())
    worker.work()
    assert live.newest is not None
    assert live.newest.number == 100
    worker.work()
    assert (live.newest.number, hearing.have) == (200, 200)


def test_each_window_of_a_recording_is_run_once() -> None:
    shipped = load(shipped_models() / "lung-sound").description
    description = msgspec.structs.replace(shipped, gate=msgspec.structs.replace(shipped.gate, rules={}))

    def answer(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = next(one for one in description.graphs if one.name == graph).outputs
        rows = len(next(iter(inputs.values())))
        return {out.name: np.ones((rows, *(int(n) for n in out.shape[1:])), np.float32) for out in outputs}

    served = SimulatedServed(description, answer)
    live = LiveReader(Reader(SimulatedModels(served)))
    random = np.random.default_rng(0)
    sound = (0.1 * random.standard_normal(int(20 * RATE))).astype("<f4")
    runs = []
    for first in range(0, len(sound), int(RATE)):
        block = sound[first : first + int(RATE)]
        asked = LiveSound(session="s", rate_hz=RATE, first=first, samples=block.tobytes(), whole=first == 0)
        before = len(served.seen)
        given = live.answer(asked, Known(modality=Modality.LUNG_SOUND))
        assert given.reading is not None
        assert given.have == first + len(block)
        runs.append(sum(len(seen["samples"]) for seen in served.seen[before:] if "samples" in seen))
    assert given.reading.status == "read", given.reading.refusal
    assert max(runs) <= 2
    assert sum(runs) >= 8


def test_live_frames_and_sounds_are_read_by_the_real_process(tmp_path: Path) -> None:
    settings = ReadSettings(models=str(shipped_models()), cache=str(tmp_path), engine="cpu")
    worker = Worker("appliance.reading.process:serve", msgspec.msgpack.encode(settings))
    worker.start()
    try:
        frames = PreviewReader(worker, at_most_hz=1e6)
        random = np.random.default_rng(0)
        sounds = PreviewSound(worker, Modality.HEART_SOUND, rate_hz=RATE, hop_s=1.0)
        deadline = time.monotonic() + 120
        number = 0
        while time.monotonic() < deadline and not (frames.results > 3 and sounds.results > 3):
            pixels = random.integers(0, 255, (240, 320), np.uint8).tobytes()
            frames.offer(Frame(number=number, rows=240, columns=320, channels=1, pixels=pixels))
            sounds.offer((0.1 * random.standard_normal(int(RATE / 10))).astype("<f4").tobytes())
            number += 1
            time.sleep(0.02)
        assert frames.newest is not None, frames.problem
        assert sounds.newest is not None, sounds.problem
        assert frames.newest.reading.modality is Modality.LUNG_ULTRASOUND
        assert sounds.newest.reading.modality is Modality.HEART_SOUND
    finally:
        worker.stop()
