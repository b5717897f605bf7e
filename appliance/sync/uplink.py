"""What is sent next: one scheduler over everything that wants the link (promise 4).

What this module keeps true:

1. The next thing sent is always the most urgent that waits: a critical result overtakes a half-sent image at the next chunk.
2. Nothing is closed here but by ``receipts``: what was sent and not confirmed is sent again, with growing patience while the
   hub stays silent.
3. A transfer goes on from the offset that the hub confirmed last; after a reconnect, chunks wait ``GRACE`` seconds for the
   receipts that the broker kept meanwhile, so that little is sent twice.
4. The daily budget stops everything but critical results.

No thread and no clock of its own: ``step`` is called by the link's thread, and by tests with a simulated hub and time.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog

from appliance.config import LinkConfig
from appliance.protocol import chunks
from appliance.protocol.messages import ReceiptItem
from appliance.store import usage
from appliance.store.errors import StoreError
from appliance.store.journal import Transaction
from appliance.store.outbox import Item, Outcome, Priority
from appliance.store.store import MB, Store
from appliance.store.transfers import Transfer
from appliance.sync.pacing import Pacing
from appliance.sync.sending import Sending

_log = structlog.get_logger(__name__)

GRACE, EXPIRE_EVERY = 0.25, 0.25
AWAITING = 500
"""Messages sent and not yet confirmed by the hub: mosquitto drops what it queues beyond 1,000 for an absent hub."""
AHEAD = 2 << 20
"""Bytes of one transfer sent and not yet confirmed by the hub."""
REFUSED_PAUSE = 600.0
FETCHED, FETCHED_BYTES = 32, 1 << 20
"""Most messages, and bytes of them, that are read from the journal at once."""
_OVERHEAD = 60
_CHUNK_OVERHEAD = 240
_PATIENCE = 64


class Wire(Protocol):
    """What the scheduler needs of a connection."""

    def publish(
        self, leaf: str, payload: bytes, token: int, content_type: str, properties: Sequence[tuple[str, str]]
    ) -> bool:
        """Hand a QoS 1 message over; ``False`` if the connection is gone. ``token`` comes back in ``acknowledged``."""


class Uplink:
    """The scheduler. ``monotonic`` gives seconds; ``day`` the present date as ``YYYY-MM-DD``."""

    def __init__(
        self, store: Store, config: LinkConfig, monotonic: Callable[[], float], day: Callable[[], str]
    ) -> None:
        self._store = store
        self._config = config
        self._monotonic = monotonic
        self._day = day
        self._lock = threading.RLock()
        self._tokens = itertools.count(1)
        self._pacing = Pacing(config.chunk, config.in_flight)
        self._wire: Wire | None = None
        self._awaiting: dict[str, float] = {}
        self._held: dict[str, float] = {}
        self._ready: deque[Item] = deque()
        self._taken_up_to = (-1, 0)
        self._payloads: dict[str, bytes] = {}
        self._sending: dict[str, Sending] = {}
        self._changed = True
        self._grace_until = self._expire_at = 0.0
        self._patience = 1
        self._unwritten = [0, 0]
        self._offsets: dict[str, tuple[str, int]] = {}
        self._unwritten_offsets: set[str] = set()
        self._offsets_at = 0.0
        self._spent = (self._day(), usage.of_day(store.journal, self._day()))
        self._furthest: dict[str, int] = {}
        self.proof_bytes = 0
        """What the link adds to each message to prove whose it is: it is paid for too."""
        self.sent_bytes = 0
        self.sent_again_bytes = 0
        self.sent_messages = 0

    @property
    def pacing(self) -> Pacing:
        """Window and rate, for status and benchmarks."""
        return self._pacing

    def changed(self) -> None:
        """Something new waits: look again before the next send."""
        self._changed = True

    def connected(self, wire: Wire, receive_maximum: int = 65535) -> None:
        """A new connection stands: whatever was on its way is unknown and will be sent again unless receipted.

        ``receive_maximum``: messages that the broker takes without having acknowledged them.
        """
        with self._lock:
            self._wire = wire
            self._pacing.reset(min(self._config.in_flight, receive_maximum))
            self._awaiting.clear()
            self._sending.clear()
            self._changed = True
            self._grace_until = self._monotonic() + GRACE

    def disconnected(self) -> None:
        """The connection is gone."""
        with self._lock:
            self._wire = None
            self._flush(self._monotonic(), force=True)

    def acknowledged(self, token: int) -> None:
        """The broker has a message (PUBACK): room in the window, and no more than that."""
        with self._lock:
            self._pacing.acknowledged(token, self._monotonic())

    def step(self) -> float:
        """Send all that may be sent now; seconds until there may be more without anything new happening."""
        with self._lock:
            now = self._monotonic()
            if now >= self._expire_at:
                self._expire(now)
            self._flush(now)
            while self._wire is not None and self._pacing.room():
                if not self._send_next(now):
                    break
                now = self._monotonic()
            return 0.2 if self._wire is not None else 1.0

    def receipts(self, items: Iterable[ReceiptItem]) -> list[str]:
        """Apply the hub's receipts durably; the captures that are wholly delivered now."""
        final: list[tuple[ReceiptItem, Outcome]] = []
        with self._lock:
            now = self._monotonic()
            for item in items:
                self._patience = 1
                if item.status == "partial":
                    self._partial(item)
                    continue
                self._awaiting.pop(item.id, None)
                if item.status == "refused":
                    self._held[item.id] = now + REFUSED_PAUSE
                    self._sending.pop(item.id, None)
                final.append((item, "delivered" if item.status == "stored" else item.status))
        if not final:
            return []

        def apply(tx: Transaction) -> list[str]:
            plain = [(item.id, item.sha256) for item, outcome in final if _is_message(item) and outcome == "delivered"]
            touched: set[str | None] = {*self._store.outbox.close_delivered(tx, plain)}
            for item, outcome in final:
                if not _is_message(item):
                    touched.add(self._store.transfers.close(tx, item.id, item.sha256, outcome, item.reason))
                elif outcome != "delivered":
                    touched.add(self._store.outbox.close(tx, item.id, item.sha256, outcome, item.reason))
            return self._store.captures.delivered_if_complete(tx, *filter(None, touched))

        delivered = self._store.journal.write(apply)
        with self._lock:
            for item, _ in final:
                self._sending.pop(item.id, None)
                self._offsets.pop(item.id, None)
                self._furthest.pop(item.id, None)
            self._changed = self._changed or not all(_is_message(item) for item, _ in final)
        return delivered

    def _partial(self, item: ReceiptItem) -> None:
        self._offsets[item.id] = (item.sha256, item.offset)
        self._unwritten_offsets.add(item.id)
        sending = self._sending.get(item.id)
        if sending is not None and sending.transfer.sha256 == item.sha256:
            sending.confirmed = min(item.offset, sending.transfer.size)
            sending.cursor = max(sending.cursor, sending.confirmed)

    def _send_next(self, now: float) -> bool:
        if self._changed:
            self._reload()
        elif not self._ready and len(self._awaiting) <= AWAITING * 3 // 4:
            self._take_more()
        message = next((item for item in self._ready if self._may(item.critical)), None)
        sending = self._next_transfer(now) if self._sending else None
        if message is not None and (sending is None or message.priority <= sending.transfer.priority):
            self._ready.remove(message)  # nearly always the first: a deque gives that up at once
            return self._send_message(message, now)
        return sending is not None and self._send_chunk(sending, now)

    def _reload(self) -> None:
        self._changed = False
        waiting = self._store.outbox.waiting(AWAITING + len(self._awaiting) + len(self._held))
        fresh = [item for item in waiting if item.id not in self._awaiting and item.id not in self._held]
        self._ready.clear()
        self._taken_up_to = (-1, 0)
        room = AWAITING - len(self._awaiting)
        if room > 0:
            self._take_up(fresh[:room])
        else:
            self._ready.extend(item for item in fresh if item.critical)
        waiting_transfers = self._store.transfers.waiting(16 + len(self._held))
        present = self._sending
        self._sending = {
            item.id: present.get(item.id) or self._begin(item)
            for item in waiting_transfers
            if item.id not in self._held
        }

    def _take_more(self) -> None:
        """Nothing has changed and what was taken up has been sent: go on behind it, without reading it all again."""
        more = self._store.outbox.waiting(AWAITING - len(self._awaiting), self._taken_up_to)
        self._take_up([item for item in more if item.id not in self._awaiting and item.id not in self._held])

    def _take_up(self, items: list[Item]) -> None:
        self._ready.extend(items)
        if items:
            self._taken_up_to = (items[-1].priority, items[-1].sequence)

    def _begin(self, transfer: Transfer) -> Sending:
        sending = Sending(transfer)
        sha256, offset = self._offsets.get(transfer.id, ("", 0))
        if sha256 == transfer.sha256:
            sending.confirmed = min(offset, transfer.size)
            sending.ask_again()
        return sending

    def _next_transfer(self, now: float) -> Sending | None:
        if now < self._grace_until or not self._may(critical=False):
            return None
        for sending in self._sending.values():
            if sending.cursor < sending.transfer.size and sending.cursor - sending.confirmed < AHEAD:
                return sending
        return None

    def _may(self, critical: bool) -> bool:
        if critical or not self._config.daily_budget:
            return True
        day, (spent, spent_critical) = self._spent
        if day != self._day():
            self._spent = (self._day(), usage.of_day(self._store.journal, self._day()))
            day, (spent, spent_critical) = self._spent
        return spent - spent_critical < self._config.daily_budget * MB

    def _send_message(self, item: Item, now: float) -> bool:
        payload = self._payload(item)
        if payload is None:
            self._unsealable(item, now)
            return True
        if not self._publish(item.leaf, payload, _OVERHEAD, now, critical=item.critical):
            return False
        self._awaiting[item.id] = now + self._config.receipt_timeout * self._patience
        return True

    def _payload(self, item: Item) -> bytes | None:
        """The message's bytes; the next ones are fetched with them, because asking costs more than what is asked for."""
        if item.id not in self._payloads:
            wanted, size = [item.id], item.size
            for other in itertools.islice(self._ready, FETCHED - 1):
                size += other.size
                if size > FETCHED_BYTES:
                    break
                wanted.append(other.id)
            self._payloads = self._store.outbox.payloads(wanted)
        return self._payloads.pop(item.id, None)

    def _unsealable(self, item: Item, now: float) -> None:
        """One message that the disk lost must not stop the link either."""
        reason = "can't be unsealed; it was changed on disk or sealed with another box's key"
        _log.error("a message can't be sent", capture=item.capture_id, id=item.id, reason=reason)
        self._held[item.id] = now + REFUSED_PAUSE
        self._store.journal.submit(lambda tx: self._store.outbox.trouble(tx, item.id, reason))

    def _send_chunk(self, sending: Sending, now: float) -> bool:
        transfer = sending.transfer
        try:
            data = sending.piece(self._store, self._pacing.chunk)
        except (StoreError, OSError) as error:
            self._unreadable(transfer, str(error), now)
            return True
        chunk = chunks.Chunk(
            capture_id=transfer.capture_id,
            kind=transfer.kind,
            sha256=transfer.sha256,
            offset=sending.cursor,
            total=transfer.size,
            media_type=transfer.media_type,
            data=data,
            encoding=transfer.encoding,
        )
        header = chunks.properties(chunk)
        if not self._publish("blob", data, _CHUNK_OVERHEAD, now, content_type=transfer.media_type, header=header):
            return False
        furthest = self._furthest.get(transfer.id, 0)
        self.sent_again_bytes += max(0, min(sending.cursor + len(data), furthest) - sending.cursor)
        sending.cursor += len(data)
        self._furthest[transfer.id] = max(furthest, sending.cursor)
        sending.ended = now + self._config.receipt_timeout * self._patience
        return True

    def _unreadable(self, transfer: Transfer, reason: str, now: float) -> None:
        """One blob that the disk lost must not stop the link: it is put off and said, the others go on."""
        _log.error("a blob can't be sent", capture=transfer.capture_id, kind=transfer.kind, reason=reason)
        self._held[transfer.id] = now + REFUSED_PAUSE
        self._sending.pop(transfer.id, None)
        self._store.journal.submit(lambda tx: self._store.transfers.trouble(tx, transfer.id, reason))

    def _publish(
        self,
        leaf: str,
        payload: bytes,
        overhead: int,
        now: float,
        *,
        critical: bool = False,
        content_type: str = "application/json",
        header: Sequence[tuple[str, str]] = (),
    ) -> bool:
        token, size = next(self._tokens), len(payload) + overhead + self.proof_bytes
        self._pacing.sent(token, size, now)
        if self._wire is None or not self._wire.publish(leaf, payload, token, content_type, header):
            self._wire = None
            return False
        self.sent_bytes += size
        self.sent_messages += 1
        day, (spent, spent_critical) = self._spent
        self._spent = (day, (spent + size, spent_critical + size * critical))
        self._unwritten[0] += size
        self._unwritten[1] += size * critical
        return True

    def _expire(self, now: float) -> None:
        """What the hub didn't confirm in time is sent again, more patiently each time."""
        self._expire_at = now + EXPIRE_EVERY
        late = [identity for identity, until in self._awaiting.items() if until <= now]
        stuck = [one for one in self._sending.values() if one.ended is not None and one.ended <= now]
        for identity in late:
            del self._awaiting[identity]
        for sending in stuck:
            sending.ended = None
            sending.ask_again()
        ended = [identity for identity, until in self._held.items() if until <= now]
        for identity in ended:
            del self._held[identity]
        if late or stuck:
            self._patience = min(self._patience * 2, _PATIENCE)
        self._changed = self._changed or bool(late or stuck or ended)

    def _flush(self, now: float, *, force: bool = False) -> None:
        """Write counted bytes and confirmed offsets now and then: losing them costs some bytes, never data."""
        if not (force or now - self._offsets_at > 2.0) or not (any(self._unwritten) or self._unwritten_offsets):
            return
        self._offsets_at = now
        (count, critical), self._unwritten = self._unwritten, [0, 0]
        offsets = {one: self._offsets[one] for one in self._unwritten_offsets if one in self._offsets}
        self._unwritten_offsets.clear()
        day = self._spent[0]

        def write(tx: Transaction) -> None:
            usage.add(tx, day, count, critical)
            for identity, (sha256, offset) in offsets.items():
                self._store.transfers.confirm(tx, identity, sha256, offset)

        self._store.journal.submit(write)


def _is_message(item: ReceiptItem) -> bool:
    return not item.id.startswith("blob:")


__all__ = ["AHEAD", "AWAITING", "GRACE", "Priority", "Uplink", "Wire"]
