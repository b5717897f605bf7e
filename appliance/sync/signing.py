"""What the box signs on its way up, and what it believes of what comes down.

What this module keeps true: an enrolled box sends nothing unsigned and takes nothing that its hub did not sign for this
topic, so a broker can lose or delay messages and no more. A transfer is signed once, not each of its chunks: what is signed
is the same for all of them.
"""

from __future__ import annotations

from collections import OrderedDict

from appliance.protocol.signing import Properties, is_proven, key_id, proof, proof_of, statement
from appliance.store.credentials import Identity

PROOF_BYTES = 109
"""Of the two user properties on the wire (MQTT 5, 2.2.2)."""
_REMEMBERED = 64


class Signatures:
    """Signs and judges for one identity; without one it signs nothing and believes everything (on this machine only)."""

    def __init__(self, identity: Identity | None) -> None:
        self._signer = identity.signer if identity else None
        self._hub = {key_id(public): public for public in identity.hub_keys} if identity else {}
        self._transfers: OrderedDict[bytes, list[tuple[str, str]]] = OrderedDict()

    def added(self, topic: str, payload: bytes, content_type: str = "", properties: Properties = ()) -> Properties:
        """The user properties of a message that goes up: those given and the proof."""
        if self._signer is None:
            return properties
        said = statement(topic, payload, properties, content_type)
        found = self._transfers.get(said)
        if found is None:
            found = proof(self._signer, said)
            if properties:
                self._transfers[said] = found
                if len(self._transfers) > _REMEMBERED:
                    self._transfers.popitem(last=False)
        return [*properties, *found]

    def is_believed(self, topic: str, payload: bytes, properties: Properties) -> bool:
        """Whether the hub signed this message for this topic."""
        if self._signer is None:
            return True
        carried = proof_of(properties)
        public = self._hub.get(carried.key)
        return public is not None and is_proven(public, statement(topic, payload), carried.signature)
