"""Who this box is: its keys, its certificate, the hub's authority and the keys that the hub signs with.

What this module keeps true: private keys are made here, never leave, and are sealed with the box's key (who copies the disk
without that key can't pose as this box); the folder ``identity`` of the state folder is a whole identity or none: the
certificate, with its key in one file, is put there last, whole and durable. A certificate is taken only if it is for this
box's own new key, for this box's name, and signed by the authority that comes with it.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from msgspec import Meta

from appliance.config import LinkConfig
from appliance.protocol.signing import KeySigner, Signer
from appliance.store.errors import Damaged
from appliance.store.files import RealFiles, durable
from appliance.store.keys import BoxKey

FOLDER = "identity"
_HUB, _AUTHORITY, _CERTIFICATE = "hub.json", "authority.pem", "certificate.pem"
_SIGNING, _NEXT = "signing.key", "next.key"
_FORMER = "former"
_SEALED, _SEALED_FORMER = "identity:signing", "identity:former"


class IdentityError(Exception):
    """The box's identity can't be used; the message names cause and remedy."""


class Granted(NamedTuple):
    """What a hub grants: PEM of both certificates, its signing keys, where its broker is, its key for parcels."""

    certificate: str
    authority: str
    hub_keys: Sequence[bytes]
    broker: str = ""
    parcel_key: str = ""


class _Hub(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    keys: list[Annotated[bytes, Meta(min_length=32, max_length=32)]]
    broker: str = ""
    parcel_key: str = ""


class Identity(NamedTuple):
    """An enrolled box. ``begins`` and ``ends``: of its certificate; ``chain``: the file of certificate and sealed key."""

    device: str
    signer: Signer
    hub_keys: tuple[bytes, ...]
    chain: Path
    authority: Path
    begins: dt.datetime
    ends: dt.datetime
    broker: str
    parcel_key: str
    password: str
    """Opens the key in ``chain``."""
    former: tuple[bytes, ...] = ()
    """Public keys that this box signed with before."""


def identity_of(state: Path, key: BoxKey) -> Identity | None:
    """The box's identity, ``None`` when it was never enrolled; raises ``IdentityError``."""
    folder = state / FOLDER
    if not (folder / _CERTIFICATE).exists():
        return None
    try:
        hub = msgspec.json.decode((folder / _HUB).read_bytes(), type=_Hub)
        certificate = x509.load_pem_x509_certificate((folder / _CERTIFICATE).read_bytes())
        former = _former(state, key)
        own = KeySigner(key.unseal((folder / _SIGNING).read_bytes(), _SEALED))
    except (OSError, ValueError, msgspec.MsgspecError, Damaged) as error:
        raise IdentityError(f"{folder}: can't be read ({error}); enrol this box again: bedside enrol") from error
    return Identity(
        device=hub.device,
        signer=own,
        password=_password(key),
        former=tuple(former),
        hub_keys=tuple(hub.keys),
        chain=folder / _CERTIFICATE,
        authority=folder / _AUTHORITY,
        begins=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
        broker=hub.broker,
        parcel_key=hub.parcel_key,
    )


def reached(link: LinkConfig, identity: Identity | None) -> LinkConfig:
    """The link with the box's own certificate where none is configured."""
    if identity is None or not link.tls or link.certificate_file:
        return link
    files = {"certificate_file": str(identity.chain), "key_file": str(identity.chain)}
    return msgspec.structs.replace(link, ca_file=link.ca_file or str(identity.authority), **files)


