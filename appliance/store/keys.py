"""The box's key: seals what the journal keeps of a patient, wraps each blob's own key, blinds what must be searched.

What this module keeps true: the key file is made once, mode 0600, durable before anything is sealed with it; a journal that
was sealed with another key is refused with a clear message instead of being read as garbage. Three keys are derived
(HKDF-SHA256, RFC 5869) so that none serves two purposes. AES-256-GCM with random 96-bit nonces (NIST SP 800-38D) for
sealing; each blob has a key of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from appliance.store import token
from appliance.store.errors import Damaged, StoreError
from appliance.store.files import Files, durable

_BYTES = 32
_NONCE = 12


class BoxKey:
    """Seals, unseals and blinds with keys derived from one 32-byte secret."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _BYTES:
            raise StoreError(
                f"the box key must have {_BYTES} bytes, this one has {len(secret)}; restore it from its backup"
            )
        self._seal = AESGCM(_derive(secret, b"bedside seal 1"))
        self._wrap = AESGCM(_derive(secret, b"bedside wrap 1"))
        self._blind = _derive(secret, b"bedside blind 1")

    def seal(self, plain: bytes, context: str) -> bytes:
        """Encrypt; ``context`` (e.g. ``capture:<id>``) must be given again to unseal."""
        nonce = os.urandom(_NONCE)
        return nonce + self._seal.encrypt(nonce, plain, context.encode())

    def unseal(self, sealed: bytes, context: str) -> bytes:
        """Decrypt; raises ``Damaged`` if the bytes, the key or the context are not those of ``seal``."""
        try:
            return self._seal.decrypt(sealed[:_NONCE], sealed[_NONCE:], context.encode())
        except (InvalidTag, ValueError) as error:
            raise Damaged(
                f"{context}: can't be unsealed; it was changed on disk or sealed with another box's key"
            ) from error

    def wrap(self, key: bytes) -> bytes:
        """Wrap a blob's key (32 bytes → 60 bytes)."""
        nonce = os.urandom(_NONCE)
        return nonce + self._wrap.encrypt(nonce, key, b"blob")

    def unwrap(self, wrapped: bytes) -> bytes:
        """Unwrap a blob's key; raises ``Damaged``."""
        try:
            return self._wrap.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], b"blob")
        except (InvalidTag, ValueError) as error:
            raise Damaged("a blob's key can't be unwrapped; the file was changed or belongs to another box") from error

    def blind(self, text: str) -> str:
        """A keyed hash (HMAC-SHA256, 32 hex digits): the same text can be found again, nobody else can guess it."""
        return hmac.new(self._blind, text.encode(), hashlib.sha256).hexdigest()[:32]


CREDENTIAL = "bedside.box-key"
"""The box key as a credential of the service manager (``LoadCredentialEncrypted=``, sealed to a TPM): see docs/identity.md."""


def key_file(folder: Path) -> Path:
    """Where the box key is: a credential that the service manager unsealed for this process, else in ``folder``.

    There it is a file of its own, or sealed to a token (``token.FILE``).
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    credential = Path(credentials) / CREDENTIAL
    if credentials and credential.exists():
        return credential
    return folder / token.FILE if (folder / token.FILE).exists() else folder / "box.key"


def open_key(folder: Path, files: Files) -> BoxKey:
    """The box key of ``folder``, made on first use; raises ``StoreError`` when it is unreadable or gone."""
    path = key_file(folder)
    if path.name == token.FILE:
        return BoxKey(token.unseal(folder))
    try:
        if not path.exists():
            if (folder / "journal.sqlite").exists():
                raise StoreError(
                    f"{path}: not there, and what is in {folder} can't be read without it; put it back from its backup, "
                    "or start this where the service manager gives it (systemd-run -p LoadCredentialEncrypted=…)"
                )
            with durable(files, path) as file:
                file.write(os.urandom(_BYTES))
        return BoxKey(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; the service's user must be able to read and write it") from error


def _derive(secret: bytes, purpose: bytes) -> bytes:
    return HKDFExpand(algorithm=SHA256(), length=_BYTES, info=purpose).derive(secret)
