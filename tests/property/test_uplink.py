"""What the scheduler promises, against a simulated hub with every kind of fault."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.config import LinkConfig
from appliance.protocol import messages
from appliance.protocol.messages import ReceiptItem
from appliance.records import CaptureState, Triage
from appliance.store import usage
from appliance.store.outbox import Priority
from appliance.store.store import Store
from appliance.sync.uplink import AWAITING, GRACE, Uplink
from tests.boxes import open_store, report
from tests.hub_simulator import HubSimulator, Time

LEVELS = st.sampled_from(list(Triage))


def make_uplink(store: Store, time: Time, **config: object) -> Uplink:
    return Uplink(store, LinkConfig(**config), time, lambda: "2026-01-01")  # type: ignore[arg-type]


def drain(uplink: Uplink, hub: HubSimulator, time: Time, store: Store, rounds: int = 3000) -> bool:
    for _ in range(rounds):
        uplink.step()
        hub.exchange(uplink)
        time.now += 0.05
        if store.outbox.totals()[0] == 0 and store.transfers.totals()[0] == 0:
            return True
    return False


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    levels=st.lists(LEVELS, min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 200_000), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    cuts=st.integers(0, 5),
)
def test_everything_arrives_once_and_whole_whatever_is_lost_doubled_or_cut(
    levels: list[Triage], sizes: list[int], seed: int, cuts: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder))
        time, hub = Time(), HubSimulator(seed, loss=0.2, doubling=0.2, shuffle=True)
        originals = [os.urandom(size) for size in sizes]
        captures = []
        for number, level in enumerate(levels):
            original = originals[number] if number < len(originals) else b""
            captures.append(report(store, f"capture {number}".encode(), level, original))
        uplink = make_uplink(store, time, receipt_timeout=1.0)
        for _ in range(cuts):
            uplink.connected(hub)
            time.now += GRACE
            for _ in range(hub.chance.randrange(4)):
                uplink.step()
                hub.exchange(uplink)
                time.now += 0.05
            uplink.step()
            hub.cut(uplink)
        uplink.connected(hub)
        arrived = drain(uplink, hub, time, store)
        states = {store.captures.get(one).state for one in captures}
        store.close()
    assert arrived
    assert states == {CaptureState.DELIVERED}
    assert len(hub.results) == len(captures)
    assert set(hub.blobs.values()) >= set(originals[: len(captures)])


def test_a_critical_result_overtakes_a_half_sent_image_at_the_next_chunk(tmp_path: Path) -> None:
    store, time, hub = open_store(tmp_path), Time(), HubSimulator()
    report(store, b"old", Triage.ROUTINE, os.urandom(500_000))
    uplink = make_uplink(store, time)
    uplink.connected(hub)
    time.now += GRACE
    for _ in range(3):
        uplink.step()
        hub.exchange(uplink)
    sent_before = len(hub.order)
    assert 0 < hub.received_bytes < 500_000, "the image should be half sent"
    report(store, b"new", Triage.CRITICAL)
    uplink.changed()
    uplink.step()
    hub.exchange(uplink)
    after = hub.order[sent_before:]
    assert after[0].startswith("result:"), "the critical result was the next thing sent"
    assert any(one.startswith("blob:") for one in after[1:]), "and the image went on"
    store.close()


def test_results_leave_in_the_order_of_urgency_then_of_arrival(tmp_path: Path) -> None:
    store, time, hub = open_store(tmp_path), Time(), HubSimulator()
    levels = [Triage.ROUTINE, Triage.CRITICAL, Triage.URGENT, Triage.ROUTINE, Triage.CRITICAL]
    captures = [report(store, bytes([number]), level) for number, level in enumerate(levels)]
    uplink = make_uplink(store, time)
    uplink.connected(hub)
    drain(uplink, hub, time, store)
    wanted = [captures[index] for index in (1, 4, 2, 0, 3)]
    assert hub.order == [messages.make_id("result", "site-1/box-1", one, "0") for one in wanted]
    store.close()


def test_a_receipt_with_another_hash_closes_nothing(tmp_path: Path) -> None:
    store, time = open_store(tmp_path), Time()
    capture = report(store, b"x")
    uplink = make_uplink(store, time)
    item = store.outbox.waiting()[0]
    uplink.receipts([ReceiptItem(id=item.id, sha256="0" * 64, status="stored")])
    assert store.outbox.totals()[0] == 1
    assert store.captures.get(capture).state is CaptureState.REPORTED
    uplink.receipts([ReceiptItem(id=item.id, sha256=item.sha256, status="stored")])
    assert store.captures.get(capture).state is CaptureState.DELIVERED
    store.close()


def test_a_conflict_is_set_aside_and_a_refusal_goes_on_waiting(tmp_path: Path) -> None:
    store, time = open_store(tmp_path), Time()
    for content in (b"a", b"b"):
        report(store, content)
    uplink = make_uplink(store, time)
    first, second = store.outbox.waiting()
    uplink.receipts([ReceiptItem(id=first.id, sha256=first.sha256, status="conflict", reason="other content")])
    uplink.receipts([ReceiptItem(id=second.id, sha256=second.sha256, status="refused", reason="disk full")])
    assert store.outbox.state(first.id) == "conflict"
    assert store.outbox.state(second.id) == "waiting"
    assert {row["reason"] for row in store.outbox.set_aside()} == {"other content", "disk full"}
    store.close()


def test_the_daily_budget_stops_everything_but_critical_results(tmp_path: Path) -> None:
    store, time, hub = open_store(tmp_path), Time(), HubSimulator()
    report(store, b"big", Triage.ROUTINE, os.urandom(3 << 20))
    uplink = make_uplink(store, time, daily_budget=1)
    uplink.connected(hub)
    assert not drain(uplink, hub, time, store, 300)
    assert hub.received_bytes < 1.1 * (1 << 20)
    critical = report(store, b"critical", Triage.CRITICAL)
    report(store, b"routine", Triage.ROUTINE)
    uplink.changed()
    drain(uplink, hub, time, store, 50)
    assert store.captures.get(critical).state is CaptureState.DELIVERED
    assert store.outbox.totals()[0] == 1, "the routine result waits for tomorrow"
    uplink.disconnected()
    store.journal.write(lambda tx: None)  # whatever was submitted before is written
    sent, for_criticals = usage.of_day(store.journal, "2026-01-01")
    assert sent - for_criticals < 1.1 * (1 << 20)
    assert for_criticals > 0
    store.close()


def test_after_a_cut_little_is_sent_twice(tmp_path: Path) -> None:
    store, time, hub = open_store(tmp_path), Time(), HubSimulator(seed=7)
    content = os.urandom(2 << 20)
    report(store, b"study", Triage.ROUTINE, content)
    uplink = make_uplink(store, time)
    for _ in range(100):
        uplink.connected(hub)
        time.now += GRACE
        uplink.step()
        hub.exchange(uplink)
        uplink.disconnected()
        if store.transfers.totals()[0] == 0:
            break
        time.now += 3.0
    uplink.connected(hub)
    assert drain(uplink, hub, time, store)
    assert hub.repeated_bytes <= 0.01 * len(content)
    store.close()


def test_a_hub_that_lost_its_disk_is_sent_everything_again(tmp_path: Path) -> None:
    store, time, hub = open_store(tmp_path), Time(), HubSimulator()
    content = os.urandom(100_000)
    report(store, b"study", Triage.ROUTINE, content)
    uplink = make_uplink(store, time, receipt_timeout=1.0)
    uplink.connected(hub)
    time.now += GRACE
    uplink.step()
    hub.exchange(uplink)
    hub.parts.clear()
    assert drain(uplink, hub, time, store)
    assert hub.blobs
    store.close()


def test_a_blob_that_the_disk_lost_stops_nothing_but_itself(tmp_path: Path) -> None:
    store, time, hub = open_store(tmp_path), Time(), HubSimulator()
    lost, whole = os.urandom(50_000), os.urandom(60_000)
    first, second = report(store, b"a", Triage.CRITICAL, lost), report(store, b"b", Triage.ROUTINE, whole)
    ((transfer, _),) = store.transfers.of_capture(first)
    store.vault.path(transfer.sha256).unlink()
    uplink = make_uplink(store, time)
    uplink.connected(hub)
    assert not drain(uplink, hub, time, store, 60)
    assert store.captures.get(second).state is CaptureState.DELIVERED
    assert store.captures.get(first).state is CaptureState.REPORTED
    row = store.journal.one("SELECT reason FROM transfer WHERE id = ?", transfer.id)
    assert row is not None
    assert "its file is gone" in row["reason"]
    store.close()


def test_a_critical_result_goes_out_even_while_the_hub_confirms_nothing(tmp_path: Path) -> None:
    store, time, hub = open_store(tmp_path), Time(), HubSimulator(loss=1.0)
    for number in range(AWAITING + 20):
        put_message(store, number, Triage.ROUTINE)
    uplink = make_uplink(store, time)
    uplink.connected(hub)
    for _ in range(60):
        uplink.step()
        hub.exchange(uplink)
        time.now += 0.02
    sent = uplink.sent_messages
    assert sent == AWAITING, "no more than mosquitto keeps for an absent hub"
    put_message(store, 10_000, Triage.CRITICAL)
    uplink.changed()
    uplink.step()
    assert uplink.sent_messages == sent + 1
    store.close()


def put_message(store: Store, number: int, triage: Triage) -> None:
    payload = f"message {number}".encode()
    store.journal.write(
        lambda tx: store.outbox.put(
            tx,
            message_id=messages.make_id("result", "box", str(number), "0"),
            capture_id=f"{number:032x}",
            leaf="result",
            priority=Priority.of("result", triage),
            sha256=messages.sha256(payload),
            payload=payload,
        )
    )
