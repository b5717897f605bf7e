"""Time, honestly: a clock that wakes in 1970, runs ten years ahead or jumps confuses no order and keeps no care back."""

from __future__ import annotations

import datetime as dt
import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.capture.intake import Facts, Intake
from appliance.config import LinkConfig
from appliance.health.clock import DRIFT, Clock, rfc3339
from appliance.protocol import messages
from appliance.protocol.messages import Receipt
from appliance.records import Modality, Patient
from appliance.store import audit
from appliance.store.store import Store
from appliance.sync.inbox import Downlink
from appliance.sync.uplink import Uplink
from tests.boxes import DEVICE, open_store

NOW = dt.datetime(2026, 11, 23, tzinfo=dt.timezone.utc).timestamp()
TEN_YEARS = 10 * 365.25 * 86400


class Quartz:
    """A box's two clocks under the test's hand."""

    def __init__(self, wall: float) -> None:
        self.wall, self.monotonic = wall, 5.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def clock(self, boot: str = "boot-1") -> Clock:
        return Clock(boot, lambda: self.wall, lambda: round(self.monotonic * 1e9))


@pytest.mark.parametrize("wrong", [0.0, NOW + TEN_YEARS, NOW - 3600], ids=["1970", "ten years ahead", "an hour late"])
def test_a_wrong_clock_says_that_it_does_not_know_until_a_source_is_trusted(wrong: float) -> None:
    quartz = Quartz(wrong)
    clock = quartz.clock()
    before = clock.now()
    assert (before.wall, before.uncertainty_s) == (rfc3339(wrong), None)
    assert clock.anchor(NOW, 2.0)
    quartz.pass_by(60)
    after = clock.now()
    assert after.wall == rfc3339(NOW + 60)
    assert after.uncertainty_s == pytest.approx(2.0 + 60 * DRIFT, abs=1e-3)
    assert after.monotonic_ns - before.monotonic_ns == 60e9, "order and distance are those of the monotonic clock"
    assert before.wall == rfc3339(wrong), "what was given out is never rewritten"


@pytest.mark.parametrize("jump", [TEN_YEARS, -TEN_YEARS, 3600.0, -3600.0])
def test_a_jump_of_the_wall_clock_moves_neither_time_nor_trust_once_anchored(jump: float) -> None:
    quartz = Quartz(NOW)
    clock = quartz.clock()
    clock.anchor(NOW, 1.0)
    quartz.pass_by(10)
    quartz.wall += jump
    assert clock.now().wall == rfc3339(NOW + 10)
    assert clock.uncertainty() == pytest.approx(1.0, abs=0.01)


def test_a_better_source_replaces_a_worse_one_and_not_the_other_way_round() -> None:
    quartz = Quartz(0.0)
    clock = quartz.clock()
    assert clock.anchor(NOW, 30.0)
    assert not clock.anchor(NOW + 500, 60.0)
    assert clock.anchor(NOW + 3, 1.0)
    assert clock.now().wall == rfc3339(NOW + 3)
    quartz.pass_by(86400)  # a day of drift makes an old anchor worse than a fresh one
    assert clock.anchor(NOW + 86400, 5.0)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-23T00:00:00", "1999-01-01T00:00:00Z", "9" * 40])
def test_a_time_that_is_none_or_cannot_be_is_not_believed(text: str) -> None:
    clock = Quartz(0.0).clock()
    assert not clock.anchor_text(text, 1.0)
    assert clock.uncertainty() is None


def test_the_hubs_receipts_set_a_clock_that_woke_in_1970(tmp_path: Path) -> None:
    clock = Quartz(0.0).clock()
    store = open_store(tmp_path)
    uplink = Uplink(store, LinkConfig(), lambda: 0.0, lambda: clock.now().wall[:10])
    downlink = Downlink(store, uplink, clock, lambda _: None)
    downlink.received("receipt", messages.encode(Receipt(items=[], time=rfc3339(NOW), uncertainty_s=0.5)))
    assert clock.now().wall == rfc3339(NOW)
    assert clock.uncertainty() == pytest.approx(2.5)
    store.close()


def keep(store: Store, content: bytes) -> str:
    with Intake(store, DEVICE).open() as incoming:
        incoming.write(content)
        facts = Facts(modality=Modality.CHEST_XRAY, media_type="image/png", source="test", patient=Patient())
        return incoming.keep(facts).capture_id


@settings(max_examples=8, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, -TEN_YEARS, TEN_YEARS, -1.0, 7200.0]), st.booleans(), st.booleans()),
        min_size=2,
        max_size=12,
    )
)
def test_order_never_comes_from_the_wall_clock(steps: list[tuple[float, bool, bool]]) -> None:
    """Each step: a jump of the wall clock, whether the box is switched off and on, whether a trusted time comes."""
    with tempfile.TemporaryDirectory() as folder:
        quartz, boots = Quartz(0.0), 1
        clock = quartz.clock()
        store = open_store(Path(folder))
        kept = []
        for number, (jump, restart, trusted) in enumerate(steps):
            quartz.pass_by(1)
            quartz.wall = max(0.0, quartz.wall + jump)
            if restart:
                store.close()
                boots += 1
                quartz.monotonic = 5.0
                clock = quartz.clock(f"boot-{boots}")
                store = open_store(Path(folder))
            if trusted:
                clock.anchor(NOW + number, 1.0)
            store.now = clock.now
            kept.append(keep(store, bytes([number])))
        assert store.captures.next(("kept",)) == kept
        assert [entry.capture.id for entry in store.captures.latest()] == kept[::-1]
        moments = [entry.capture.received for entry in store.captures.latest()][::-1]
        for earlier, later in itertools.pairwise(moments):
            assert earlier.boot_id != later.boot_id or earlier.monotonic_ns < later.monotonic_ns
        assert audit.verify(store.journal) is None
        store.close()