def why_not(link: LinkConfig, identity: Identity | None) -> str:
    """Why the link may not be used as it is, with the remedy; empty when it may."""
    remedy = "enrol this box: bedside enrol --hub URL --code CODE"
    if identity is None and not _is_loopback(link.host):
        return f"this box is not enrolled, so nothing that it sends to {link.host} could be believed; {remedy}"
    if identity is not None and not link.tls and not _is_loopback(link.host):
        return "this box is enrolled and link.tls is false; set it to true, with the broker's TLS port (8883)"
    if identity is None and link.tls and not link.ca_file:
        return f"link.tls is true, and there is no authority to trust; {remedy}, or set link.ca_file"
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def signing_key(state: Path, key: BoxKey) -> Signer:
    """The key that this box signs with, made on first use; raises ``Damaged`` when another box key sealed it."""
    path = _folder(state) / _SIGNING
    if not path.exists():
        with durable(RealFiles(), path) as file:
            file.write(key.seal(os.urandom(32), _SEALED))
    return KeySigner(key.unseal(path.read_bytes(), _SEALED))


def new_keys(state: Path, box: BoxKey) -> None:
    """Forget the keys, so that the next request is made with new ones; the certificate goes with them.

    The public half of the signing key is remembered: the audit log's older checkpoints were signed with it.
    """
    path = _folder(state) / _FORMER
    if (state / FOLDER / _SIGNING).exists():
        former = [*_former(state, box), signing_key(state, box).public]
        with durable(RealFiles(), path) as file:
            file.write(box.seal(msgspec.json.encode(former), _SEALED_FORMER))
    for name in (_CERTIFICATE, _SIGNING, _NEXT):
        (_folder(state) / name).unlink(missing_ok=True)
    RealFiles().sync_folder(state / FOLDER)


def _former(state: Path, box: BoxKey) -> list[bytes]:
    path = state / FOLDER / _FORMER
    if not path.exists():
        return []
    return msgspec.json.decode(box.unseal(path.read_bytes(), _SEALED_FORMER), type=list[bytes])


def signing_request(state: Path, device: str, box: BoxKey) -> str:
    """A certificate signing request (PEM) for a key made for it; asked again before it is granted, for the same key."""
    path = _folder(state) / _NEXT
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        with durable(RealFiles(), path) as file:
            file.write(_sealed(made, box))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(_next_key(path, box), SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def install(state: Path, device: str, granted: Granted, box: BoxKey) -> None:
    """Put a granted certificate in place, if it is for the key of the last request; raises ``IdentityError``."""
    folder = _folder(state)
    key = _next_key(folder / _NEXT, box)
    try:
        certificate = x509.load_pem_x509_certificate(granted.certificate.encode())
        authority = x509.load_pem_x509_certificate(granted.authority.encode())
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise IdentityError("the certificate is not one of the hub's authority; nothing was changed") from error
    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [device]:
        raise IdentityError(f"the certificate is for {', '.join(names)[:80]}, not for {device}; nothing was changed")
    if certificate.public_key() != key.public_key():
        raise IdentityError("the certificate is for another key than this box asked for; nothing was changed")
    hub = _Hub(device=device, keys=list(granted.hub_keys), broker=granted.broker, parcel_key=granted.parcel_key)
    for name, data in (
        (_AUTHORITY, granted.authority.encode()),
        (_HUB, msgspec.json.encode(hub)),
        (_CERTIFICATE, certificate.public_bytes(Encoding.PEM) + _sealed(key, box)),
    ):
        with durable(RealFiles(), folder / name) as file:
            file.write(data)
    (folder / _NEXT).unlink(missing_ok=True)


def _sealed(key: ec.EllipticCurvePrivateKey, box: BoxKey) -> bytes:
    """As PEM that OpenSSL opens with the password, which has 128 bits of its own."""
    encryption = BestAvailableEncryption(_password(box).encode())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _password(box: BoxKey) -> str:
    return box.blind("bedside identity key 1")


def _next_key(path: Path, box: BoxKey) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), _password(box).encode())
    except (OSError, ValueError, TypeError) as error:
        raise IdentityError("no certificate was asked for, or what asked for it is gone; ask again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{path}: not an EC key; remove it and ask again")
    return key


def _folder(state: Path) -> Path:
    folder = state / FOLDER
    RealFiles().make_folder(folder)
    return folder
