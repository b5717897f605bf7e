"""Whose word counts: the hub's for the box, the box's for the hub, whatever the broker in between does."""

from __future__ import annotations

import datetime as dt
import os
import pwd
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from appliance.config import Config, DeviceConfig, LinkConfig, StorageConfig
from appliance.protocol import messages
from appliance.protocol.messages import Checkpoint, Command, Receipt, ReceiptItem, Status, make_id
from appliance.protocol.signing import KeySigner, key_id, proof, statement
from appliance.protocol.topics import Address
from appliance.records import Moment
from appliance.store import checkpoints
from appliance.store.credentials import Identity, IdentityError, identity_of, why_not
from appliance.store.keys import BoxKey
from appliance.sync.enrolment import take_answer, write_request
from appliance.sync.inbox import Downlink
from appliance.sync.link import Link
from appliance.sync.renewal import ASK_EVERY, Renewals
from appliance.sync.signing import Signatures
from appliance.sync.standing import CHECKPOINT_EVERY, Standing
from appliance.sync.uplink import Uplink
from hub import tables
from hub.arrivals import Incoming
from hub.authority import make_authority
from hub.blobs import BlobStore
from hub.broker import Ports, write_broker
from hub.config import BrokerConfig, IngestConfig
from hub.database import Database
from hub.enrolment import RENEWALS, Enrolments
from hub.ingest import Worker, shared_filters, status_filters
from hub.receive import Receiver
from hub.trust import Trust, Voice
from tests.boxes import now, open_store, report
from tests.servers import free_port, wait_for_port
from tests.wire import answers, incoming, incoming_chunk, pieces, result

NOW = time.time_ns() // 1_000_000
HERE, THERE = Address("clinic-a", "box-1"), Address("clinic-a", "box-2")


class Hub:
    """A hub's authority, database and receiver."""

    def __init__(self, folder: Path) -> None:
        self.authority = make_authority(folder / "authority", "Test hub")
        self.database = Database(f"sqlite:///{folder}/hub.sqlite")
        self.database.migrate()
        self.enrolments = Enrolments(self.database, self.authority)
        blobs = BlobStore(folder / "blobs")
        blobs.open()
        self.receiver = Receiver(
            self.database, blobs, trust=Trust(self.database, lambda: 0.0), enrolments=self.enrolments
        )
        self.trusts_afresh()
        self.voice = Voice(self.authority.signer)

    def trusts_afresh(self) -> None:
        self.receiver._trust = Trust(self.database)

    def enrol(self, folder: Path, device: Address, days: int = 730) -> Identity:
        self.enrolments._days = days
        config = Config(
            device=DeviceConfig(site=device.site, name=device.device),
            storage=StorageConfig(state=str(folder), refuse_below=16, reserve=4),
        )
        folder.mkdir(exist_ok=True)
        asked = write_request(config, folder, self.enrolments.make_code(device, NOW, 1))
        asked.with_suffix(".enrolled").write_bytes(self.enrolments.enrol(asked.read_bytes(), NOW))
        take_answer(config, folder)
        found = identity_of(folder, BoxKey((folder / "box.key").read_bytes()))
        assert found is not None
        return found

    def rows(self, table: Any) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(select(table)))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path)
    yield made
    made.database.close()


def signed(message: Incoming, identity: Identity) -> Incoming:
    properties = Signatures(identity).added(message.topic, message.payload, message.content_type, message.properties)
    return message._replace(properties=tuple(properties))


