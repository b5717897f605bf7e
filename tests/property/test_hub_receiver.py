"""Whatever the network does to messages - doubles, loses, reorders, mixes in hostile ones - the hub ends in one state."""

from __future__ import annotations

import hashlib
import random
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from appliance.protocol.messages import Receipt, decode, sha256
from appliance.records import Triage
from hub import tables
from hub.arrivals import Incoming
from hub.blobs import BlobStore
from hub.database import Database
from hub.receive import Receiver
from tests.wire import BOX, OTHER_BOX, answers, incoming, incoming_chunk, pieces, result

_SETTINGS = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


class Hub:
    def __init__(self, workers=1):
        self.folder = tempfile.TemporaryDirectory()
        self.database = Database(f"sqlite:///{self.folder.name}/hub.sqlite")
        self.database.migrate()
        self.blobs = BlobStore(Path(self.folder.name) / "blobs")
        self.blobs.open()
        self.workers = [Receiver(self.database, self.blobs) for _ in range(workers)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.database.close()
        self.folder.cleanup()

    def rows(self, table):
        with self.database.read() as connection:
            return connection.execute(select(table)).all()


def batches(messages, rng, largest=12):
    while messages:
        size = rng.randint(1, largest)
        yield messages[:size]
        messages = messages[size:]


@_SETTINGS
@given(
    numbers=st.lists(st.integers(0, 15), min_size=1, max_size=40),
    triages=st.lists(st.sampled_from(list(Triage)), min_size=3, max_size=3),
    seed=st.integers(0, 1 << 32),
)
def test_any_order_and_number_of_copies_ends_in_the_same_rows(numbers, triages, seed):
    """Three revisions of each capture: the highest counts, whichever came last."""
    rng = random.Random(seed)
    messages = [result(n, revision=r, triage=triages[r]) for n in numbers for r in range(3)]
    expected = {m.id: sha256(incoming(m).payload) for m in messages}
    rng.shuffle(messages)
    with Hub(workers=3) as hub:
        stored = {}
        for batch in batches([incoming(m) for m in messages], rng):
            for key, items in answers(rng.choice(hub.workers).handle(batch)).items():
                assert {status for status, _, _ in items} == {"stored"}
                stored[key] = items[0][1]
        assert stored == expected
        assert {row.id: row.sha256 for row in hub.rows(tables.result)} == expected
        captures = {row.id: row for row in hub.rows(tables.capture)}
        assert set(captures) == {m.capture.id for m in messages}
        assert {(row.revision, row.rank) for row in captures.values()} == {(2, triages[2].rank)}
        assert hub.rows(tables.conflict) == []


@_SETTINGS
@given(variants=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=st.integers(0, 1 << 32))
def test_of_contradicting_messages_the_first_stays_and_each_other_is_a_conflict_once(variants, seed):
    rng = random.Random(seed)
    messages = [incoming(result(1, advice=f"variant {v}")) for v in variants]
    with Hub(workers=2) as hub:
        for batch in batches(messages, rng, 4):
            for items in answers(rng.choice(hub.workers).handle(batch)).values():
                assert len(items) == len({m.payload for m in batch})
        [row] = hub.rows(tables.result)
        others = {sha256(m.payload) for m in messages} - {row.sha256}
        assert row.payload in {m.payload for m in messages}
        assert {(c.id, c.sha256) for c in hub.rows(tables.conflict)} == {(row.id, other) for other in others}


@_SETTINGS
@given(
    size=st.integers(1, 60_000),
    chunk=st.integers(500, 20_000),
    copies=st.integers(1, 3),
    workers=st.integers(1, 3),
    seed=st.integers(0, 1 << 32),
)
def test_a_transfer_is_whole_after_any_order_of_any_mixture_of_chunk_sizes(size, chunk, copies, workers, seed):
    """The sender may change its chunk size on the way: pieces overlap. Receipts never promise what is not there."""
    rng = random.Random(seed)
    data = rng.randbytes(size)
    messages = [c for n in range(copies) for c in pieces(data, size=chunk + 37 * n)]
    rng.shuffle(messages)
    with Hub(workers) as hub:
        have = bytearray(size)
        key = messages[0].id
        for batch in batches(messages, rng, 5):
            [(status, digest, offset)] = answers(rng.choice(hub.workers).handle(map_chunks(batch)))[key]
            for piece in batch:
                have[piece.offset : piece.offset + len(piece.data)] = b"\1" * len(piece.data)
            assert offset == (have.index(0) if 0 in have else size)
            assert status == ("partial" if 0 in have else "stored")
        assert digest == hashlib.sha256(data).hexdigest()
        assert hub.blobs.path(digest).read_bytes() == data
        assert list(hub.blobs.part_ids()) == []


def map_chunks(batch):
    return [incoming_chunk(chunk) for chunk in batch]


_TOPICS = st.sampled_from(
    [
        *(f"bedside/v1/site-1/box-1/up/{leaf}" for leaf in ("result", "blob", "status", "telemetry", "receipt", "x")),
        "bedside/v1/site-1/box-1/down/receipt",
        "bedside/v1/SITE/box/up/result",
        "$SYS/broker",
        "",
    ]
)
_VALID = [
    incoming(result(7)).payload,
    b'{"schema":"bedside/status/1","online":true}',
    b'{"schema":"bedside/telemetry/1","values":{"a":1}}',
    b'{"schema":"bedside/receipt/1","items":[]}',
]


@st.composite
def damaged(draw):
    """A valid message with a few bytes changed, cut or repeated."""
    payload = bytearray(draw(st.sampled_from(_VALID)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(payload) - 1)))
        what = draw(st.sampled_from(["change", "cut", "repeat"]))
        if what == "change" and payload:
            payload[at] = draw(st.integers(0, 255))
        elif what == "cut":
            del payload[at:]
        else:
            payload += payload[at : at + 50]
    return bytes(payload)


