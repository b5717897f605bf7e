"""A hub in memory behind the uplink's own interface, with time, loss, doubling and reordering under the test's control.

It keeps the hub's side of the contract (``appliance.protocol``): it stores before it says so, confirms doubles again, keeps
conflicts aside, compares the whole of a transfer before it says ``stored``.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from appliance.protocol import chunks, messages
from appliance.protocol.messages import ReceiptItem, Result
from appliance.sync.uplink import Uplink


class Time:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class HubSimulator:
    """Takes what is published, in the order and as often as ``chance`` decides, and answers with receipts."""

    def __init__(self, seed: int = 0, *, loss: float = 0.0, doubling: float = 0.0, shuffle: bool = False) -> None:
        self.chance = random.Random(seed)
        self.loss, self.doubling, self.shuffle = loss, doubling, shuffle
        self.online = True
        self.results: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, tuple[bytearray, list[tuple[int, int]]]] = {}
        self.order: list[str] = []
        self.received_bytes = 0
        self.repeated_bytes = 0
        self._queue: list[tuple[str, bytes, int, str, Sequence[tuple[str, str]]]] = []

    def publish(
        self, leaf: str, payload: bytes, token: int, content_type: str, properties: Sequence[tuple[str, str]]
    ) -> bool:
        """See ``appliance.sync.uplink.Wire``."""
        if not self.online:
            return False
        self._queue.append((leaf, payload, token, content_type, properties))
        return True

    def exchange(self, uplink: Uplink) -> None:
        """Deliver what is on the way and hand the receipts back, both with the faults asked for."""
        batch, self._queue = self._queue, []
        items: list[ReceiptItem] = []
        arrivals = []
        for entry in batch:
            uplink.acknowledged(entry[2])
            if self.chance.random() >= self.loss:
                arrivals += [entry] * (2 if self.chance.random() < self.doubling else 1)
        if self.shuffle:
            self.chance.shuffle(arrivals)
        for leaf, payload, _, content_type, properties in arrivals:
            items.append(self._take(leaf, payload, content_type, properties))
        uplink.receipts([item for item in items if self.chance.random() >= self.loss])

    def cut(self, uplink: Uplink) -> None:
        """The connection ends; what is on the way arrives or not, its receipts never."""
        for leaf, payload, _, content_type, properties in self._queue:
            if self.chance.random() >= 0.5:
                self._take(leaf, payload, content_type, properties)
        self._queue = []
        uplink.disconnected()

    def _take(self, leaf: str, payload: bytes, content_type: str, properties: Sequence[tuple[str, str]]) -> ReceiptItem:
        self.received_bytes += len(payload)
        if leaf == "result":
            result = messages.decode(payload, Result)
            digest = messages.sha256(payload)
            before = self.results.setdefault(result.id, payload)
            if before is payload:
                self.order.append(result.id)
            return ReceiptItem(id=result.id, sha256=digest, status="stored" if before == payload else "conflict")
        return self._chunk(chunks.parse(properties, content_type, payload))

    def _chunk(self, chunk: chunks.Chunk) -> ReceiptItem:
        if chunk.sha256 in self.blobs:
            self.repeated_bytes += len(chunk.data)
            return ReceiptItem(id=chunk.id, sha256=chunk.sha256, status="stored", offset=chunk.total)
        data, ranges = self.parts.setdefault(chunk.id, (bytearray(chunk.total), []))
        end = chunk.offset + len(chunk.data)
        before = sum(b - a for a, b in ranges)
        data[chunk.offset : end] = chunk.data
        ranges[:] = chunks.merge([*ranges, (chunk.offset, end)])
        self.repeated_bytes += len(chunk.data) - (sum(b - a for a, b in ranges) - before)
        self.order.append(chunk.id)
        if ranges == [(0, chunk.total)] and hashlib.sha256(data).hexdigest() == chunk.sha256:
            self.blobs[chunk.sha256] = bytes(data)
            del self.parts[chunk.id]
            return ReceiptItem(id=chunk.id, sha256=chunk.sha256, status="stored", offset=chunk.total)
        first = ranges[0][1] if ranges[0][0] == 0 else 0
        return ReceiptItem(id=chunk.id, sha256=chunk.sha256, status="partial", offset=first)
