"""Whose word counts: the hub's for the box, the box's for the hub, whatever the broker in between does."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import LinkConfig
from appliance.protocol import messages
from appliance.protocol.messages import Checkpoint, Command, Receipt, ReceiptItem, make_id
from appliance.protocol.signing import KeySigner, key_id, proof, statement
from appliance.store import checkpoints
from appliance.store.credentials import IdentityError, why_not
from appliance.sync.inbox import Downlink
from appliance.sync.signing import Signatures
from appliance.sync.standing import CHECKPOINT_EVERY, Standing
from appliance.sync.uplink import Uplink
from hub import tables
from hub.arrivals import Incoming
from hub.ingest import shared_filters, status_filters
from hub.trust import Voice
from tests.boxes import open_store
from tests.enrolled import HERE, NOW, THERE, FixedClock, Hub, signed
from tests.wire import answers, incoming, incoming_chunk, pieces, result


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path)
    yield made
    made.database.close()


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
    clock = FixedClock()
    uplink = Uplink(store, LinkConfig(), time.monotonic, lambda: "2026-01-01")
    downlink = Downlink(store, uplink, clock, lambda _: None)

    def receipt(wall: str) -> bytes:
        item = ReceiptItem(id=make_id("result", "x"), sha256="0" * 64, status="stored")
        return messages.encode(Receipt(items=[item], time=wall, uncertainty_s=0.5))

    for wall in ("2026-03-01T00:00:00.000Z", "2026-02-01T00:00:00.000Z", "2026-03-01T00:00:00.000Z"):
        downlink.received("receipt", receipt(wall))
    assert clock.told == ["2026-03-01T00:00:00.000Z"]
    store.close()
