"""A bundle's signature: an Ed25519 signature of ``bundle.toml``, which names the SHA-256 of every other file.

What this module keeps true: a bundle whose signature was verified holds, file by file, what the owner of a trusted key
signed. Which keys are trusted, and whether unsigned bundles may serve at all, is decided by ``appliance.inference.trust``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from appliance.inference.bundle import DESCRIPTION, BundleError

SIGNATURE = "bundle.toml.sig"
KEY_BYTES = 32
_CONTEXT = b"bedside bundle/1\0"


def generate(path: Path) -> bytes:
    """Write a new private key (PEM, mode 0600) and return its public key, raw.

    Raises:
        FileExistsError: There is a file already; a key is never overwritten.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
    return key.public_key().public_bytes_raw()


def private_key(path: Path) -> bytes:
    """The raw private key in a PEM file; raises ``BundleError``."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    remedy = "make one with bedside models keygen"
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise BundleError(f"{path}: can't be read ({error.strerror}); {remedy}") from error
    except (ValueError, TypeError) as error:
        raise BundleError(f"{path}: is no private key without a passphrase in PEM ({error}); {remedy}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path}: is a key of another kind than Ed25519; {remedy}")
    return key.private_bytes_raw()


def public_text(key: bytes) -> str:
    """A raw public key as people copy it: base64."""
    return base64.b64encode(key).decode()


def public_key(text: str) -> bytes:
    """The raw public key in base64, as ``keygen`` prints it; raises ``BundleError``."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise BundleError(f"{text.strip()[:60]!r} is no public key ({error}); copy what keygen printed") from error
    if len(key) != KEY_BYTES:
        raise BundleError(
            f"{text.strip()[:60]!r} is no public key ({len(key)} bytes, not 32); copy what keygen printed"
        )
    return key


def fingerprint(key: bytes) -> str:
    """Sixteen hexadecimal digits by which people compare public keys (of its SHA-256)."""
    return hashlib.sha256(key).hexdigest()[:16]


def sign(root: Path, private: bytes) -> Path:
    """Sign the bundle in ``root`` with a raw Ed25519 private key (32 bytes); returns the signature's path."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    signature = Ed25519PrivateKey.from_private_bytes(private).sign(_CONTEXT + (root / DESCRIPTION).read_bytes())
    path = root / SIGNATURE
    path.write_bytes(signature)
    return path


def signer(description: bytes, signature: bytes, trusted_keys: Iterable[bytes]) -> bytes | None:
    """The key among ``trusted_keys`` (raw, 32 bytes each) that signed ``description``; ``None`` when none did."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    for key in trusted_keys:
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, _CONTEXT + description)
        except InvalidSignature:
            continue
        return key
    return None
