"""A box's certificate is renewed over the link in time, and by nobody else's word."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.config import LinkConfig
from appliance.protocol import messages
from appliance.protocol.messages import Command, Status, make_id
from appliance.records import Moment
from appliance.store.keys import BoxKey
from appliance.sync.inbox import Downlink
from appliance.sync.link import Link
from appliance.sync.renewal import ASK_EVERY, Renewals
from appliance.sync.standing import Standing
from appliance.sync.uplink import Uplink
from hub import tables
from hub.arrivals import Incoming
from hub.config import IngestConfig
from hub.enrolment import RENEWALS
from hub.ingest import Worker, shared_filters
from tests.boxes import open_store, report
from tests.enrolled import HERE, Broker, FixedClock, Hub, hub_time, known_as, signed, until


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path)
    yield made
    made.database.close()


def test_results_receipts_commands_checkpoints_and_a_new_certificate_go_over_tls_1_3(tmp_path: Path, hub: Hub) -> None:
    """The whole way: a box whose certificate is about to end delivers, is commanded, and renews itself."""
    before = hub.enrol(tmp_path / "box", HERE, days=1)
    hub.enrolments._days = 730
    broker = Broker(tmp_path / "broker", hub)
    store = open_store(tmp_path / "box")
    config = LinkConfig(host="localhost", port=broker.ports.boxes, tls=True, reconnect_to=0.5)
    uplink = Uplink(store, config, time.monotonic, lambda: "2026-01-01")
    known = known_as(before.ends - dt.timedelta(hours=2))
    arrived: list[Any] = []
    link: list[Link] = []
    downlink = Downlink(store, uplink, FixedClock(), lambda payload: link[0].reply(payload), arrived.append)  # noqa: PLW0108
    store.now = lambda: known
    standing = Standing(
        store,
        HERE,
        lambda leaf, payload: link[0].say(leaf, payload),  # noqa: PLW0108 - there is no link yet
        downlink.received,
        uplink.changed,
    )
    link.append(
        Link(config, HERE, uplink, standing.received, lambda on: Status(online=on), lambda: known, standing.identity)
    )
    command = Command(id=make_id("command", "now"), kind="status")
    sent = [(HERE.down("command"), messages.encode(command))]
    worker = Worker(
        hub.reaching(broker),
        IngestConfig(),
        hub.receiver,
        client_id="hub-1",
        filters=shared_filters("ingest"),
        tick=lambda: sent if link[0].online and not arrived else [],  # as the hub does: again, until it is confirmed
        tick_every=0.2,
        voice=hub.voice,
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    link[0].start()
    try:
        capture = report(store, b"an image")
        link[0].wake()
        until(lambda: hub.rows(tables.result))
        until(lambda: arrived)
        standing.tend()
        link[0].wake()
        until(lambda: hub.rows(tables.checkpoint))
        until(lambda: (after := standing.identity()) is not None and after.ends > before.ends)
        until(lambda: store.outbox.state(messages.make_id("result", "site-1/box-1", capture, "0")) == "delivered")
        assert arrived == [command]
        assert link[0].counts["not-believed"] == 0
        session = link[0]._session
        assert session is not None
        assert session._sock._inner.version() == "TLSv1.3"  # type: ignore[union-attr]
        assert len(hub.rows(tables.certificate)) == 2
    finally:
        link[0].stop()
        worker.stop()
        thread.join()
        store.close()
        broker.stop()


def test_a_certificate_is_asked_for_when_a_third_of_its_time_is_left_and_only_by_a_known_time(
    tmp_path: Path, hub: Hub
) -> None:
    identity = hub.enrol(tmp_path / "here", HERE, days=90)
    key = BoxKey((tmp_path / "here" / "box.key").read_bytes())
    asked: list[str] = []
    elapsed = [0.0]

    def renewals(moment: Moment) -> Renewals:
        return Renewals(
            tmp_path / "here",
            key,
            lambda: moment,
            lambda leaf, _: asked.append(leaf),
            lambda *_: None,
            lambda: elapsed[0],
        )

    early = renewals(known_as(identity.ends - dt.timedelta(days=31)))
    early.tend()
    lost = renewals(Moment(boot_id="b", monotonic_ns=1, wall="1970-01-01T00:00:00.000Z", uncertainty_s=None))
    lost.tend()
    assert (asked, early.problem(), lost.problem()) == ([], "", "")
    late = renewals(known_as(identity.ends - dt.timedelta(days=29)))
    for elapsed[0] in (0.0, 60.0, ASK_EVERY + 1):
        late.tend()
    assert asked == ["renewal", "renewal"]
    assert "ends on" in renewals(known_as(identity.ends - dt.timedelta(days=10))).problem()
    assert "has ended" in renewals(known_as(identity.ends + dt.timedelta(days=10))).problem()


def test_a_renewal_said_again_and_again_is_not_answered_for_ever(tmp_path: Path, hub: Hub) -> None:
    from appliance.store.credentials import signing_request

    identity = hub.enrol(tmp_path / "here", HERE)
    key = BoxKey((tmp_path / "here" / "box.key").read_bytes())
    asked = messages.Renewal(
        id=make_id("renewal", "x"), signing_request=signing_request(tmp_path / "here", HERE.key, key)
    )
    message = signed(Incoming(HERE.up("renewal"), messages.encode(asked)), identity)
    granted = [topic for _ in range(20) for topic, _ in hub.receiver.handle([message])]
    assert set(granted) == {HERE.down("certificate")}
    assert len(granted) == RENEWALS - 1, "the one of the enrolment counts"


def test_an_answer_that_was_not_asked_for_changes_no_certificate(tmp_path: Path, hub: Hub) -> None:
    identity = hub.enrol(tmp_path / "here", HERE, days=90)
    key = BoxKey((tmp_path / "here" / "box.key").read_bytes())
    held = identity.chain.read_bytes()
    renewals = Renewals(tmp_path / "here", key, lambda: known_as(hub_time()), lambda *_: None, lambda *_: None)
    forged = messages.Certificate(
        id=make_id("renewal", "forged"),
        certificate=held.decode().partition("-----BEGIN ENC")[0],
        authority=hub.authority.pem,
        hub_keys=[bytes(32)],
    )
    for payload in (messages.encode(forged), b"{}", b"\xff"):
        renewals.taken(payload)
    assert identity.chain.read_bytes() == held
    assert renewals.identity() == identity or renewals.identity().hub_keys == identity.hub_keys  # type: ignore[union-attr]
