"""The ingest's core, without MQTT: a batch of messages in, receipts out, and in between one durable transaction.

What this module keeps true: receipts are returned only after the commit that they speak of; a message that is hostile,
broken or refused by the database disturbs no other message of its batch; nothing of a payload is logged. If the database
can't be reached, ``StoreUnavailable`` is raised, nothing is answered, and the same batch may be handed in again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec
import structlog
from sqlalchemy import Connection, exc

from appliance.protocol import chunks, messages, topics
from appliance.protocol.messages import (
    MAXIMUM_JSON,
    Certificate,
    Checkpoint,
    MessageError,
    Receipt,
    ReceiptItem,
    Renewal,
    Result,
    Status,
    Telemetry,
)
from appliance.protocol.signing import proof_of
from appliance.protocol.topics import Address, TopicError
from hub import database as databases
from hub import outbox
from hub.arrivals import (
    CheckpointArrival,
    ChunkArrival,
    Incoming,
    Named,
    ReceiptArrival,
    Rejected,
    RenewalArrival,
    Reply,
    ResultArrival,
    StateArrival,
)
from hub.authority import AuthorityError
from hub.blobs import BlobStore
from hub.checkpoints import CheckpointStore
from hub.database import Database
from hub.devices import DeviceStore
from hub.enrolment import Enrolments
from hub.results import ResultStore
from hub.transfers import TransferStore
from hub.trust import Trust

_LOG = structlog.get_logger("hub.receive")
_LARGEST = 1 << 53
"""Sequence numbers and revisions beyond this are refused: JSON numbers lose precision there."""

Arrival = ResultArrival | ChunkArrival | ReceiptArrival | StateArrival | RenewalArrival | CheckpointArrival
Published = tuple[str, bytes]


class StoreUnavailable(Exception):  # noqa: N818 - the state, not a fault of the caller's
    """The database can't take the batch now; nothing of it was answered, hand it in again."""


