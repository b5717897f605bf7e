"""The ring between the sound card and the recorder loses nothing silently, whatever the order of puts and takes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.capture.stethoscope_ring import BYTES, Ring

STEPS = st.lists(st.tuples(st.sampled_from(["put", "take"]), st.integers(1, 40)), max_size=120)


def block(first: int, count: int) -> bytes:
    """Samples that count up, so that each can be told."""
    return np.arange(first, first + count, dtype="<i4").tobytes()


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, frames=st.integers(8, 64))
def test_every_sample_comes_out_once_in_its_place_or_is_counted_in_a_gap(
    steps: list[tuple[str, int]], frames: int
) -> None:
    ring, put, out, seen_lost = Ring(frames), 0, 0, 0

    def check(parts: list[bytes | int]) -> None:
        nonlocal out, seen_lost
        for part in parts:
            if isinstance(part, int):
                out += part
                seen_lost += part
            else:
                values = np.frombuffer(part, "<i4")
                assert values.tolist() == list(range(out, out + values.size))
                out += values.size

    for what, count in steps:
        if what == "put":
            ring.put(block(put, count), count, overflow=False)
            put += count
        else:
            check(list(ring.take(count)))
    check(list(ring.take(frames, last=True)))
    check(list(ring.take(frames, last=True)))
    assert out == put
    assert seen_lost == ring.lost


def test_a_gap_is_told_only_when_it_no_longer_grows() -> None:
    ring = Ring(10)
    ring.put(block(0, 10), 10, overflow=False)
    ring.put(block(10, 3), 3, overflow=False)
    assert list(ring.take(100)) == [block(0, 10)]
    assert list(ring.take(100)) == []
    ring.put(block(13, 11), 11, overflow=False)  # larger than the ring: it grows
    assert list(ring.take(100)) == []
    ring.put(block(24, 2), 2, overflow=False)
    assert list(ring.take(100)) == [14, block(24, 2)]


def test_more_gaps_than_there_are_places_for_lose_no_time() -> None:
    ring = Ring(100)
    for number in range(200):
        ring.put(block(number, 1), 1, overflow=False)
        ring.put(bytes(101 * BYTES), 101, overflow=False)
    told = list(ring.take(1000, last=True))
    assert sum(part if isinstance(part, int) else len(part) // BYTES for part in told) == 200 * 102


def test_the_cards_own_overflows_are_counted() -> None:
    ring = Ring(100)
    for number in range(10):
        ring.put(block(number, 1), 1, overflow=number % 3 == 0)
    assert ring.overflows == 4


@pytest.mark.parametrize("size", [64, 700])
def test_two_threads_at_full_speed_pass_every_sample_or_tell_the_gap(size: int) -> None:
    ring, total, done = Ring(1000), 60_000, threading.Event()

    def put() -> None:
        for first in range(0, total, size):
            count = min(size, total - first)
            ring.put(block(first, count), count, overflow=False)
        done.set()

    thread = threading.Thread(target=put)
    thread.start()
    at = 0
    while True:
        last = done.is_set()
        for part in ring.take(1000, last=last):
            if isinstance(part, int):
                at += part
            else:
                values = np.frombuffer(part, "<i4")
                assert values[0] == at
                assert np.all(np.diff(values) == 1)
                at += values.size
        if last and at >= total:
            break
    thread.join()
    assert at == total
