"""The window fills a line and hardly more, over links from a satellite's to a cable's; on a simulated line."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import pytest

from appliance.sync.pacing import MINIMUM_CHUNK, PROBE_EVERY, Pacing

OVERHEAD = 240


class Outcome(NamedTuple):
    """Share of the line in use, longest queue in s after the start, seconds until the rate was known."""

    used: float
    queue: float
    known_after: float


def line(
    pacing: Pacing,
    rate: float,
    round_trip: float,
    *,
    seconds: float = 100.0,
    settle: float = 15.0,
    change: Callable[[float], float] = lambda _: 1.0,
) -> Outcome:
    """An endless backlog through a FIFO of ``rate`` bits a second times ``change(time)``."""
    now = free = worst = 0.0
    carried, token, known = 0, 0, float("inf")
    arrivals: list[tuple[float, int, int]] = []
    while now < seconds:
        while pacing.room():
            size, token = pacing.chunk + OVERHEAD, token + 1
            pacing.sent(token, size, now)
            free = max(free, now) + size * 8 / (rate * change(now))
            heapq.heappush(arrivals, (free + round_trip, token, size))
            if now > settle:
                worst = max(worst, free - now)
        now, arrived, size = heapq.heappop(arrivals)
        pacing.acknowledged(arrived, now)
        if now > settle:
            carried += size
        if known == float("inf") and pacing.rate * 8 > 0.9 * rate:
            known = now
    return Outcome(carried * 8 / (now - settle) / rate, worst, known)


LINKS = [(64e3, 0.8), (256e3, 0.3), (256e3, 0.8), (2e6, 0.1), (2e6, 0.8), (20e6, 0.05), (100e6, 0.002)]


@pytest.mark.parametrize(("rate", "round_trip"), LINKS)
def test_the_line_is_filled_and_the_queue_stays_short_in_time(rate: float, round_trip: float) -> None:
    outcome = line(Pacing(16384, 1000), rate, round_trip)
    assert outcome.used > 0.97
    assert outcome.queue < 0.2 + 2 * max(0.2, MINIMUM_CHUNK * 8 / rate) + round_trip, (
        "own queue, a piece in hand, and the refill after a probe"
    )
    assert outcome.known_after < 12


def test_pieces_are_what_the_line_carries_in_a_fifth_of_a_second() -> None:
    for rate, expected in ((128e3, 3200), (256e3, 6400), (20e6, 16384), (9.6e3, MINIMUM_CHUNK)):
        pacing = Pacing(16384, 100)
        line(pacing, rate, 0.3, seconds=60)
        assert pacing.chunk == pytest.approx(expected, rel=0.1)


def test_rate_and_window_survive_a_reconnect_as_a_first_guess() -> None:
    pacing = Pacing(16384, 100)
    line(pacing, 256e3, 0.8, seconds=60)
    window, rate = pacing.window, pacing.rate
    pacing.reset()
    assert (pacing.window, pacing.rate, pacing.flying) == (window, rate, 0)
    assert line(pacing, 256e3, 0.8, seconds=10, settle=1).used > 0.9


def test_a_line_that_grows_slower_is_noticed_and_its_queue_drains() -> None:
    pacing = Pacing(16384, 100)
    outcome = line(pacing, 256e3, 0.3, seconds=200, settle=130, change=lambda now: 1.0 if now < 100 else 0.25)
    assert outcome.used == pytest.approx(0.25, rel=0.05)
    assert outcome.queue < 2.5


def test_a_line_that_grows_faster_is_used() -> None:
    pacing = Pacing(16384, 100)
    outcome = line(pacing, 64e3, 0.3, seconds=200, settle=130, change=lambda now: 1.0 if now < 100 else 8.0)
    assert outcome.used > 0.93 * 8


def test_a_long_backlog_lets_the_line_run_empty_to_measure_the_way_anew() -> None:
    pacing = Pacing(16384, 100)
    pacing.sent(1, 1000, 0.0)
    pacing.sent(2, 1000, 0.0)
    pacing.acknowledged(1, 0.4)
    pacing.sent(3, 1000, PROBE_EVERY + 1)
    pacing.acknowledged(2, PROBE_EVERY + 1.4)
    assert not pacing.room(), "nothing more until what flies has landed"
    pacing.acknowledged(3, PROBE_EVERY + 2)
    assert pacing.room()


def test_small_messages_now_and_then_do_not_make_a_fast_line_look_slow() -> None:
    pacing = Pacing(16384, 100)
    line(pacing, 2e6, 0.1, seconds=30)
    pacing.reset()  # what was on its way is gone
    before, now = pacing.rate, 1000.0
    for token in range(1_000_000, 1_000_050):
        pacing.sent(token, 300, now)
        pacing.acknowledged(token, now + 0.11)
        now += 3.0
    assert pacing.rate == before


def test_an_acknowledgement_that_nobody_waits_for_changes_nothing() -> None:
    pacing = Pacing(16384, 100)
    window = pacing.window
    pacing.acknowledged(7, 1.0)
    assert (pacing.window, pacing.flying) == (window, 0)