class Receiver:
    """Takes batches in. One per worker; ``handle`` is called from one thread at a time."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        *,
        sender: str = "hub-1",
        uncertainty_s: float | None = None,
        refuse_below: int = 0,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        trust: Trust | None = None,
        enrolments: Enrolments | None = None,
    ) -> None:
        """``sender`` and ``uncertainty_s`` (of this clock) stand in receipts; ``refuse_below`` in free bytes.

        Without ``trust`` every message is taken for that of the box whose topic it came on; ``enrolments`` renews.
        """
        self._trust, self._enrolments = trust, enrolments
        self.counts: dict[str, int] = {}
        self._database = database
        self._sender = sender
        self._uncertainty_s = uncertainty_s
        self._clock_ms = clock_ms
        self._results = ResultStore(database)
        self._transfers = TransferStore(database, blobs, refuse_below=refuse_below)
        self._checkpoints = CheckpointStore(database)
        self._devices = DeviceStore(database)

    def handle(self, batch: Sequence[Incoming]) -> list[Published]:
        """Take a batch in; the (topic, payload) pairs to publish, one receipt a device. Raises ``StoreUnavailable``."""
        arrivals: list[Arrival] = []
        rejected: list[Rejected] = []
        replies: list[Reply] = []
        for incoming in batch:
            try:
                arrival = _parse(incoming)
            except (TopicError, MessageError) as error:
                rejection, reply = _reject(incoming, error)
                rejected.append(rejection)
                replies += reply
                continue
            problem = self._problem(arrival.address, incoming)
            if problem:
                rejected.append(_unproven(arrival, incoming, problem))
                replies += _refusal(arrival, problem)
            else:
                arrivals.append(arrival)
        self._count("messages", len(batch))
        replies += self._store(arrivals, rejected)
        for rejection in rejected:
            self._count("rejected")
            _LOG.warning("message rejected", device=rejection.device, leaf=rejection.leaf, cause=rejection.cause)
        return [*self._receipts(replies), *self._renewed(arrivals)]

    def now_ms(self) -> int:
        """This receiver's clock, in milliseconds since 1970."""
        return self._clock_ms()

    def _problem(self, address: Address, incoming: Incoming) -> str:
        if self._trust is None or incoming.is_proven:
            return ""
        try:
            return self._trust.problem(address.key, incoming)
        except exc.SQLAlchemyError as error:
            raise StoreUnavailable(f"database: {type(error).__name__}; check database.url and its server") from error

    def _renewed(self, arrivals: list[Arrival]) -> list[Published]:
        """The certificates that were asked for; one that can't be had is asked for again by its box."""
        published = []
        for asked in arrivals:
            if isinstance(asked, RenewalArrival) and self._enrolments is not None:
                try:
                    pem = asked.message.signing_request
                    answer = self._enrolments.renew(asked.address, asked.key, pem, self._clock_ms())
                except (AuthorityError, exc.SQLAlchemyError) as error:
                    _LOG.warning("not renewed", device=asked.address.key, error=str(error)[:200])
                    continue
                said = Certificate(
                    id=asked.message.id,
                    certificate=answer.certificate,
                    authority=answer.authority,
                    hub_keys=answer.hub_keys,
                    broker=answer.broker,
                    parcel_key=answer.parcel_key,
                )
                published.append((asked.address.down("certificate"), messages.encode(said)))
        return published

    def _store(self, arrivals: list[Arrival], rejected: list[Rejected]) -> list[Reply]:
        now_ms = self._clock_ms()
        try:
            with self._database.write() as connection:
                replies, whole = self._take_in(connection, arrivals, rejected, now_ms)
            self._devices.committed()
            return self._finish(replies, whole, now_ms)
        except exc.SQLAlchemyError as error:
            self._devices.undone()
            return self._answer_failure(error, arrivals, rejected)
        except OSError as error:
            self._devices.undone()
            raise StoreUnavailable(f"blob store: {error.strerror or error}; check storage.blobs") from error

    def _take_in(
        self, connection: Connection, arrivals: list[Arrival], rejected: list[Rejected], now_ms: int
    ) -> tuple[list[Reply], set[str]]:
        self._devices.seen(connection, (arrival.address for arrival in arrivals), now_ms)
        replies: list[Reply] = []
        whole: set[str] = set()
        if results := [a for a in arrivals if isinstance(a, ResultArrival)]:
            replies += self._results.store(connection, results, now_ms)
        if pieces := [a for a in arrivals if isinstance(a, ChunkArrival)]:
            answers, whole = self._transfers.store(connection, pieces, now_ms)
            replies += answers
        if receipts := [a for a in arrivals if isinstance(a, ReceiptArrival)]:
            outbox.close(connection, receipts, now_ms)
        if states := [a for a in arrivals if isinstance(a, StateArrival)]:
            outbox.hurry(connection, self._devices.state(connection, states, now_ms), now_ms)
        if checkpoints := [a for a in arrivals if isinstance(a, CheckpointArrival)]:
            replies += self._checkpoints.store(connection, checkpoints, now_ms)
        self._devices.rejected(connection, rejected, now_ms)
        self._results.keep_aside(connection, rejected, now_ms)
        return replies, whole

    def _finish(self, replies: list[Reply], whole: set[str], now_ms: int) -> list[Reply]:
        answers: dict[str, tuple[Any, int, str]] = {}
        for key in sorted(whole):
            answers[key] = self._transfers.finish(key, now_ms)
        finished = []
        for reply in replies:
            if reply.status == "partial" and reply.id in answers:
                status, offset, reason = answers[reply.id]
                finished.append(reply._replace(status=status, offset=offset, reason=reason))
            else:
                finished.append(reply)
        return finished

    def _answer_failure(
        self, error: exc.SQLAlchemyError, arrivals: list[Arrival], rejected: list[Rejected]
    ) -> list[Reply]:
        if isinstance(error, exc.DBAPIError) and databases.is_full(error):
            self._count("refused_full", len(arrivals))
            return [reply for a in arrivals for reply in _refusal(a, "the hub's database has no space left")]
        if not databases.is_of_the_data(error):
            raise StoreUnavailable(f"database: {type(error).__name__}; check database.url and its server") from error
        if len(arrivals) > 1:  # one of them is at fault: alone, each shows whether it is the one
            alone = [reply for a in arrivals for reply in self._store([a], [])]
            return alone + self._store([], rejected)
        if not arrivals:
            raise StoreUnavailable(f"database: {type(error).__name__} without any message") from error
        rejected.append(_rejected(arrivals[0].address.key, type(arrivals[0]).__name__[:16], "database", b""))
        return _refusal(arrivals[0], "the hub's database can't hold this message")

    def _receipts(self, replies: Iterable[Reply]) -> list[Published]:
        by_device: dict[Address, dict[tuple[str, str, str], Reply]] = {}
        for reply in replies:
            self._count(reply.status)
            by_device.setdefault(reply.address, {})[reply.id, reply.sha256, reply.status] = reply
        if not by_device:
            return []
        now = datetime.fromtimestamp(self._clock_ms() / 1000, timezone.utc).isoformat(timespec="milliseconds")
        published = []
        for address, items in by_device.items():
            answers = [
                ReceiptItem(id=r.id, sha256=r.sha256, status=r.status, offset=r.offset, reason=r.reason)
                for r in items.values()
            ]
            receipt = Receipt(
                items=answers,
                time=now.replace("+00:00", "Z"),
                uncertainty_s=self._uncertainty_s,
                sender=self._sender,
            )
            published.append((address.down("receipt"), messages.encode(receipt)))
        return published

    def _count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by


