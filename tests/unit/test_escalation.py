"""A critical result without a human's word is raised again, by a clock that nobody sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.console.lines import Gatherer, Line
from appliance.health.escalation import Escalation
from appliance.protocol import messages
from appliance.protocol.messages import Command, ReviewMessage
from appliance.records import Moment, Triage
from appliance.store import audit
from appliance.store.store import Store
from tests.boxes import open_store, report

MINUTE = 60


def at(store: Store, minutes: float, boot: str = "boot", wall: str = "2026-01-01T00:00:00.000Z") -> None:
    moment = Moment(boot_id=boot, monotonic_ns=round(minutes * MINUTE * 1e9), wall=wall)
    store.now = lambda: moment


def line(store: Store, capture: str) -> Line:
    return Gatherer(store).line(store.captures.get(capture))


def review(store: Store, capture: str) -> None:
    message = ReviewMessage(
        id=messages.make_id("review", capture), capture_id=capture, decision="accept", reviewer="A", reviewed_at="now"
    )
    store.journal.write(lambda tx: store.inbox.take(tx, message, "0" * 64, ""))


def command(kind: str) -> Callable[[Store, str], None]:
    def take(store: Store, capture: str) -> None:
        message = Command(id=messages.make_id("command", capture, kind), kind=kind, capture_id=capture)  # type: ignore[arg-type]
        store.journal.write(lambda tx: store.inbox.take(tx, message, "0" * 64, ""))

    return take


def answer(store: Store, capture: str) -> None:
    store.note("agreement", capture, "disagree")


def test_a_critical_result_is_raised_after_its_time_shown_and_audited(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 100)
    critical = report(store, b"critical", Triage.CRITICAL)
    report(store, b"urgent", Triage.URGENT)
    one = Escalation(store, 15)
    at(store, 114.9)
    assert one.tend() == []
    assert not line(store, critical).escalated
    at(store, 115)
    assert one.tend() == [critical]
    shown = line(store, critical)
    assert (shown.unseen, shown.escalated) == (True, True)
    assert [row["subject"] for row in audit.entries(store.journal) if row["event"] == "raised"] == [critical]
    assert audit.verify(store.journal) is None
    store.close()


def test_it_is_raised_again_with_growing_pauses_and_never_forgotten(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 0)
    critical = report(store, b"critical", Triage.CRITICAL)
    one, times = Escalation(store, 10), []
    for minute in range(1, 24 * 60):
        at(store, minute)
        if one.tend():
            times.append(minute)
    assert times[:5] == [10, 30, 70, 150, 310]
    assert {later - earlier for earlier, later in itertools.pairwise(times[4:])} == {160}
    assert store.captures.get(critical).raised == len(times)
    store.close()


@pytest.mark.parametrize(
    "seen", [review, command("acknowledged"), answer], ids=["reviewed", "acknowledged", "answered at the bedside"]
)
def test_a_humans_word_ends_it(tmp_path: Path, seen: Callable[[Store, str], None]) -> None:
    store = open_store(tmp_path)
    at(store, 0)
    critical = report(store, b"critical", Triage.CRITICAL)
    one = Escalation(store, 15)
    at(store, 20)
    assert one.tend() == [critical]
    seen(store, critical)
    at(store, 200)
    assert one.tend() == []
    assert store.captures.get(critical).raised == 0
    assert not line(store, critical).escalated
    store.close()


def test_an_escalation_by_the_hub_is_not_a_humans_word(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 0)
    critical = report(store, b"critical", Triage.CRITICAL)
    command("escalate")(store, critical)
    at(store, 20)
    assert Escalation(store, 15).tend() == [critical]
    store.close()


def test_a_wall_clock_that_jumps_raises_nothing_early_and_keeps_nothing_back(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 0, wall="1970-01-01T00:00:00.000Z")
    critical = report(store, b"critical", Triage.CRITICAL)
    one = Escalation(store, 15)
    at(store, 5, wall="2036-01-01T00:00:00.000Z")
    assert one.tend() == []
    at(store, 16, wall="1970-01-01T00:00:00.000Z")
    assert one.tend() == [critical]
    store.close()


def test_after_a_restart_of_the_box_the_time_counts_from_its_start(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 10_000, boot="before")
    critical = report(store, b"critical", Triage.CRITICAL)
    at(store, 3, boot="after")
    one = Escalation(store, 15)
    assert one.tend() == []
    at(store, 15, boot="after")
    assert one.tend() == [critical]
    store.close()


def test_nothing_is_raised_when_that_is_switched_off(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 0)
    report(store, b"critical", Triage.CRITICAL)
    at(store, 10_000)
    assert Escalation(store, 0).tend() == []
    store.close()
