"""The box key sealed to a token: a TPM, OP-TEE or a smart card, through its PKCS#11 module.

What this module keeps true: the key that opens the box key is made in the token and never leaves it (not extractable), so a
copied disk can't be read anywhere else; the box key lies on the disk only as that token's ciphertext. AES-256-CBC (the one
mode that TPM, OP-TEE and SoftHSM modules share) over the 32 bytes and 16 bytes of their SHA-256, so that what another
token made of it is not taken for a key.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from appliance.store.errors import StoreError
from appliance.store.files import RealFiles, durable

FILE = "box.token"
_CHECK = 16


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """Which module, token and key opens ``wrapped``; ``pin_file`` holds the token's user PIN."""

    module: str
    token: str
    pin_file: str
    key: str
    iv: bytes
    wrapped: bytes


def unseal(folder: Path) -> bytes:
    """The box key of ``folder``; raises ``StoreError`` when its token is not there or is another."""
    path = folder / FILE
    try:
        sealed = msgspec.json.decode(path.read_bytes(), type=Sealed)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: can't be read ({error}); put it back from its backup") from error
    return _opened(sealed, path)


def seal(folder: Path, secret: bytes, *, module: str, token: str, pin_file: Path) -> None:
    """Seal ``secret`` with a new key of a token, kept in ``folder`` once it is proven to open; raises ``StoreError``."""
    made = _with_token(module, token, str(pin_file), lambda session: _sealed(session, secret, module, token, pin_file))
    if _opened(made, folder / FILE) != secret:
        raise StoreError(f"{token}: the token does not give back what it was given; nothing was changed")
    with durable(RealFiles(), folder / FILE) as file:
        file.write(msgspec.json.encode(made))


def _sealed(session: Any, secret: bytes, module: str, token: str, pin_file: Path) -> Sealed:
    from pkcs11 import Attribute, KeyType, Mechanism

    label = f"bedside box key {os.urandom(4).hex()}"
    kept = {Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True}
    key = session.generate_key(KeyType.AES, 256, label=label, store=True, template=kept)
    iv = os.urandom(16)
    wrapped = key.encrypt(secret + _check(secret), mechanism=Mechanism.AES_CBC, mechanism_param=iv)
    return Sealed(module=module, token=token, pin_file=str(pin_file), key=label, iv=iv, wrapped=bytes(wrapped))


def _opened(sealed: Sealed, path: Path) -> bytes:
    def opened(session: Any) -> bytes:
        from pkcs11 import KeyType, Mechanism, ObjectClass

        key = session.get_key(object_class=ObjectClass.SECRET_KEY, key_type=KeyType.AES, label=sealed.key)
        return bytes(key.decrypt(sealed.wrapped, mechanism=Mechanism.AES_CBC, mechanism_param=sealed.iv))

    plain: bytes = _with_token(sealed.module, sealed.token, sealed.pin_file, opened)
    secret = plain[:-_CHECK]
    if plain[-_CHECK:] != _check(secret):
        raise StoreError(f"{path}: this token's key does not open it; it belongs to another box")
    return secret


def _with_token(module: str, token: str, pin_file: str, work: Any) -> Any:
    try:
        import pkcs11
    except ImportError as error:
        raise StoreError("python-pkcs11 is not installed; install bedside[token]") from error
    try:
        pin = Path(pin_file).read_text(encoding="utf-8").strip()
        found = pkcs11.lib(module).get_token(token_label=token)
        with found.open(rw=True, user_pin=pin) as session:
            return work(session)
    except OSError as error:
        raise StoreError(f"{pin_file}: {error.strerror}; the token's PIN must be readable for the service") from error
    except (pkcs11.PKCS11Error, RuntimeError) as error:
        raise StoreError(
            f"the token {token!r} of {module} can't be used ({type(error).__name__} {error}); put it back, see pkcs11-tool -L"
        ) from error


def _check(secret: bytes) -> bytes:
    return hashlib.sha256(b"bedside box key\0" + secret).digest()[:_CHECK]
