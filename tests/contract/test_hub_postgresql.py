"""Claims about the hub on PostgreSQL: the same answers as on SQLite, and workers that meet in one database."""

from __future__ import annotations

import random
import threading

import pytest
import sqlalchemy
from sqlalchemy import func, select

from appliance.records import Triage
from hub import cases, fleet, reviews, tables
from hub.blobs import BlobStore
from hub.config import EscalationConfig, OutboxConfig
from hub.database import MIGRATIONS, Database
from hub.downlink import Downlink
from hub.receive import Receiver, StoreUnavailable
from tests.wire import answers, incoming, incoming_chunk, pieces, result


@pytest.fixture
def database(postgresql):
    """A database of its own in the server of the run."""
    name = f"hub_{random.randrange(1 << 60):x}"
    with sqlalchemy.create_engine(postgresql.url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    database = Database(postgresql.url.rsplit("/", 1)[0] + "/" + name)
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def blobs(tmp_path):
    blobs = BlobStore(tmp_path / "blobs")
    blobs.open()
    return blobs


def count(database, table):
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def in_parallel(*tasks):
    failures = []

    def guarded(task):
        try:
            task()
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def handle(receiver, batch):
    """As the worker does: a batch that met a deadlock or a lost connection is handed in again."""
    for _ in range(20):
        try:
            return receiver.handle(batch)
        except StoreUnavailable:
            continue
    raise AssertionError("the database does not come back")


def test_results_transfers_conflicts_and_hostile_text_are_answered_as_on_sqlite(database, blobs):
    receiver = Receiver(database, blobs)
    data = bytes(range(256)) * 200
    nul = result(9, reason="a NUL \0 in a text")
    batch = [incoming(result()), incoming(result()), incoming(result(advice="Something else.")), incoming(nul)]
    found = answers(receiver.handle([*batch, *(incoming_chunk(c) for c in pieces(data))]))
    assert sorted(item[0] for item in found[result().id]) == ["conflict", "stored"]
    assert found[nul.id][0][0] == "stored"
    assert found[pieces(data)[0].id] == [("stored", pieces(data)[0].sha256, len(data))]
    assert count(database, tables.result) == 2


def test_the_worklist_reviews_and_escalation_work_on_postgresql(database, blobs):
    receiver = Receiver(database, blobs)
    receiver.handle([incoming(result(1)), incoming(result(2, triage=Triage.ROUTINE))])
    now_ms = receiver.now_ms()
    down = Downlink(database, OutboxConfig(), EscalationConfig(critical_after=(1.0,)), lambda: now_ms + 120_000)
    assert [down.escalate(), down.escalate()] == [1, 0]
    assert len(down.tick()) == 1
    with database.read() as connection:
        lines = cases.worklist(connection, now_ms)
        assert [(line.triage, line.escalation) for line in lines] == [(Triage.CRITICAL, 1), (Triage.ROUTINE, 0)]
    with database.write() as connection:
        request = reviews.ReviewRequest(decision="accept", result_id=result(1).id)
        reviews.review(connection, database, result(1).capture.id, request, "Dr Roe", now_ms)
    with database.read() as connection:
        assert cases.case(connection, result(1).capture.id, now_ms).summary.open is False
        assert [box.open_cases for box in fleet.devices(connection)] == [1]
        assert cases.totals(connection, now_ms)["reviewed"] == 1


def test_four_workers_with_the_same_messages_in_different_orders_store_each_once(database, blobs):
    rng = random.Random(7)
    messages = [incoming(result(number, revision=revision)) for number in range(60) for revision in range(2)]

    def worker(order):
        receiver = Receiver(database, blobs)
        for start in range(0, len(order), 25):
            for items in answers(handle(receiver, order[start : start + 25])).values():
                assert {status for status, _, _ in items} == {"stored"}

    orders = [rng.sample(messages, len(messages)) for _ in range(4)]
    in_parallel(*(lambda order=order: worker(order) for order in orders))
    assert count(database, tables.result) == 120
    assert count(database, tables.capture) == 60
    assert count(database, tables.conflict) == 0


def test_workers_on_one_transfer_at_the_same_time_end_with_one_whole_blob(database, blobs):
    data = random.Random(3).randbytes(400_000)
    chunks = [incoming_chunk(c) for c in pieces(data, size=4_096)]

    def worker(seed):
        receiver = Receiver(database, blobs)
        order = random.Random(seed).sample(chunks, len(chunks))
        for start in range(0, len(order), 10):
            handle(receiver, order[start : start + 10])

    in_parallel(*(lambda seed=seed: worker(seed) for seed in range(3)))
    assert blobs.path(pieces(data)[0].sha256).read_bytes() == data
    assert list(blobs.part_ids()) == []
    with database.read() as connection:
        assert connection.execute(select(tables.transfer.c.state)).scalars().all() == ["stored"]


def test_workers_that_start_at_once_migrate_once(postgresql):
    name = f"hub_{random.randrange(1 << 60):x}"
    with sqlalchemy.create_engine(postgresql.url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    databases = [Database(postgresql.url.rsplit("/", 1)[0] + "/" + name) for _ in range(4)]
    in_parallel(*(database.migrate for database in databases))
    with databases[0].read() as connection:
        assert databases[0].version(connection) == len(MIGRATIONS)
    for database in databases:
        database.close()


def test_a_server_that_stops_makes_the_batch_wait_and_nothing_is_lost(blobs):
    from tests.servers import MissingServer, servers

    try:
        with servers.running_postgresql() as server:
            database = Database(server.url)
            database.migrate()
            receiver = Receiver(database, blobs)
            receiver.handle([incoming(result(1))])
            server.kill()
            with pytest.raises(StoreUnavailable):
                receiver.handle([incoming(result(2))])
            server.start()
            assert answers(receiver.handle([incoming(result(2))]))[result(2).id][0][0] == "stored"
            assert count(database, tables.result) == 2
            database.close()
    except MissingServer as error:
        pytest.skip(str(error))
