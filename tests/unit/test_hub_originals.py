"""Encoded originals at the hub: the receipt comes after the very bytes of the capture are there, and an alarm when not."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from sqlalchemy import func, select, text

from appliance.protocol.messages import make_id
from appliance.protocol.originals import ENCODING, Part, deflated, packed
from appliance.records import capture_id
from hub import cases, restore, tables, transfers
from hub.blobs import BlobStore
from hub.database import MIGRATIONS, Database
from hub.receive import Receiver
from hub.restore import RestoreError
from hub.transfers import TransferStore
from tests.wire import BOX, answers, incoming_chunk, pieces

PLAIN = b"an original that deflates well " * 4000
SHA256 = hashlib.sha256(PLAIN).hexdigest()
CAPTURE = capture_id(BOX.key, SHA256)
CONTAINER = packed([deflated(PLAIN)])


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
    return Receiver(database, blobs)


def chunks_of(container, capture=CAPTURE, encoding=ENCODING, size=100):
    found = pieces(container, capture=capture, size=size)
    return [incoming_chunk(msgspec.structs.replace(chunk, encoding=encoding)) for chunk in found]


def send(receiver, container, **options):
    published = [one for message in chunks_of(container, **options) for one in receiver.handle([message])]
    ((status, _, _),) = answers(published[-1:]).popitem()[1]
    return status


def conflicts(database):
    with database.read() as connection:
        return connection.execute(select(tables.conflict.c.reason)).scalars().all()


def test_the_hub_holds_the_original_itself_under_its_own_hash(receiver, database, blobs):
    assert send(receiver, CONTAINER) == "stored"
    assert blobs.path(SHA256).read_bytes() == PLAIN
    assert list(blobs.stored()) == [SHA256], "the encoded form is not kept beside it"
    assert list(blobs.parts.iterdir()) == []
    with database.read() as connection:
        assert cases.has_blob(connection, SHA256)
        found = cases.stored_blob(connection, CAPTURE, "original")
    assert (found.sha256, found.encoding, found.total) == (SHA256, "", len(CONTAINER))
    assert send(receiver, CONTAINER) == "stored", "sent again it is confirmed again"
    assert conflicts(database) == []


def test_a_container_that_is_no_original_is_a_conflict_with_an_alarm_and_leaves_nothing(receiver, database, blobs):
    assert send(receiver, b"no container at all" * 10) == "conflict"
    assert send(receiver, packed([Part("deflate", 5, b"not deflated")])) == "conflict"
    assert len(conflicts(database)) == 2
    assert list(blobs.stored()) == []


def test_an_original_of_another_capture_is_a_conflict_with_an_alarm(receiver, database, blobs):
    assert send(receiver, CONTAINER, capture="0" * 32) == "conflict"
    assert conflicts(database) == ["the restored original does not have the SHA-256 of its capture"]
    assert list(blobs.stored()) == []
    assert send(receiver, CONTAINER) == "stored", "the right one is not disturbed by it"


def test_an_encoding_that_this_hub_does_not_know_is_a_conflict_at_the_first_piece(receiver):
    (first, *_) = chunks_of(CONTAINER, encoding="bedside-original-99")
    [[(status, _, _)]] = answers(receiver.handle([first])).values()
    assert status == "conflict"


def test_a_full_disk_while_restoring_refuses_and_goes_on_when_there_is_room(receiver, blobs, database, monkeypatch):
    def full(*_):
        raise RestoreError("no space", full=True)

    with monkeypatch.context() as patch:
        patch.setattr(transfers, "restore", full)
        assert send(receiver, CONTAINER) == "refused"
    assert conflicts(database) == []
    assert send(receiver, CONTAINER) == "stored"
    assert blobs.path(SHA256).read_bytes() == PLAIN


def test_the_child_says_when_it_was_only_the_disk(tmp_path):
    (tmp_path / "container").write_bytes(CONTAINER)
    (tmp_path / "file").symlink_to("/dev/full")  # a link, because what can't be written whole is removed
    with pytest.raises(RestoreError, match="no space") as raised:
        restore.restore(tmp_path / "container", tmp_path / "file")
    assert raised.value.full


def test_a_hub_that_stops_between_verifying_and_storing_finishes_at_its_start(receiver, database, blobs):
    sent = chunks_of(CONTAINER)
    for message in sent[:-1]:
        receiver.handle([message])
    key = make_id("blob", CAPTURE, "original", hashlib.sha256(CONTAINER).hexdigest())
    with database.write() as connection:  # the commit that says whole, and no more
        blobs.write(key, [(0, CONTAINER)])
        connection.execute(tables.transfer.update().values(state="whole", durable=len(CONTAINER)))
    blobs.finish(key, hashlib.sha256(CONTAINER).hexdigest(), len(CONTAINER))
    (blobs.parts / "left-over.restored").write_bytes(b"half")
    store = TransferStore(database, blobs, refuse_below=0)
    assert store.repair(1)["verified"] == 1
    assert list(blobs.stored()) == [SHA256]
    assert list(blobs.parts.iterdir()) == []
    blobs.path(SHA256).unlink()
    assert store.repair(2)["missing"] == 1, "a lost original is asked for again"
    assert send(receiver, CONTAINER) == "stored"


def test_a_database_of_version_1_is_brought_up_to_date(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/old.sqlite")
    with database.write() as connection:
        tables.metadata.create_all(connection)
        connection.execute(text("ALTER TABLE transfer DROP COLUMN original"))
        connection.execute(tables.schema_version.insert().values(version=1))
        connection.execute(
            text(
                "INSERT INTO transfer (id, device, capture_id, kind, sha256, total, media_type, encoding, state, ranges,"
                " durable, restarts, created_ms, changed_ms) VALUES ('blob:1', 'a/b', 'c', 'original', 'd', 1, '', '',"
                " 'stored', '[]', 1, 0, 1, 1)"
            )
        )
    assert database.migrate() == 1
    with database.read() as connection:
        assert database.version(connection) == len(MIGRATIONS) >= 2
        assert connection.execute(select(tables.transfer.c.original)).scalar_one() == ""
        assert connection.execute(select(func.count()).select_from(tables.transfer)).scalar_one() == 1
    assert database.migrate() == len(MIGRATIONS)
    database.close()
