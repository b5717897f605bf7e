"""Claims about the hub's ingest without a broker: once, durable, and nothing disturbs anything else."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest
from sqlalchemy import func, select

from appliance.protocol.messages import Command, Receipt, ReceiptItem, Status, decode, encode, make_id, sha256
from appliance.records import Triage
from hub import tables
from hub import transfers as transfers_module
from hub.arrivals import Incoming
from hub.blobs import BlobStore
from hub.database import Database
from hub.receive import Receiver, StoreUnavailable
from hub.transfers import TransferStore
from tests.wire import BOX, OTHER_BOX, answers, incoming, incoming_chunk, pieces, result


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/hub.sqlite")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def blobs(tmp_path):
    blobs = BlobStore(tmp_path / "blobs")
    blobs.open()
    return blobs


@pytest.fixture
def receiver(database, blobs):
    return Receiver(database, blobs, uncertainty_s=0.5)


def count(database, table, *where):
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one()


def test_a_result_is_stored_and_answered_with_its_hash(receiver, database):
    message = incoming(result())
    [(topic, payload)] = receiver.handle([message])
    assert topic == "bedside/v1/site-1/box-1/down/receipt"
    receipt = decode(payload, Receipt)
    assert [(i.id, i.sha256, i.status) for i in receipt.items] == [(result().id, sha256(message.payload), "stored")]
    assert receipt.time.endswith("Z")
    assert receipt.uncertainty_s == 0.5
    with database.read() as connection:
        assert connection.execute(select(tables.result.c.payload)).scalar_one() == message.payload


def test_a_hundred_duplicates_are_one_result_and_each_batch_is_answered(receiver, database):
    message = incoming(result())
    for _ in range(10):
        assert answers(receiver.handle([message] * 10)) == {result().id: [("stored", sha256(message.payload), 0)]}
    assert count(database, tables.result) == count(database, tables.capture) == 1


def test_the_same_id_with_another_content_is_kept_aside_and_called_a_conflict(receiver, database):
    first, second = incoming(result()), incoming(result(advice="Something else."))
    receiver.handle([first])
    assert answers(receiver.handle([second])) == {result().id: [("conflict", sha256(second.payload), 0)]}
    with database.read() as connection:
        assert connection.execute(select(tables.result.c.payload)).scalar_one() == first.payload
        assert connection.execute(select(tables.conflict.c.payload)).scalar_one() == second.payload


def test_a_contradiction_within_one_batch_is_a_conflict_too(receiver):
    messages = [incoming(result()), incoming(result(advice="Something else."))]
    [items] = answers(receiver.handle(messages)).values()
    assert sorted(status for status, _, _ in items) == ["conflict", "stored"]


def test_another_device_cannot_answer_for_a_capture_that_is_not_its_own(receiver, database):
    receiver.handle([incoming(result())])
    forged = result(id=make_id("result", "forged"), revision=9, triage=Triage.ROUTINE)
    assert answers(receiver.handle([incoming(forged, OTHER_BOX)]))[forged.id][0][0] == "conflict"
    with database.read() as connection:
        row = connection.execute(select(tables.capture)).one()
    assert (row.device, row.rank, row.revision) == (BOX.key, 0, 0)


def test_a_capture_follows_the_highest_revision_in_whatever_order_they_come(receiver, database):
    later = result(revision=1, triage=Triage.URGENT)
    receiver.handle([incoming(later)])
    receiver.handle([incoming(result())])
    with database.read() as connection:
        row = connection.execute(select(tables.capture)).one()
    assert (row.result_id, row.revision, row.rank) == (later.id, 1, 1)
    assert count(database, tables.result) == 2


def test_a_capture_that_becomes_more_urgent_waits_for_a_human_again(receiver, database):
    receiver.handle([incoming(result(triage=Triage.ROUTINE))])
    with database.write() as connection:
        connection.execute(tables.capture.update().values(open=False, acknowledged_ms=1, escalation=2))
    receiver.handle([incoming(result(revision=1))])
    with database.read() as connection:
        row = connection.execute(select(tables.capture)).one()
    assert (row.open, row.acknowledged_ms, row.escalation, row.rank) == (True, None, 0, 0)


HOSTILE = {
    "not-json": (b"\xff\xfe not JSON", "bedside/v1/site-1/box-1/up/result"),
    "schema": (b'{"schema":"bedside/result/1"}', "bedside/v1/site-1/box-1/up/result"),
    "another-schema": (b'{"schema":"bedside/command/1","id":"x"}', "bedside/v1/site-1/box-1/up/result"),
    "deep": (b'{"schema":"bedside/result/1","a":' + b"[" * 100_000, "bedside/v1/site-1/box-1/up/result"),
    "oversize": (b'{"' + b"a" * 300_000, "bedside/v1/site-1/box-1/up/result"),
    "unknown-leaf": (b"{}", "bedside/v1/site-1/box-1/up/shell"),
    "downwards": (b"{}", "bedside/v1/site-1/box-1/down/review"),
    "path": (b"{}", "bedside/v1/../../etc/up/result"),
    "no-topic": (b"{}", ""),
    "chunk-without-header": (b"data", "bedside/v1/site-1/box-1/up/blob"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_is_counted_and_disturbs_nothing_else(name, receiver, database):
    payload, topic = HOSTILE[name]
    good = incoming(result())
    assert answers(receiver.handle([Incoming(topic, payload), good]))[result().id][0][0] == "stored"
    assert count(database, tables.rejection) == 1
    assert receiver.counts["rejected"] == 1


def test_nothing_of_a_rejected_payload_is_logged(receiver, capsys):
    receiver.handle([Incoming("bedside/v1/site-1/box-1/up/result", b'{"schema":"bedside/result/1","id":"DOE^JANE"}')])
    output = "".join(capsys.readouterr())
    assert "message rejected" in output
    assert "DOE" not in output


def test_a_sender_whose_result_breaks_the_schema_is_told_so_by_its_id(receiver):
    payload = encode(result()).replace(b'"read"', b'"guessed"')
    found = answers(receiver.handle([Incoming("bedside/v1/site-1/box-1/up/result", payload)]))
    assert found == {result().id: [("refused", sha256(payload), 0)]}


def test_an_impossible_sequence_number_is_refused_and_its_neighbours_are_stored(receiver, database):
    bad = result(2, sequence=1 << 70)
    found = answers(receiver.handle([incoming(result(1)), incoming(bad), incoming(result(3))]))
    assert [found[m.id][0][0] for m in (result(1), bad, result(3))] == ["stored", "refused", "stored"]
    assert count(database, tables.result) == 2


def test_a_transfer_that_arrives_backwards_is_whole_in_the_end(receiver, database, blobs):
    data = os.urandom(100_000)
    chunks = pieces(data)
    for chunk in reversed(chunks[1:]):
        assert answers(receiver.handle([incoming_chunk(chunk)]))[chunk.id] == [("partial", chunk.sha256, 0)]
    assert answers(receiver.handle([incoming_chunk(chunks[0])]))[chunks[0].id] == [
        ("stored", chunks[0].sha256, len(data))
    ]
    assert blobs.path(chunks[0].sha256).read_bytes() == data
    assert list(blobs.part_ids()) == []
    assert count(database, tables.blob) == 1


def test_the_receipt_of_a_piece_says_how_much_is_durable_from_the_start(receiver):
    chunks = pieces(os.urandom(100_000), size=10_000)
    offsets = []
    for chunk in (chunks[0], chunks[2], chunks[1], chunks[4]):
        [(status, _, offset)] = answers(receiver.handle([incoming_chunk(chunk)]))[chunk.id]
        offsets.append((status, offset))
    assert offsets == [("partial", 10_000), ("partial", 10_000), ("partial", 30_000), ("partial", 30_000)]


def test_two_workers_put_one_transfer_together(database, blobs):
    data = os.urandom(200_000)
    workers = [Receiver(database, blobs), Receiver(database, blobs)]
    for turn, chunk in enumerate(pieces(data)):
        last = answers(workers[turn % 2].handle([incoming_chunk(chunk)]))[chunk.id]
    assert last[0][0] == "stored"
    assert blobs.path(hashlib.sha256(data).hexdigest()).read_bytes() == data


def test_the_first_bytes_at_a_place_stay(receiver, blobs):
    data, other = os.urandom(30_000), os.urandom(30_000)
    digest = hashlib.sha256(data).hexdigest()
    first, *rest = pieces(data, size=10_000)
    receiver.handle([incoming_chunk(first)])
    for chunk in (pieces(other, size=10_000, sha256=digest)[0], *rest):
        found = answers(receiver.handle([incoming_chunk(chunk)]))
    assert found[first.id] == [("stored", digest, 30_000)]
    assert blobs.path(digest).read_bytes() == data


def test_a_whole_with_a_wrong_hash_starts_again_and_is_refused_the_third_time(receiver, blobs):
    chunks = pieces(os.urandom(30_000), sha256="b" * 64)
    statuses = [answers(receiver.handle([incoming_chunk(c) for c in chunks]))[chunks[0].id][0] for _ in range(3)]
    assert [(status, offset) for status, _, offset in statuses] == [("partial", 0), ("partial", 0), ("refused", 0)]
    assert not blobs.path("b" * 64).exists()


def test_a_lost_part_file_is_asked_for_again_instead_of_believed(receiver, blobs):
    data = os.urandom(30_000)
    chunks = pieces(data, size=10_000)
    receiver.handle([incoming_chunk(chunks[0]), incoming_chunk(chunks[1])])
    blobs.discard(chunks[0].id)
    [(status, _, offset)] = answers(receiver.handle([incoming_chunk(chunks[2])]))[chunks[0].id]
    assert (status, offset) == ("partial", 0)
    found = answers(receiver.handle([incoming_chunk(c) for c in chunks]))
    assert found[chunks[0].id][0][0] == "stored"


def test_a_full_disk_refuses_pieces_with_a_reason_and_still_takes_results(receiver, blobs, monkeypatch):
    chunks = pieces(os.urandom(30_000), size=10_000)
    receiver.handle([incoming_chunk(chunks[0])])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        [(_, payload)] = receiver.handle([incoming_chunk(chunks[1]), incoming(result())])
    items = {item.id: item for item in decode(payload, Receipt).items}
    refused = items[chunks[0].id]
    assert (refused.status, refused.offset) == ("refused", 10_000)
    assert "disk" in refused.reason
    assert items[result().id].status == "stored"
    found = answers(receiver.handle([incoming_chunk(c) for c in chunks[1:]]))
    assert found[chunks[0].id][0][0] == "stored"


def test_little_free_space_refuses_pieces_before_the_disk_is_full(database, blobs):
    receiver = Receiver(database, blobs, refuse_below=1 << 62)
    [chunk] = pieces(b"data")
    assert answers(receiver.handle([incoming_chunk(chunk)]))[chunk.id][0][0] == "refused"


def test_pieces_for_another_devices_capture_are_refused(receiver):
    receiver.handle([incoming(result())])
    [chunk] = pieces(b"data", capture=result().capture.id)
    assert answers(receiver.handle([incoming_chunk(chunk, OTHER_BOX)]))[chunk.id][0][0] == "refused"


def test_an_unreachable_database_answers_nothing_and_the_batch_can_be_handed_in_again(receiver, database, tmp_path):
    message = incoming(result())
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE result RENAME TO away")
    with pytest.raises(StoreUnavailable):
        receiver.handle([message])
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO result")
    assert answers(receiver.handle([message]))[result().id][0][0] == "stored"


def test_a_box_that_comes_online_makes_what_waits_for_it_due_at_once(receiver, database):
    receiver.handle([incoming(Status(online=False), leaf="status")])
    row = {"device": BOX.key, "leaf": "command", "sha256": "c" * 64, "payload": b"{}", "created_ms": 1}
    with database.write() as connection:
        connection.execute(tables.outbox.insert(), {**row, "id": "command:1", "next_ms": 1 << 60})
    receiver.handle([incoming(Status(online=True), leaf="status")])
    with database.read() as connection:
        assert connection.execute(select(tables.outbox.c.next_ms)).scalar_one() < 1 << 60


@pytest.mark.parametrize(
    ("device", "digest", "status", "closed"),
    [
        (BOX, "c" * 64, "stored", True),
        (BOX, "c" * 64, "conflict", True),
        (BOX, "c" * 64, "refused", False),
        (BOX, "d" * 64, "stored", False),
        (OTHER_BOX, "c" * 64, "stored", False),
    ],
)
def test_only_the_right_boxs_receipt_with_the_right_hash_closes_a_row(
    device, digest, status, closed, receiver, database
):
    key = make_id("command", "x")
    row = {"device": BOX.key, "leaf": "command", "sha256": "c" * 64, "payload": b"{}", "created_ms": 1, "next_ms": 1}
    with database.write() as connection:
        connection.execute(tables.outbox.insert(), {**row, "id": key})
    receipt = Receipt(items=[ReceiptItem(id=key, sha256=digest, status=status)])
    receiver.handle([incoming(receipt, device, "receipt")])
    assert count(database, tables.outbox, tables.outbox.c.closed_ms.is_not(None)) == int(closed)


def test_a_blob_that_was_lost_after_its_receipt_is_asked_of_the_box_again(receiver, database, blobs):
    receiver.handle([incoming(result())])
    data = os.urandom(30_000)
    chunks = [incoming_chunk(c) for c in pieces(data, capture=result().capture.id)]
    receiver.handle(chunks)
    blobs.path(hashlib.sha256(data).hexdigest()).unlink()
    transfers = TransferStore(database, blobs, refuse_below=0)
    assert transfers.repair(receiver.now_ms())["missing"] == 1
    with database.read() as connection:
        command = decode(connection.execute(select(tables.outbox.c.payload)).scalar_one(), Command)
    assert (command.kind, command.capture_id) == ("resend", result().capture.id)
    assert transfers.repair(receiver.now_ms())["missing"] == 0
    receiver.handle(chunks)
    assert blobs.path(hashlib.sha256(data).hexdigest()).read_bytes() == data


def test_a_transfer_that_was_whole_when_the_hub_died_is_verified_at_the_next_start(
    receiver, database, blobs, monkeypatch
):
    data = os.urandom(30_000)
    with monkeypatch.context() as patch:
        patch.setattr(TransferStore, "finish", lambda *_: ("partial", 0, ""))
        receiver.handle([incoming_chunk(c) for c in pieces(data)])
    assert TransferStore(database, blobs, refuse_below=0).repair(receiver.now_ms())["verified"] == 1
    assert blobs.path(hashlib.sha256(data).hexdigest()).read_bytes() == data


def test_the_start_looks_at_what_is_open_and_newest_and_goes_back_only_where_blobs_are_gone(
    receiver, database, blobs, monkeypatch
):
    receiver.handle([incoming(result())])
    contents = [os.urandom(100) + bytes([number]) for number in range(40)]
    for data in contents:
        receiver.handle([incoming_chunk(c) for c in pieces(data, capture=result().capture.id)])
    with database.write() as connection:
        for number, data in enumerate(contents):
            row = tables.transfer.c.sha256 == hashlib.sha256(data).hexdigest()
            connection.execute(tables.transfer.update().where(row).values(changed_ms=1000 + number))
    monkeypatch.setattr("hub.transfers._NEWEST", transfers_module._NEWEST.limit(10))
    monkeypatch.setattr("hub.transfers.RECENT", 10)
    looked: list[str] = []
    path = type(blobs).path
    monkeypatch.setattr(type(blobs), "path", lambda self, sha256: (looked.append(sha256), path(self, sha256))[1])
    transfers = TransferStore(database, blobs, refuse_below=0)
    assert transfers.repair(receiver.now_ms())["missing"] == 0
    assert len(looked) == 10
    for data in contents[25:]:
        path(blobs, hashlib.sha256(data).hexdigest()).unlink()
    assert transfers.repair(receiver.now_ms())["missing"] == 15
    with database.read() as connection:
        states = connection.execute(select(tables.transfer.c.state)).scalars().all()
    assert (states.count("open"), states.count("stored")) == (15, 25)
