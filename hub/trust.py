"""Whose word the hub takes: the keys that are enrolled, and its own key for what it says itself.

What this module keeps true: with an authority, nothing of a box is taken in that is not signed by its active key for the
very topic that it came on; a key that was revoked a moment ago is refused within ``REFRESH_S`` seconds by every worker.
Without an authority nothing is signed or asked for: that is for one machine only (``config``).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from appliance.protocol.signing import Signer, is_proven, proof, proof_of, statement
from hub.arrivals import Incoming
from hub.database import Database
from hub.enrolment import active_keys

REFRESH_S = 2.0
_REFRESH_UNKNOWN_S = 0.1
_REMEMBERED = 4096

_UNSIGNED = "it is not signed; enrol the box: bedside enrol"
_UNKNOWN = "it is signed with a key that is not enrolled for this box, or no longer; enrol the box again"
_WRONG = "its signature is not right: it was changed, or is another's"


class Trust:
    """What one worker believes. Used from that worker's thread."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._keys: dict[tuple[str, str], bytes] = {}
        self._read_at = -REFRESH_S
        self._proven: dict[bytes, None] = {}

    def problem(self, device: str, incoming: Incoming) -> str:
        """Why a message can't be believed to be the device's; empty when it can. Raises what the database raises."""
        carried = proof_of(incoming.properties)
        if not carried.signature:
            return _UNSIGNED
        public = self._key(device, carried.key)
        if public is None:
            return _UNKNOWN
        said = statement(incoming.topic, incoming.payload, incoming.properties, incoming.content_type)
        known = said + carried.signature + public
        if known in self._proven:  # the chunks of one transfer carry the same proof
            return ""
        if not is_proven(public, said, carried.signature):
            return _WRONG
        if incoming.topic.endswith("/blob"):
            self._proven[known] = None
            if len(self._proven) > _REMEMBERED:
                del self._proven[next(iter(self._proven))]
        return ""

    def _key(self, device: str, key: str) -> bytes | None:
        age = self._clock() - self._read_at
        if age >= REFRESH_S or ((device, key) not in self._keys and age >= _REFRESH_UNKNOWN_S):
            with self._database.read() as connection:
                self._keys = active_keys(connection)
            self._read_at = self._clock()
        return self._keys.get((device, key))


class Voice:
    """Signs what the hub says."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def properties(self, topic: str, payload: bytes) -> list[tuple[str, str]]:
        """The user properties that prove a message."""
        return proof(self._signer, statement(topic, payload))

    def private(self, subscription: str) -> str:
        """A shared subscription under a name that only the hubs of this authority know.

        The broker hands each message to one member of the group, also to one that may not read it: a box that joined would
        swallow its share. The name is made from a signature, which is the same each time (RFC 8032) and is never published.
        """
        start, _, rest = subscription.partition("/")
        group, _, plain = rest.partition("/")
        if start != "$share":
            return subscription
        secret = hashlib.sha256(self._signer.sign(f"bedside share 1\0{group}".encode())).hexdigest()[:32]
        return f"$share/{group}-{secret}/{plain}"
