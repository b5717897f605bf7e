"""How this box stands with its hub: its certificate, and the checkpoints of its audit log.

What this module keeps true: checkpoints are made once there is an identity to sign them, at least once an hour while there is
something new; a box without an identity says so in its log, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from appliance.protocol.topics import Address
from appliance.store import checkpoints
from appliance.store.credentials import Identity, IdentityError
from appliance.store.journal import Transaction
from appliance.store.store import Store
from appliance.sync.renewal import Renewals

_log = structlog.get_logger(__name__)
CHECKPOINT_EVERY = 3600.0
_LOOK_EVERY = 30.0


class Standing:
    """Stands between the link and whoever takes what comes down. ``received``: as ``Downlink.received``."""

    def __init__(
        self,
        store: Store,
        address: Address,
        say: Callable[[str, bytes], None],
        received: Callable[[str, bytes], None],
        changed: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``say``: as ``Link.say``; ``changed`` is called when something new waits for the link."""
        self._store = store
        self._address = address
        self._received = received
        self._changed = changed
        self._monotonic = monotonic
        self._renewals = Renewals(store.folder, store.key, store.now, say, store.note, monotonic)
        self._looked_at = -_LOOK_EVERY
        self._made_at = -CHECKPOINT_EVERY
        self._said = False

    def identity(self) -> Identity | None:
        """Who this box is; raises ``IdentityError``."""
        found = self._renewals.identity()
        if found is not None and found.device != self._address.key:
            raise IdentityError(
                f"this box is enrolled as {found.device} and configured as {self._address.key}; see [device]"
            )
        if found is None and not self._said:
            _log.warning("this box is not enrolled: nothing is signed, and the link stays within this machine")
        self._said = found is None
        return found

    def received(self, leaf: str, payload: bytes) -> None:
        """What the hub says."""
        if leaf == "certificate":
            self._renewals.taken(payload)
        else:
            self._received(leaf, payload)

    def tend(self) -> None:
        """Renew and make a checkpoint, if it is time to. Raises ``StoreError`` or ``OSError``."""
        if self._monotonic() - self._looked_at < _LOOK_EVERY:
            return
        self._looked_at = self._monotonic()
        try:
            identity = self.identity()
            self._renewals.tend()
        except IdentityError as error:
            _log.error("this box's identity can't be used", error=str(error))
            return
        if identity is not None and self._store.journal.write(lambda tx: self._checkpoint(tx, identity)):
            self._changed()

    def problems(self) -> list[str]:
        """What a technician should know."""
        return [said] if (said := self._renewals.problem()) else []

    def _checkpoint(self, tx: Transaction, identity: Identity) -> bool:
        new = checkpoints.due(tx)
        if not new or (new < checkpoints.EVERY and self._monotonic() - self._made_at < CHECKPOINT_EVERY):
            return False
        self._made_at = self._monotonic()
        made = checkpoints.make(tx, self._store.now(), identity.device, identity.signer, self._store.outbox)
        return made is not None