def test_the_hub_takes_what_the_enrolled_box_signed_and_keeps_aside_what_nobody_can_vouch_for(
    tmp_path: Path, hub: Hub
) -> None:
    here, there = hub.enrol(tmp_path / "here", HERE), hub.enrol(tmp_path / "there", THERE)
    real = incoming(result(), HERE)
    forged = [
        real,  # unsigned
        signed(real, there),  # another box's key
        signed(real, here)._replace(payload=real.payload.replace(b"Pleural", b"pleural")),
        signed(incoming(result(), THERE), here)._replace(topic=real.topic),  # signed for another topic
        signed(incoming(result(), HERE, "status"), here)._replace(topic=real.topic),  # or another leaf
        real._replace(properties=(("s", "A" * 86), ("i", key_id(here.signer.public)))),
        real._replace(properties=(("s", "not base64 £"), ("i", ""))),
    ]
    for message in forged:
        said = [status for items in answers(hub.receiver.handle([message])).values() for status, *_ in items]
        assert said in (["refused"], []), message.properties
    assert hub.rows(tables.result) == []
    aside = hub.rows(tables.conflict)
    assert {row.sha256 for row in aside} <= {messages.sha256(one.payload) for one in forged}
    assert aside
    assert all("nobody can say whose this is" in row.reason for row in aside)
    assert sum(row.count for row in hub.rows(tables.rejection)) == len(forged)
    assert [status for status, *_ in answers(hub.receiver.handle([signed(real, here)]))[result().id]] == ["stored"]
    assert len(hub.rows(tables.result)) == 1


def test_one_signature_carries_a_whole_transfer_and_no_other(tmp_path: Path, hub: Hub) -> None:
    here = hub.enrol(tmp_path / "here", HERE)
    data = bytes(range(256)) * 200
    parts = [incoming_chunk(chunk, HERE) for chunk in pieces(data)]
    proofs = {dict(signed(one, here).properties)["s"] for one in parts}
    assert len(parts) > 2
    assert len(proofs) == 1
    other = incoming_chunk(pieces(b"another" * 100)[0], HERE)
    taken = signed(parts[0], here).properties[-2:]
    for part in (other, *parts):
        hub.receiver.handle([part._replace(properties=(*part.properties, *taken)) if part is other else part])
    assert hub.rows(tables.transfer) == []
    hub.receiver.handle([signed(one, here) for one in parts])
    assert [row.state for row in hub.rows(tables.transfer)] == ["stored"]


def test_a_revoked_box_is_not_believed_any_more(tmp_path: Path, hub: Hub) -> None:
    here = hub.enrol(tmp_path / "here", HERE)
    hub.receiver.handle([signed(incoming(result(), HERE), here)])
    hub.enrolments.revoke(HERE.key, "stolen", NOW)
    hub.trusts_afresh()
    later = signed(incoming(result(revision=1), HERE), here)
    assert [status for items in answers(hub.receiver.handle([later])).values() for status, *_ in items] == ["refused"]


def test_a_flood_of_forgeries_fills_nothing(tmp_path: Path, hub: Hub) -> None:
    from hub.results import MOST_ASIDE

    hub.enrol(tmp_path / "here", HERE)
    flood = [incoming(result(revision=number), HERE) for number in range(3 * MOST_ASIDE)]
    for at in range(0, len(flood), 50):
        hub.receiver.handle(flood[at : at + 50])
    assert len(hub.rows(tables.conflict)) == MOST_ASIDE
    assert sum(row.count for row in hub.rows(tables.rejection)) == len(flood)


def checkpoint(sequence: int, chain: str, previous: int) -> Checkpoint:
    return Checkpoint(
        id=make_id("checkpoint", HERE.key, str(sequence), chain), sequence=sequence, chain=chain * 64, previous=previous
    )


def test_a_rewritten_audit_log_contradicts_what_the_hub_was_told(tmp_path: Path, hub: Hub) -> None:
    here = hub.enrol(tmp_path / "here", HERE)

    def says(said: Checkpoint) -> str:
        message = signed(Incoming(HERE.up("checkpoint"), messages.encode(said)), here)
        return answers(hub.receiver.handle([message]))[said.id][0][0]

    assert says(checkpoint(20, "b", 10)) == "stored", "they may come in any order"
    assert says(checkpoint(10, "a", 0)) == "stored"
    assert says(checkpoint(10, "a", 0)) == "stored"
    assert says(checkpoint(20, "c", 10)) == "conflict", "the same entry with another chain"
    assert says(checkpoint(15, "d", 10)) == "conflict", "a disk put back to an older state goes on twice"
    assert says(checkpoint(30, "e", 20)) == "stored"
    assert len([row for row in hub.rows(tables.audit_event) if row.action == "audit log rewritten"]) == 2


