"""A bundle's signature: an Ed25519 signature of ``bundle.toml``, which names the SHA-256 of every other file.

What this module keeps true: a bundle whose signature was verified holds, file by file, what the owner of a trusted key
signed. Which keys are trusted, and whether unsigned bundles may serve at all, is decided by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from appliance.inference.bundle import DESCRIPTION, BundleError

SIGNATURE = "bundle.toml.sig"
_CONTEXT = b"bedside bundle/1\0"


def sign(root: Path, private_key: bytes) -> Path:
    """Sign the bundle in ``root`` with a raw Ed25519 private key (32 bytes); returns the signature's path."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    signature = Ed25519PrivateKey.from_private_bytes(private_key).sign(_CONTEXT + (root / DESCRIPTION).read_bytes())
    path = root / SIGNATURE
    path.write_bytes(signature)
    return path


def verify(root: Path, trusted_keys: Sequence[bytes]) -> bytes:
    """The trusted key (raw, 32 bytes) that signed the bundle in ``root``; raises ``BundleError`` when none did."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        signature = (root / SIGNATURE).read_bytes()
        signed = _CONTEXT + (root / DESCRIPTION).read_bytes()
    except OSError as error:
        raise BundleError(f"{root}: not signed ({error.strerror}: {SIGNATURE}); install a signed bundle") from error
    for key in trusted_keys:
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
        except InvalidSignature:
            continue
        return key
    raise BundleError(
        f"{root}: signed by no trusted key; trust its key with bedside models trust, or refuse the bundle"
    )
