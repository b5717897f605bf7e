"""Signatures of messages, so that origin and content survive the broker (``docs/protocol.md``).

What this module keeps true: a signature is Ed25519 (RFC 8032) over a statement that names the topic and the content, so that
it is worth nothing under another device, in the other direction or as another kind of message. The statement of a message
is ``bedside message 1``, the topic and the SHA-256 (hex) of the payload as sent; that of a chunk is ``bedside transfer 1``,
the topic and what is the same for all chunks of a transfer: capture, kind, SHA-256 of the whole, size, media type, encoding.
Parts are joined by zero bytes, which none of them can hold. It travels in two MQTT user properties: ``s`` the signature,
``i`` which key (both base64url without padding).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE, KEY = "s", "i"
_SIGNATURE_BYTES, _ID = 64, 8

Properties = Sequence[tuple[str, str]]


class Signer(Protocol):
    """Whoever can sign: a key in a file or in a token that never gives it out."""

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""

    def sign(self, data: bytes) -> bytes:
        """The signature over ``data``, 64 bytes."""


class KeySigner:
    """A signing key in memory."""

    def __init__(self, secret: bytes) -> None:
        """``secret``: the 32 bytes of RFC 8032; raises ``ValueError`` for any other number of bytes."""
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """See ``Signer``."""
        return self._key.sign(data)


class Proof(NamedTuple):
    """What a message carries: which key, and its signature. Empty when it carries none, or nothing that could be one."""

    key: str = ""
    signature: bytes = b""


def key_id(public: bytes) -> str:
    """The short name of a public key: the first 8 bytes of its SHA-256."""
    return _text(hashlib.sha256(public).digest()[:_ID])


def statement(topic: str, payload: bytes, properties: Iterable[tuple[str, str]] = (), content_type: str = "") -> bytes:
    """What is signed; ``properties`` and ``content_type`` are those of a chunk, and count only on the topics of chunks."""
    if topic.endswith("/up/blob"):
        header = dict(properties)
        fixed = [header.get(name, "") for name in ("c", "k", "h", "n")]
        return _joined("bedside transfer 1", topic, *fixed, content_type, header.get("e", ""))
    return _joined("bedside message 1", topic, hashlib.sha256(payload).hexdigest())


def proof(signer: Signer, data: bytes) -> list[tuple[str, str]]:
    """The user properties that prove ``data`` (a ``statement``)."""
    return [(SIGNATURE, _text(signer.sign(data))), (KEY, key_id(signer.public))]


def proof_of(properties: Iterable[tuple[str, str]]) -> Proof:
    """What the user properties of a message carry."""
    found = dict(properties)
    try:
        signature = base64.urlsafe_b64decode(found.get(SIGNATURE, "") + "==")
    except (binascii.Error, ValueError):
        return Proof()
    return Proof(found.get(KEY, "")[:64], signature) if len(signature) == _SIGNATURE_BYTES else Proof()


def is_proven(public: bytes, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``data`` is of the key ``public``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _joined(*parts: str) -> bytes:
    return chr(0).join(part.replace("\0", "") for part in parts).encode()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