@functools.lru_cache(maxsize=16_384)
def _topic(topic: str) -> tuple[Address, str, str]:
    """``topics.parse``; a box sends on the same few topics again and again."""
    return topics.parse(topic)


def _parse(incoming: Incoming) -> Arrival:
    address, way, leaf = _topic(incoming.topic)
    if way != "up":
        raise TopicError(f"not a topic towards the hub: {incoming.topic!r}")
    if leaf == "result":
        message = messages.decode(incoming.payload, Result)
        _check_result(message)
        return ResultArrival(address, message, incoming.payload, messages.sha256(incoming.payload))
    if leaf == "blob":
        return ChunkArrival(address, chunks.parse(incoming.properties, incoming.content_type, incoming.payload))
    if leaf == "receipt":
        return ReceiptArrival(address, messages.decode(incoming.payload, Receipt))
    if leaf == "status":
        return StateArrival(address, messages.decode(incoming.payload, Status), incoming.payload)
    if leaf == "renewal":
        return RenewalArrival(address, messages.decode(incoming.payload, Renewal), proof_of(incoming.properties).key)
    if leaf == "checkpoint":
        said, key = messages.decode(incoming.payload, Checkpoint), proof_of(incoming.properties).key
        return CheckpointArrival(address, said, key[:16], incoming.payload, messages.sha256(incoming.payload))
    messages.decode(incoming.payload, Telemetry)
    return StateArrival(address, None, incoming.payload)


def _check_result(message: Result) -> None:
    if not message.id.startswith("result:"):
        raise MessageError("result: id is not that of a result")
    if not (0 <= message.sequence < _LARGEST and 0 <= message.revision < _LARGEST):
        raise MessageError("result: sequence or revision is not a count")
    overlay = message.overlay
    if overlay is not None and len(overlay.data) != overlay.rows * overlay.columns:
        raise MessageError("result: overlay.data does not have rows × columns bytes")


def _reject(incoming: Incoming, error: Exception) -> tuple[Rejected, list[Reply]]:
    """How a message that can't be taken is counted, and, where its id can still be read, what its sender is told."""
    try:
        address, way, leaf = topics.parse(incoming.topic)
    except TopicError:
        return _rejected("", "", "topic", incoming.payload), []
    if way != "up":
        return _rejected(address.key, leaf, "direction", incoming.payload), []
    cause = "oversize" if len(incoming.payload) > MAXIMUM_JSON else "schema"
    rejection = _rejected(address.key, leaf, cause, incoming.payload)
    if leaf != "result" or cause == "oversize":
        return rejection, []
    try:
        named = msgspec.json.decode(incoming.payload, type=Named)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return rejection, []
    try:
        item = msgspec.convert({"id": named.id, "sha256": rejection.sha256, "status": "refused"}, ReceiptItem)
    except msgspec.ValidationError:
        return rejection, []
    return rejection, [Reply(address, item.id, item.sha256, "refused", 0, _reason(error))]


def _reason(error: Exception) -> str:
    """The schema's complaint; it names fields and types, and quotes no value."""
    return str(error)[:500]


def _rejected(device: str, leaf: str, cause: str, payload: bytes) -> Rejected:
    return Rejected(device, leaf, cause, len(payload), messages.sha256(payload[:MAXIMUM_JSON]))


def _unproven(arrival: Arrival, incoming: Incoming, problem: str) -> Rejected:
    leaf = incoming.topic.rpartition("/")[2]
    aside = arrival if isinstance(arrival, ResultArrival) else None
    rejection = _rejected(arrival.address.key, leaf, "signature", incoming.payload)
    return rejection._replace(aside=aside, reason=f"nobody can say whose this is: {problem}")


def _refusal(arrival: Arrival, reason: str) -> list[Reply]:
    if isinstance(arrival, ResultArrival):
        return [Reply(arrival.address, arrival.message.id, arrival.sha256, "refused", 0, reason)]
    if isinstance(arrival, ChunkArrival):
        return [Reply(arrival.address, arrival.chunk.id, arrival.chunk.sha256, "refused", 0, reason)]
    if isinstance(arrival, CheckpointArrival):
        return [Reply(arrival.address, arrival.message.id, arrival.sha256, "refused", 0, reason)]
    return []
