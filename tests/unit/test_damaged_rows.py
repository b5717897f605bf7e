"""One row that the disk has spoilt is left out and said; everything else goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import LinkConfig
from appliance.store.errors import Damaged
from appliance.sync.uplink import Uplink
from tests.boxes import keep, open_store, report
from tests.hub_simulator import HubSimulator, Time


def test_a_row_that_cannot_be_unsealed_stops_no_other_and_is_said(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first, bad, last = (keep(store, content).capture_id for content in (b"first", b"bad", b"last"))
    store.journal.write(lambda tx: tx.run("UPDATE capture SET sealed = ? WHERE id = ?", b"x" * 60, bad))
    assert [entry.capture.id for entry in store.captures.latest()] == [last, first]
    assert store.captures.damaged == {bad}
    assert store.captures.next(("kept",), limit=2) == [first, last]
    with pytest.raises(Damaged, match="can't be unsealed"):
        store.captures.get(bad)
    store.close()


def test_a_damaged_row_is_met_once_and_the_next_capture_goes_on(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    bad, good = (keep(store, content).capture_id for content in (b"bad", b"good"))
    store.journal.write(lambda tx: tx.run("UPDATE capture SET sealed = ? WHERE id = ?", b"x" * 60, bad))
    assert store.captures.next(("kept",), limit=1) == [bad]
    with pytest.raises(Damaged):
        store.captures.get(bad)
    assert store.captures.next(("kept",), limit=1) == [good]
    store.close()


def test_a_message_that_cannot_be_unsealed_does_not_stop_the_link(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    bad, good = report(store, b"bad"), report(store, b"good")
    store.journal.write(lambda tx: tx.run("UPDATE outbox SET sealed = ? WHERE capture_id = ?", b"x" * 60, bad))
    hub, uplink = HubSimulator(), Uplink(store, LinkConfig(), Time(), lambda: "2026-01-01")
    uplink.connected(hub)
    for _ in range(3):
        uplink.step()
        hub.exchange(uplink)
    states = {row["capture_id"]: row for row in store.journal.all("SELECT capture_id, state, reason FROM outbox")}
    assert states[good]["state"] == "delivered"
    assert states[bad]["state"] == "waiting"
    assert "can't be unsealed" in states[bad]["reason"]
    store.close()