_HOSTILE = st.builds(
    Incoming,
    _TOPICS,
    st.one_of(st.binary(max_size=200), damaged()),
    st.lists(
        st.tuples(
            st.sampled_from(list("ckhonxe")), st.one_of(st.text(max_size=70), st.just("0" * 32), st.just("f" * 64))
        ),
        max_size=7,
    ).map(tuple),
    st.text(max_size=20),
)


@_SETTINGS
@given(hostile=st.lists(_HOSTILE, max_size=12), seed=st.integers(0, 1 << 32))
def test_hostile_messages_cost_a_good_neighbour_nothing(hostile, seed):
    rng = random.Random(seed)
    good = [incoming(result(n)) for n in range(3)] + map_chunks(pieces(b"z" * 5_000, size=1_000))
    messages = [*hostile, *good]
    rng.shuffle(messages)
    with Hub() as hub:
        published = [p for batch in batches(messages, rng) for p in hub.workers[0].handle(batch)]
        for _, payload in published:
            assert decode(payload, Receipt).items
        found = answers(published)
        for n in range(3):
            assert ("stored", sha256(incoming(result(n)).payload), 0) in found[result(n).id]
        assert ("stored", hashlib.sha256(b"z" * 5_000).hexdigest(), 5_000) in found[pieces(b"z" * 5_000)[0].id]


@_SETTINGS
@given(
    events=st.lists(
        st.tuples(st.sampled_from([BOX, OTHER_BOX]), st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=40
    ),
    seed=st.integers(0, 1 << 32),
)
def test_a_capture_never_changes_its_device(events, seed):
    """One box sends results of its own and, now and then, of the other one's captures."""
    rng = random.Random(seed)
    messages = [
        incoming(result(number, address=address if honest else BOX, revision=revision), address)
        for address, number, revision, honest in events
    ]
    with Hub(workers=2) as hub:
        owner = {}
        for batch in batches(messages, rng, 6):
            rng.choice(hub.workers).handle(batch)
            for row in hub.rows(tables.capture):
                assert owner.setdefault(row.id, row.device) == row.device
        assert {row.device for row in hub.rows(tables.result)} <= {BOX.key, OTHER_BOX.key}
        for row in hub.rows(tables.result):
            assert owner[row.capture_id] == row.device