def test_a_box_takes_only_what_its_hub_signed_for_this_very_topic(tmp_path: Path, hub: Hub) -> None:
    here, there = hub.enrol(tmp_path / "here", HERE), hub.enrol(tmp_path / "there", THERE)
    box = Signatures(here)
    command = messages.encode(Command(id=make_id("command", "x"), kind="resend", capture_id="0" * 32))
    topic = HERE.down("command")
    assert box.is_believed(topic, command, hub.voice.properties(topic, command))
    own = statement(topic, command)
    for properties in (
        (),
        hub.voice.properties(THERE.down("command"), command),
        hub.voice.properties(HERE.down("review"), command),
        hub.voice.properties(topic, command + b" "),
        proof(KeySigner(bytes(32)), own),
        proof(there.signer, own),
        proof(here.signer, own),
        [("s", hub.voice.properties(topic, command)[0][1])],
        [("s", ""), ("i", key_id(hub.authority.signer.public))],
    ):
        assert not box.is_believed(topic, command, properties)
    assert Signatures(None).is_believed(topic, command, ())


@pytest.mark.parametrize(
    ("link", "enrolled", "words"),
    [
        (LinkConfig(), False, ""),
        (LinkConfig(host="localhost"), False, ""),
        (LinkConfig(host="hub.example"), False, "not enrolled"),
        (LinkConfig(host="192.0.2.7", tls=True, ca_file="ca.pem"), False, "not enrolled"),
        (LinkConfig(tls=True), False, "no authority to trust"),
        (LinkConfig(host="hub.example"), True, "link.tls is false"),
        (LinkConfig(host="hub.example", tls=True), True, ""),
    ],
)
def test_without_an_identity_there_is_a_link_only_within_this_machine(
    tmp_path: Path, hub: Hub, link: LinkConfig, enrolled: bool, words: str
) -> None:
    identity = hub.enrol(tmp_path / "here", HERE) if enrolled else None
    said = why_not(link, identity)
    assert words in said
    assert bool(words) == bool(said)


class Broker:
    """mosquitto as ``bedside-hub broker`` configures it."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if program is None:
            pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
        self.ports = Ports(free_port(), free_port(), "127.0.0.1")
        user = pwd.getpwuid(os.getuid()).pw_name
        path = write_broker(folder, hub.authority, ["localhost"], self.ports, user)
        self.process = subprocess.Popen([program, "-c", str(path)], stderr=subprocess.DEVNULL)
        wait_for_port(self.ports.boxes, self.process)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def test_results_receipts_commands_checkpoints_and_a_new_certificate_go_over_tls_1_3(tmp_path: Path, hub: Hub) -> None:
    """The whole way: a box whose certificate is about to end delivers, is commanded, and renews itself."""
    before = hub.enrol(tmp_path / "box", HERE, days=1)
    hub.enrolments._days = 730
    broker = Broker(tmp_path / "broker", hub)
    store = open_store(tmp_path / "box")
    config = LinkConfig(host="localhost", port=broker.ports.boxes, tls=True, reconnect_to=0.5)
    uplink = Uplink(store, config, time.monotonic, lambda: "2026-01-01")
    known = _known(before.ends - dt.timedelta(hours=2))
    arrived: list[Any] = []
    link: list[Link] = []
    downlink = Downlink(store, uplink, _Clock(), lambda payload: link[0].reply(payload), arrived.append)  # noqa: PLW0108
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
    settings = BrokerConfig(
        host="localhost",
        port=broker.ports.hub,
        tls=True,
        ca_file=str(hub.authority.folder / "ca.pem"),
        certificate_file=str(hub.authority.folder / "hub.pem"),
        key_file=str(hub.authority.folder / "hub.key"),
    )
    command = Command(id=make_id("command", "now"), kind="status")
    sent = [(HERE.down("command"), messages.encode(command))]
    worker = Worker(
        settings,
        IngestConfig(),
        hub.receiver,
        client_id="hub-1",
        filters=shared_filters("ingest"),
        tick=lambda: [sent.pop()] if sent and link[0].online else [],
        tick_every=0.2,
        voice=hub.voice,
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    link[0].start()
    try:
        capture = report(store, b"an image")
        link[0].wake()
        _until(lambda: hub.rows(tables.result))
        _until(lambda: arrived)
        standing.tend()
        link[0].wake()
        _until(lambda: hub.rows(tables.checkpoint))
        _until(lambda: (after := standing.identity()) is not None and after.ends > before.ends)
        _until(lambda: store.outbox.state(messages.make_id("result", "site-1/box-1", capture, "0")) == "delivered")
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


def _until(done: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hub_time() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


def _known(when: dt.datetime) -> Moment:
    wall = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Moment(boot_id="b", monotonic_ns=1, wall=wall, uncertainty_s=1.0)


class _Clock:
    """Never believes anybody."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def now(self) -> Moment:
        return now()

    def anchor_text(self, wall: str, _uncertainty_s: float) -> bool:
        self.told.append(wall)
        return True


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

    early = renewals(_known(identity.ends - dt.timedelta(days=31)))
    early.tend()
    lost = renewals(Moment(boot_id="b", monotonic_ns=1, wall="1970-01-01T00:00:00.000Z", uncertainty_s=None))
    lost.tend()
    assert (asked, early.problem(), lost.problem()) == ([], "", "")
    late = renewals(_known(identity.ends - dt.timedelta(days=29)))
    for elapsed[0] in (0.0, 60.0, ASK_EVERY + 1):
        late.tend()
    assert asked == ["renewal", "renewal"]
    assert "ends on" in renewals(_known(identity.ends - dt.timedelta(days=10))).problem()
    assert "has ended" in renewals(_known(identity.ends + dt.timedelta(days=10))).problem()


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
    renewals = Renewals(tmp_path / "here", key, lambda: _known(hub_time()), lambda *_: None, lambda *_: None)
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


