"""Obeys what the hub says: receipts close rows, reviews and commands are kept and then confirmed.

What this module keeps true: a review or command is confirmed only after it is durable in the inbox; the same one again is
confirmed again and done once; one that is malformed is counted, logged without its content, and disturbs nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal, Protocol

import structlog

from appliance.protocol import messages
from appliance.protocol.messages import Command, MessageError, Receipt, ReceiptItem, ReviewMessage
from appliance.records import Moment
from appliance.store import audit
from appliance.store.journal import Transaction
from appliance.store.store import Store
from appliance.sync.uplink import Uplink

_log = structlog.get_logger(__name__)

_HUB_TIME_UNCERTAINTY = 2.0
"""Seconds that a hub's time may be off by the way it took, on top of the hub's own uncertainty."""


class TimeSource(Protocol):
    """The clock, as far as this room needs it."""

    def now(self) -> Moment:
        """The present moment."""

    def anchor_text(self, wall: str, uncertainty_s: float) -> bool:
        """Somebody says it is ``wall`` (RFC 3339), give or take; whether it is believed."""


class Downlink:
    """Takes what comes down. ``reply`` publishes an encoded receipt; ``arrived`` is told of each new review or command."""

    def __init__(
        self,
        store: Store,
        uplink: Uplink,
        clock: TimeSource,
        reply: Callable[[bytes], None],
        arrived: Callable[[ReviewMessage | Command], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._uplink = uplink
        self._clock = clock
        self._reply = reply
        self._arrived = arrived
        self._heard = ""
        self.counts: Counter[str] = Counter()

    def received(self, leaf: str, payload: bytes) -> None:
        """Take one message; returns when it is durable. Raises only when the store could not take it."""
        try:
            if leaf == "receipt":
                self._receipt(messages.decode(payload, Receipt))
            elif leaf == "review":
                self._keep(messages.decode(payload, ReviewMessage), payload)
            elif leaf == "command":
                self._keep(messages.decode(payload, Command), payload)
        except MessageError as error:
            self.counts[f"bad-{leaf}"] += 1
            _log.warning("malformed message from the hub", leaf=leaf, error=str(error)[:200], size=len(payload))

    def _receipt(self, receipt: Receipt) -> None:
        if receipt.time > self._heard and receipt.uncertainty_s is not None:  # an old one said again tells no time
            self._heard = receipt.time
            self._clock.anchor_text(receipt.time, receipt.uncertainty_s + _HUB_TIME_UNCERTAINTY)
        self.counts["receipts"] += len(receipt.items)
        delivered = self._uplink.receipts(receipt.items)
        for item in receipt.items:
            if item.status in ("conflict", "refused"):
                self.counts[item.status] += 1
                _log.warning("the hub did not store", id=item.id, status=item.status, reason=item.reason[:200])
        self.counts["delivered"] += len(delivered)

    def _keep(self, message: ReviewMessage | Command, payload: bytes) -> None:
        digest = messages.sha256(payload)
        moment = self._clock.now()

        def keep(tx: Transaction) -> Literal["new", "duplicate", "conflict"]:
            taken = self._store.inbox.take(tx, message, digest, moment.wall)
            if taken == "new":
                kind = message.decision if isinstance(message, ReviewMessage) else message.kind
                audit.append(tx, moment, "received", message.capture_id or "", f"{message.id} {kind}")
                if isinstance(message, Command) and message.kind == "resend" and message.capture_id:
                    self._resend(tx, message.capture_id)
            return taken

        taken = self._store.journal.write(keep)
        self.counts[taken] += 1
        status: Literal["stored", "conflict"] = "conflict" if taken == "conflict" else "stored"
        self._reply(messages.encode(Receipt(items=[ReceiptItem(id=message.id, sha256=digest, status=status)])))
        if taken == "new":
            self._arrived(message)
            self._uplink.changed()

    def _resend(self, tx: Transaction, capture_id: str) -> None:
        row = tx.one("SELECT state, removed FROM capture WHERE id = ?", capture_id)
        if row is None:
            _log.warning("the hub asked for a capture that is not on this box", capture=capture_id)
            return
        if row["removed"]:
            _log.warning(
                "the hub asked for a capture whose files were removed; its result goes again", capture=capture_id
            )
        self._store.outbox.reopen(tx, capture_id)
        self._store.transfers.reopen(tx, capture_id)
        if row["state"] == "delivered":
            self._store.captures.reopen(tx, capture_id)
