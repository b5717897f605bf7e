"""A transfer in progress: where it goes on, and the piece of the blob that is sent next.

What this module keeps true: the cursor is never before what the hub has confirmed but by the one byte that asks it again, and
no more than one frame of a blob is held in memory, decrypted.
"""

from __future__ import annotations

from appliance.store.store import Store
from appliance.store.transfers import Transfer
from appliance.store.vault import FRAME


class Sending:
    """A transfer in progress: the cursor and one decrypted frame."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.confirmed = transfer.confirmed
        self.cursor = max(0, min(transfer.confirmed, transfer.size - 1))
        self.ended: float | None = None
        self.frame = -1
        self.data = b""

    def ask_again(self) -> None:
        """Go back to what the hub has confirmed, by a byte at least: a hub that has all of it says so when asked."""
        self.cursor = max(0, min(self.confirmed, self.transfer.size - 1))

    def piece(self, store: Store, size: int) -> bytes:
        """Up to ``size`` bytes at the cursor, within one frame of the vault."""
        number, start = divmod(self.cursor, FRAME)
        if number != self.frame:
            self.data = next(iter(store.vault.frames(self.transfer.sha256, self.cursor)))
            self.frame = number
        return self.data[start : start + size]
