"""Signed checkpoints of the audit log: what a box has once said of it can't be taken back.

What this module keeps true: a checkpoint is signed by the box's own key, kept here and queued for the hub in one transaction;
it names the entry that it covers, the chain's value there, and the checkpoint before. ``contradiction`` finds entries below
a checkpoint that are not those it was made of, and a checkpoint that was not made here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from appliance.protocol import messages
from appliance.protocol.messages import Checkpoint, MessageError, make_id
from appliance.protocol.signing import Signer, is_proven
from appliance.records import Moment
from appliance.store.journal import Row, Transaction
from appliance.store.outbox import Outbox, Priority

EVERY = 200
"""Entries after which a checkpoint is due at once; with fewer it is made once an hour."""
_MARK = b"bedside checkpoint 1\0"


def due(tx: Transaction) -> int:
    """How many entries the last checkpoint does not cover."""
    last = tx.one("SELECT coalesce(max(sequence), 0) AS n FROM checkpoint")
    head = tx.one("SELECT coalesce(max(sequence), 0) AS n FROM audit")
    return int(head["n"]) - int(last["n"]) if last and head else 0


def make(tx: Transaction, moment: Moment, device: str, signer: Signer, outbox: Outbox) -> Checkpoint | None:
    """Make a checkpoint of what is there and queue it for the hub; ``None`` when there is nothing new."""
    head = tx.one("SELECT sequence, chain FROM audit ORDER BY sequence DESC LIMIT 1")
    last = tx.one("SELECT sequence FROM checkpoint ORDER BY sequence DESC LIMIT 1")
    previous = int(last["sequence"]) if last else 0
    if head is None or int(head["sequence"]) <= previous:
        return None
    sequence, chain = int(head["sequence"]), str(head["chain"])
    made = Checkpoint(
        id=make_id("checkpoint", device, str(sequence), chain),
        sequence=sequence,
        chain=chain,
        previous=previous,
        wall=moment.wall,
    )
    payload = messages.encode(made)
    tx.insert(
        "INSERT INTO checkpoint (sequence, payload, signature, public) VALUES (?, ?, ?, ?)",
        sequence,
        payload,
        signer.sign(_MARK + payload),
        signer.public,
    )
    outbox.put(
        tx,
        message_id=made.id,
        capture_id="",
        leaf="checkpoint",
        priority=Priority.TELEMETRY,
        sha256=messages.sha256(payload),
        payload=payload,
    )
    return made


def contradiction(entries: Iterable[Row], checkpoints: Iterable[Row], public: Collection[bytes] | None) -> int | None:
    """The entry of the first checkpoint that the entries contradict, ``None`` when there is none.

    ``public``: the keys of this box, if they are known; without them only a checkpoint's own key can be asked.
    """
    chains = {int(row["sequence"]): str(row["chain"]) for row in entries}
    previous = 0
    for row in checkpoints:
        sequence = int(row["sequence"])
        try:
            said = messages.decode(row["payload"], Checkpoint)
        except MessageError:
            return sequence
        key = bytes(row["public"])
        proven = is_proven(key, _MARK + row["payload"], row["signature"]) and (public is None or key in public)
        if not proven or (said.sequence, said.previous) != (sequence, previous) or chains.get(sequence) != said.chain:
            return sequence
        previous = sequence
    return None
