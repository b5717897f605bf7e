"""The worker's process may die of anything; every request is answered and the next one is read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from appliance.inference.worker import Result, Worker

ENTRY = "tests.worker_entries:serve"
MB = 1024**2


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(ENTRY, b"said: ", memory_limit=400 * MB)
    made.start()
    yield made
    made.stop(1.0)


def ask(worker: Worker, request: bytes, timeout_s: float = 20.0) -> Result:
    return worker.submit(request, 1, timeout_s).result(30)


def until(true: object, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def test_a_request_is_answered_by_a_nice_single_threaded_process_of_its_own(worker: Worker) -> None:
    assert ask(worker, b"hello").body == b"said: hello"
    pid, nice, threads = ask(worker, b"tell").body.split()
    assert int(pid) == worker.pid != os.getpid()
    assert int(nice) == os.nice(0) + 5
    assert threads == b"1"
    assert worker.alive
    assert len(ask(worker, b"big 5000000").body) == 5_000_000
    assert (worker.restarts, worker.answered) == (0, 3)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (b"crash", "SIGSEGV"),
        (b"kill", "SIGKILL"),
        (b"exit 3", "status 3"),
        (b"hold 1000000000", "out of memory within its limit"),
        (b"lose-device", "the GPU's context was lost"),
    ],
)
def test_a_request_that_kills_the_process_is_told_so_and_the_next_one_is_answered(
    worker: Worker, request_: bytes, why: str
) -> None:
    result = ask(worker, request_)
    assert result.status == "died"
    assert why in result.reason
    assert ask(worker, b"next").status == "ok"
    assert worker.restarts == 1


def test_an_endless_loop_is_stopped_at_its_time_limit(worker: Worker) -> None:
    assert ask(worker, b"warm").status == "ok"
    begun = time.monotonic()
    result = ask(worker, b"loop", timeout_s=0.5)
    assert (result.status, result.reason) == ("timed-out", "took longer than 0.5 s and was stopped")
    assert time.monotonic() - begun < 3
    assert ask(worker, b"next").status == "ok"


def test_an_exception_fails_its_request_and_the_process_lives(worker: Worker) -> None:
    pid = ask(worker, b"tell").body
    result = ask(worker, b"fail")
    assert (result.status, result.reason) == ("failed", "ValueError: this capture can't be decoded")
    assert ask(worker, b"tell").body == pid


def test_a_process_killed_from_outside_while_idle_is_started_again_and_nobody_is_blamed(worker: Worker) -> None:
    ask(worker, b"warm")
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: worker.alive and worker.pid != first)
    assert ask(worker, b"next").status == "ok"


def test_deaths_in_a_row_are_followed_by_longer_and_longer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.inference.worker._FIRST_DELAY_S", 0.05)
    waits: list[float] = []
    original = Worker._hear

    def hear(self: Worker, timeout_s: float | None, link: object = None) -> bool:
        if timeout_s is not None:
            waits.append(timeout_s)
        return original(self, timeout_s, link)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "_hear", hear)
    worker = Worker("tests.worker_entries:broken")
    worker.start()
    until(lambda: worker.restarts >= 4, 30)
    assert "did not start (left with status 1)" in worker.problem
    waiting = worker.submit(b"hello", 0, 1.0)
    worker.stop()
    assert waiting.result(1).status == "stopped"
    for turn, wait in enumerate(waits[:4]):
        assert 0.4 <= wait / (0.05 * 2**turn) <= 1.5


def test_a_process_that_never_gets_ready_is_killed_and_started_again() -> None:
    worker = Worker("tests.worker_entries:never_ready", start_limit_s=0.3)
    worker.start()
    until(lambda: worker.restarts >= 1)
    assert "not ready within 0.3 s" in worker.problem
    assert not worker.alive
    worker.stop(0.1)


def test_the_urgent_request_goes_before_the_bulk_that_came_first(worker: Worker) -> None:
    done: list[str] = []
    block = worker.submit(b"sleep 0.5", 0, 10)
    waiting: list[Future[Result]] = []
    for name, priority in (("bulk 1", 5), ("bulk 2", 5), ("nurse", 1), ("critical", 0)):
        future = worker.submit(name.encode(), priority, 10)
        future.add_done_callback(lambda _, name=name: done.append(name))
        waiting.append(future)
    for future in (block, *waiting):
        assert future.result(20).status == "ok"
    assert done == ["critical", "nurse", "bulk 1", "bulk 2"]


def test_a_stale_preview_is_dropped_for_a_newer_one_and_a_capture_never_is(worker: Worker) -> None:
    block = worker.submit(b"sleep 0.5", 0, 10)
    until(lambda: worker.busy_since is not None)
    stale = [worker.submit(b"frame", 3, 10, preview="probe") for _ in range(5)]
    captured = worker.submit(b"captured", 3, 10)
    newest = worker.submit(b"newest", 3, 10, preview="probe")
    assert [future.result(1).status for future in stale] == ["superseded"] * 5
    assert captured.result(10).status == newest.result(10).status == block.result(10).status == "ok"


def test_stopping_is_nobodys_death(worker: Worker) -> None:
    ask(worker, b"warm")
    running, waiting = worker.submit(b"sleep 30", 0, 60), worker.submit(b"next", 0, 60)
    until(lambda: worker.busy_since is not None)
    worker.stop(0.2)
    assert running.result(1).status == waiting.result(1).status == "stopped"
    assert worker.submit(b"late", 0, 1).result(1).status == "stopped"
    assert worker.pid is None


def test_a_leaking_process_is_replaced_between_two_requests() -> None:
    worker = Worker(ENTRY, memory_limit=400 * MB)
    worker.start()
    first = ask(worker, b"tell").body
    assert ask(worker, b"hold 330000000").status == "ok"
    assert ask(worker, b"tell").body != first
    worker.stop()


def test_the_process_dies_with_its_parent(tmp_path: Path) -> None:
    script = f"""
import os, signal
from appliance.inference.worker import Worker
worker = Worker({ENTRY!r})
worker.start()
worker.submit(b"hello", 0, 20).result(20)
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    pid = int(parent.stdout)
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_an_idle_worker_uses_no_processor(worker: Worker) -> None:
    ask(worker, b"warm")

    def spent() -> float:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, mine = spent(), time.thread_time()
    time.sleep(0.5)
    assert spent() - before <= 0.02
    assert time.thread_time() - mine < 0.05
    assert threading.active_count() >= 2