def test_the_name_of_the_hubs_group_is_its_own_secret(hub: Hub) -> None:
    (first, *_), again = shared_filters("ingest"), Voice(hub.authority.signer)
    named = hub.voice.private(first)
    assert named == again.private(first), "all workers of one authority are in one group"
    assert re.fullmatch(r"\$share/ingest-[0-9a-f]{32}/bedside/v1/\+/\+/up/result", named)
    assert named != Voice(KeySigner(bytes(32))).private(first)
    assert hub.voice.private(status_filters()[0]) == status_filters()[0]


def test_checkpoints_are_made_once_an_hour_or_after_many_entries_and_only_by_an_enrolled_box(
    tmp_path: Path, hub: Hub
) -> None:
    store, elapsed = open_store(tmp_path / "box"), [0.0]
    standing = Standing(store, HERE, lambda *_: None, lambda *_: None, monotonic=lambda: elapsed[0])

    def made(seconds: float) -> int:
        elapsed[0] += seconds
        standing.tend()
        return len(store.journal.all("SELECT 1 FROM checkpoint"))

    assert made(60) == 0, "nobody could sign it"
    hub.enrol(tmp_path / "box", HERE)
    assert made(60) == 1
    store.note("kept", "one")
    assert made(60) == 1
    assert made(CHECKPOINT_EVERY) == 2
    assert made(CHECKPOINT_EVERY) == 2, "nothing new"
    for number in range(checkpoints.EVERY):
        store.note("kept", str(number))
    assert made(60) == 3
    renamed = Standing(store, THERE, lambda *_: None, lambda *_: None, monotonic=lambda: elapsed[0])
    with pytest.raises(IdentityError, match=r"enrolled as clinic-a/box-1 and configured as clinic-a/box-2"):
        renamed.identity()
    store.close()


def test_an_old_receipt_said_again_does_not_put_the_clock_back(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    clock = _Clock()
    uplink = Uplink(store, LinkConfig(), time.monotonic, lambda: "2026-01-01")
    downlink = Downlink(store, uplink, clock, lambda _: None)

    def receipt(wall: str) -> bytes:
        item = ReceiptItem(id=make_id("result", "x"), sha256="0" * 64, status="stored")
        return messages.encode(Receipt(items=[item], time=wall, uncertainty_s=0.5))

    for wall in ("2026-03-01T00:00:00.000Z", "2026-02-01T00:00:00.000Z", "2026-03-01T00:00:00.000Z"):
        downlink.received("receipt", receipt(wall))
    assert clock.told == ["2026-03-01T00:00:00.000Z"]
    store.close()
