"""The notify protocol, for real over a socket, and what feeds the watchdog."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.health.notify import Notifier, from_environment, watchdog_period
from appliance.health.watchdog import Watchdog


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def next(self, seconds: float = 2.0) -> dict[str, str]:
        self.socket.settimeout(seconds)
        lines = self.socket.recv(65536).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def all_for(self, seconds: float) -> list[dict[str, str]]:
        until, heard = time.monotonic() + seconds, []
        while (left := until - time.monotonic()) > 0:
            try:
                heard.append(self.next(left))
            except TimeoutError:
                break
        return heard


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify")[-80:] if request.param == "abstract" else str(tmp_path / "notify")
    one = Manager(f"@{name}" if request.param == "abstract" else name)
    yield one
    one.socket.close()


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class StageUnderTest:
    def __init__(self) -> None:
        self.counter, self.has_work = 0, False

    def __call__(self) -> tuple[int, bool]:
        return self.counter, self.has_work


def simulated(patience: float = 60.0) -> tuple[Watchdog, dict[str, StageUnderTest], Clock]:
    clock, stages = Clock(), {"reading": StageUnderTest(), "link": StageUnderTest()}
    return Watchdog(stages, Notifier(), patience, period_s=30.0, monotonic=clock), stages, clock


def test_the_manager_hears_ready_status_and_stopping_as_the_protocol_says(manager: Manager) -> None:
    notify = from_environment({"NOTIFY_SOCKET": manager.address})
    assert notify.ready("4 models ready")
    assert manager.next() == {"READY": "1", "STATUS": "4 models ready"}
    notify.status("two\nlines=here\nREADY=1")
    assert manager.next() == {"STATUS": "two lines=here READY=1"}
    notify.extend(1.5)
    assert manager.next() == {"EXTEND_TIMEOUT_USEC": "1500000"}
    notify.stopping()
    assert manager.next() == {"STOPPING": "1", "STATUS": "stopping"}
    notify.close()


def test_the_start_timeout_is_extended_while_models_are_prepared_and_not_after(manager: Manager) -> None:
    notify = Notifier(manager.address)
    with notify.preparing("building the engine of chest-xray", every_s=0.05):
        time.sleep(0.18)
    heard = manager.all_for(0.2)
    assert heard[0] == {"STATUS": "building the engine of chest-xray"}
    assert 3 <= sum(one.get("EXTEND_TIMEOUT_USEC") == "150000" for one in heard) <= 5


def test_preparation_that_hangs_is_left_to_the_manager_after_its_limit(manager: Manager) -> None:
    notify = Notifier(manager.address)
    with notify.preparing("hangs", every_s=0.05, limit_s=0.1):
        time.sleep(0.3)
    assert sum("EXTEND_TIMEOUT_USEC" in one for one in manager.all_for(0.1)) == 2


def test_without_a_manager_nothing_is_sent_and_nothing_fails(tmp_path: Path) -> None:
    assert not from_environment({}).there
    assert not from_environment({}).ready("")
    gone = Notifier(str(tmp_path / "nobody"))
    assert not gone.alive()
    assert gone.lost == 1


def test_a_manager_that_does_not_read_never_blocks_the_box(manager: Manager) -> None:
    notify = Notifier(manager.address)
    began = time.monotonic()
    for _ in range(5000):
        notify.alive()
    assert time.monotonic() - began < 5
    assert notify.lost > 0


def test_the_ping_period_is_the_managers_and_only_for_the_process_it_means() -> None:
    assert watchdog_period({"WATCHDOG_USEC": "30000000"}) == 30.0
    assert watchdog_period({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 30.0
    assert watchdog_period({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, pid=2) is None
    assert watchdog_period({"WATCHDOG_USEC": "soon"}) is None
    assert watchdog_period({}) is None
    assert Watchdog({}, Notifier(), 60, period_s=30.0).interval_s == 15.0


def test_an_idle_box_keeps_its_ping(manager: Manager) -> None:
    idle = StageUnderTest()
    watchdog = Watchdog({"reading": idle}, Notifier(manager.address), 0.05, period_s=0.1)
    watchdog.start()
    heard = manager.all_for(0.5)
    watchdog.stop()
    assert heard.count({"WATCHDOG": "1"}) == len(heard) >= 5


def test_a_stalled_stage_stops_the_ping_and_progress_brings_it_back(manager: Manager) -> None:
    stuck = StageUnderTest()
    watchdog = Watchdog({"reading": stuck, "link": StageUnderTest()}, Notifier(manager.address), 0.2, period_s=0.1)
    watchdog.start()
    assert manager.next() == {"WATCHDOG": "1"}
    stuck.has_work = True
    time.sleep(0.4)
    heard = manager.all_for(0.01)
    assert {"STATUS": "no progress for 0.2 s: reading"} in heard
    assert {"WATCHDOG": "1"} not in manager.all_for(0.4), "a stalled stage must silence the ping"
    stuck.counter += 1
    assert {"WATCHDOG": "1"} in manager.all_for(0.3)
    watchdog.stop()
    manager.all_for(0.05)
    assert manager.all_for(0.2) == []


def test_a_stage_gets_its_patience_from_when_its_work_appeared_not_from_its_last_work() -> None:
    watchdog, stages, clock = simulated(patience=60)
    watchdog.look()
    clock.now += 3600  # an hour with nothing to do
    assert watchdog.look() == ()
    stages["reading"].has_work = True
    clock.now += 60
    assert watchdog.look() == ()
    clock.now += 1
    assert watchdog.look() == ("reading",)


def test_a_stage_that_works_slowly_but_moves_is_alive() -> None:
    watchdog, stages, clock = simulated(patience=60)
    stages["reading"].has_work = True
    for _ in range(100):
        stages["reading"].counter += 1
        clock.now += 59
        assert watchdog.look() == ()


def test_one_busy_stage_does_not_hide_another_that_stands_still() -> None:
    watchdog, stages, clock = simulated(patience=60)
    stages["reading"].has_work = stages["link"].has_work = True
    for _ in range(5):
        watchdog.look()
        stages["link"].counter += 1
        clock.now += 30
    assert watchdog.look() == ("reading",)


def test_a_stage_that_cannot_be_asked_counts_as_stalled() -> None:
    clock = Clock()

    def broken() -> tuple[int, bool]:
        raise RuntimeError("gone")

    watchdog = Watchdog({"journal": broken}, Notifier(), 60, period_s=30, monotonic=clock)
    assert watchdog.look() == ()
    clock.now += 61
    assert watchdog.look() == ("journal",)
    assert watchdog.failures == 2


def test_a_stage_whose_answer_never_comes_silences_the_ping(manager: Manager) -> None:
    free = threading.Event()

    def hangs() -> tuple[int, bool]:
        free.wait(10)
        return 0, False

    watchdog = Watchdog({"journal": hangs}, Notifier(manager.address), 0.1, period_s=0.1)
    watchdog.start()
    assert manager.all_for(0.4) == []
    free.set()
    watchdog.stop()
