"""What may leave the box, when, in which order, and what stays whatever happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.protocol import messages
from appliance.protocol.messages import Command, ReviewMessage
from appliance.records import CaptureState, Moment, Triage
from appliance.store import audit
from appliance.store.files import RealFiles
from appliance.store.retention import Retention
from appliance.store.store import MB, Store
from tests.boxes import keep, open_store, report
from tests.crashing_files import CrashingFiles, PowerCut

DAY = "2026-{:02}-{:02}T08:00:00.000Z"


class Disk(RealFiles):
    """A disk whose free space is said by the test: what it had less what the vault holds."""

    def __init__(self, room: int) -> None:
        self.room = room

    def free(self, path: Path) -> int:
        return self.room - sum(one.stat().st_size for one in (path / "vault").rglob("*.blob"))


def at(store: Store, month: int, day: int, uncertainty: float | None = 1.0) -> None:
    moment = Moment(boot_id="boot", monotonic_ns=1, wall=DAY.format(month, day), uncertainty_s=uncertainty)
    store.now = lambda: moment


def deliver(store: Store, capture: str) -> None:
    for item in store.outbox.waiting():
        if item.capture_id == capture:
            store.journal.write(lambda tx, i=item: store.outbox.close(tx, i.id, i.sha256, "delivered"))
    for transfer, _ in store.transfers.of_capture(capture):
        store.journal.write(lambda tx, t=transfer: store.transfers.close(tx, t.id, t.sha256, "delivered"))
    assert store.journal.write(lambda tx: store.captures.delivered_if_complete(tx, capture))


def delivered(store: Store, content: bytes, triage: Triage = Triage.ROUTINE, original: bytes = b"") -> str:
    capture = report(store, content, triage, original)
    deliver(store, capture)
    return capture


def review(store: Store, capture: str, triage: Triage | None = None) -> None:
    message = ReviewMessage(
        id=messages.make_id("review", capture, str(triage)),
        capture_id=capture,
        decision="accept",
        reviewer="Dr. A",
        reviewed_at=DAY.format(1, 1),
        triage=triage,
    )
    store.journal.write(lambda tx: store.inbox.take(tx, message, "0" * 64, ""))


def acknowledge(store: Store, capture: str) -> None:
    message = Command(id=messages.make_id("command", capture), kind="acknowledged", capture_id=capture)
    store.journal.write(lambda tx: store.inbox.take(tx, message, "0" * 64, ""))


def test_what_the_hub_has_confirmed_goes_after_its_days_and_its_reading_stays(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 1, 1)
    old = delivered(store, b"old", original=b"preview of the old one")
    at(store, 3, 1)
    young = delivered(store, b"young")
    waiting = report(store, b"not confirmed")
    at(store, 4, 2)
    assert Retention(store, 90).tend() == [old]
    entry = store.captures.get(old)
    assert (entry.state, entry.removed) == (CaptureState.DELIVERED, DAY.format(4, 2))
    assert store.captures.reading(old) is not None
    assert set(store.vault.blobs()) == {store.captures.get(one).capture.sha256 for one in (young, waiting)}
    events = [(row["event"], row["subject"], row["detail"]) for row in audit.entries(store.journal)]
    assert ("removed", old, "age 3 bytes") in events
    assert audit.verify(store.journal) is None
    assert Retention(store, 90).tend() == []
    at(store, 12, 31)
    assert Retention(store, 90).tend() == [young]
    assert store.vault.read(store.captures.get(waiting).capture.sha256) == b"not confirmed"
    store.close()


def test_a_removed_capture_is_no_damage_and_the_same_bytes_again_are_still_the_same_capture(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 1, 1)
    capture = delivered(store, b"content", original=b"picture")
    at(store, 12, 1)
    assert Retention(store, 1).tend() == [capture]
    store.close()
    store = open_store(tmp_path)
    assert store.repair.clean
    again = keep(store, b"content")
    assert (again.capture_id, again.duplicate) == (capture, True)
    store.journal.write(lambda tx: store.captures.reopen(tx, capture))
    store.close()
    store = open_store(tmp_path)
    assert not store.repair.missing, "sent again or not: its files went on purpose"
    store.close()


def test_a_box_that_does_not_know_the_time_removes_nothing_by_age(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 1, 1)
    delivered(store, b"content")
    at(store, 12, 1, uncertainty=None)
    assert Retention(store, 1).tend() == []
    store.close()


def test_a_capture_from_before_the_time_was_known_is_as_old_as_the_next_one_that_knew_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 1, 1, uncertainty=None)  # a clock that stands: it says January and it is June
    lost = [delivered(store, bytes([number])) for number in range(60)]
    at(store, 6, 1)
    known = delivered(store, b"known")
    at(store, 6, 20)
    assert Retention(store, 30).tend() == []
    at(store, 7, 20)
    retention = Retention(store, 30)
    assert retention.tend() == lost[:50]
    assert retention.tend() == [*lost[50:], known]
    store.close()


@pytest.mark.parametrize("seen", [acknowledge, review], ids=["acknowledged", "reviewed"])
def test_a_critical_capture_stays_until_a_human_has_taken_note(
    tmp_path: Path, seen: Callable[[Store, str], None]
) -> None:
    store = open_store(tmp_path)
    at(store, 1, 1)
    capture = delivered(store, b"critical", Triage.CRITICAL)
    at(store, 12, 1)
    assert Retention(store, 1).tend() == []
    seen(store, capture)
    assert Retention(store, 1).tend() == [capture]
    store.close()


def test_what_the_reviewer_called_critical_stays_until_the_bedside_has_answered(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 1, 1)
    capture = delivered(store, b"looked harmless")
    review(store, capture, Triage.CRITICAL)
    at(store, 12, 1)
    assert Retention(store, 1).tend() == []
    store.note("agreement", capture, "agree")
    assert Retention(store, 1).tend() == [capture]
    store.close()


def test_near_the_watermark_the_oldest_go_first_and_only_as_many_as_needed(tmp_path: Path) -> None:
    disk = Disk(room=30 * MB)
    store = open_store(tmp_path, disk, refuse_below=16)
    at(store, 1, 1)
    kept = report(store, os.urandom(MB))
    unseen = delivered(store, os.urandom(MB), Triage.CRITICAL)
    captures = [delivered(store, os.urandom(MB)) for _ in range(5)]
    retention = Retention(store, 3650)
    assert disk.free(tmp_path) < 24 * MB
    gone = retention.tend()
    assert gone == captures[:2], "23 MB were free, 24 are wanted; the blobs' own headers cost the second"
    assert disk.free(tmp_path) >= 24 * MB
    disk.room = 0
    assert retention.tend() == captures[2:], "what the hub has not confirmed, or nobody has seen, never goes"
    assert {one.capture.id for one in store.captures.latest() if not one.removed} == {kept, unseen}
    store.close()


def test_a_preview_that_two_captures_share_stays_while_one_of_them_does(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    at(store, 1, 1)
    old = delivered(store, b"a", original=b"the same picture")
    at(store, 5, 1)
    young = report(store, b"b", original=b"the same picture")
    at(store, 6, 1)
    assert Retention(store, 60).tend() == [old]
    ((transfer, _),) = store.transfers.of_capture(young)
    assert store.vault.read(transfer.sha256) == b"the same picture"
    store.close()


def test_a_power_cut_at_any_operation_of_a_removal_leaves_it_done_or_not_begun(tmp_path: Path) -> None:
    counting = CrashingFiles(at=-1)
    total = 0
    for at_operation in range(60):
        folder = tmp_path / str(at_operation)
        store = open_store(folder)
        at(store, 1, 1)
        captures = [delivered(store, bytes([number]), original=bytes([number, 1])) for number in range(3)]
        store.close()
        files = counting if at_operation == 0 else CrashingFiles(at_operation)
        store = None
        try:
            store = open_store(folder, files)
            at(store, 12, 1)
            Retention(store, 1).tend()
            store.close()
        except PowerCut:
            if store is not None:
                os.close(store._lock)
        total += 1
        store = open_store(folder)
        here = {one.capture.sha256 for one in store.captures.latest() if not one.removed}
        there = set(store.vault.blobs())
        assert here <= there
        assert store.repair.clean
        assert len(there) == 2 * len(here), "every capture has both of its files or none"
        assert set(captures) == {one.capture.id for one in store.captures.latest()}
        store.close()
        if at_operation and at_operation >= counting.count:
            break
    assert total > 5


def test_the_encoded_copy_of_an_original_goes_once_the_hub_has_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    capture = report(store, b"original")
    blob = store.vault.put(b"encoded")
    store.journal.write(lambda tx: store.transfers.put_due(tx, capture, 9, critical=False))
    due = store.transfers.next_due()
    assert due is not None
    fields = {"sha256": blob.sha256, "size": blob.size, "media_type": "application/dicom", "encoding": "bedside-parts"}
    store.journal.write(lambda tx: store.transfers.prepared(tx, due, **fields))
    Retention(store, 90).tend()
    assert store.vault.has(blob.sha256), "it waits for the link"
    deliver(store, capture)
    Retention(store, 90).tend()
    assert not store.vault.has(blob.sha256)
    assert store.vault.read(store.captures.get(capture).capture.sha256) == b"original"
    store.close()
    store = open_store(tmp_path)
    assert store.repair.clean
    store.journal.write(lambda tx: store.transfers.reopen(tx, capture))
    again = store.transfers.next_due()
    assert again is not None
    assert again.capture_id == capture, "asked for again, it is prepared again"
    store.close()


def test_a_capture_is_not_delivered_while_its_original_is_due(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    capture = report(store, b"original")
    store.journal.write(lambda tx: store.transfers.put_due(tx, capture, 9, critical=False))
    (item,) = store.outbox.waiting()
    store.journal.write(lambda tx: store.outbox.close(tx, item.id, item.sha256, "delivered"))
    assert not store.journal.write(lambda tx: store.captures.delivered_if_complete(tx, capture))
    assert store.transfers.totals() == (1, len(b"original"))
    store.close()
