"""What arrived, once it has been checked, and the answers to it: the words that the parts of the ingest share."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Literal, NamedTuple

import msgspec

from appliance.protocol.chunks import Chunk
from appliance.protocol.messages import Checkpoint, Receipt, Renewal, Result, Status
from appliance.protocol.topics import Address

Answer = Literal["stored", "partial", "conflict", "refused"]


class Incoming(NamedTuple):
    """A message as the broker delivers it; ``properties`` are MQTT 5 user properties."""

    topic: str
    payload: bytes
    properties: tuple[tuple[str, str], ...] = ()
    content_type: str = ""
    is_proven: bool = False
    """Whether it is known already whose it is: it came in a parcel that its box has signed."""


class ResultArrival(NamedTuple):
    """A result that kept to the schema; ``sha256`` is that of ``payload``."""

    address: Address
    message: Result
    payload: bytes
    sha256: str


class ChunkArrival(NamedTuple):
    """A piece that agrees with its header."""

    address: Address
    chunk: Chunk


class ReceiptArrival(NamedTuple):
    """A box's word on reviews and commands."""

    address: Address
    message: Receipt


class StateArrival(NamedTuple):
    """A status or telemetry message; ``status`` is None for telemetry."""

    address: Address
    status: Status | None
    payload: bytes


class RenewalArrival(NamedTuple):
    """A box asks for a new certificate; ``key``: the short name of the key that it signed with."""

    address: Address
    message: Renewal
    key: str


class CheckpointArrival(NamedTuple):
    """Where a box's audit log stands; ``key``: the short name of the key that it signed with."""

    address: Address
    message: Checkpoint
    key: str
    payload: bytes
    sha256: str


class Rejected(NamedTuple):
    """Something that is not a message of this protocol, or not proven to be the box's: counted.

    ``aside``: a result that is kept aside for a human, because nobody knows whose it is; ``reason`` why.
    """

    device: str
    leaf: str
    cause: str
    size: int
    sha256: str
    aside: ResultArrival | None = None
    reason: str = ""


class Reply(NamedTuple):
    """One item of a receipt, and to whom it goes."""

    address: Address
    id: str
    sha256: str
    status: Answer
    offset: int = 0
    reason: str = ""


class Named(msgspec.Struct, frozen=True):
    """Just the id of a message that otherwise breaks the schema, so that its sender can be told."""

    id: str = ""


def rfc3339(ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
