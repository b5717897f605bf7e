"""The hub's small certificate authority: one folder, one root, certificates for boxes, broker, hub and pages.

What this module keeps true: private keys are files of mode 0600, made once and never overwritten; a certificate says in its
extended key usage what it is for, so that a stolen box's can't pose as a broker; a box's names its site and device as common
name (``site/device``, which the broker takes for its user name) and as URI (``bedside:site/device``). The key is EC P-256;
extensions are those that strict verifiers ask for (RFC 5280). The revocation list is written whole or not at all.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.protocol.signing import KeySigner
from appliance.protocol.topics import Address

ROOT_DAYS, SERVER_DAYS = 20 * 365, 5 * 365
HUB_NAME = "bedside-hub"
"""The hub's own name at the broker; no box can have it: theirs hold a slash."""
LONGEST_NAME = 64
"""Characters of a common name (RFC 5280, ub-common-name)."""

_EARLIER = dt.timedelta(hours=1)
"""Certificates begin this much before they are made, for boxes whose clock lags."""


class AuthorityError(Exception):
    """The authority can't do that; the message names cause and remedy."""


class Issued(NamedTuple):
    """A certificate that was made, as PEM, and what is remembered of it."""

    pem: str
    serial: str
    ends_ms: int


class Authority:
    """The authority of one folder; raises ``AuthorityError`` when there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.pem = (folder / "ca.pem").read_text(encoding="utf-8")
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
            self.signer = KeySigner(base64.b64decode((folder / "signing.key").read_bytes().strip(), validate=True))
        except (OSError, ValueError) as error:
            raise AuthorityError(
                f"{folder}: no authority that can be used ({error}); make one with: bedside-hub ca init"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"{folder}/ca.key: not an EC key; restore it from its backup")
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(self.pem.encode())

    def publish_to(self, folder: Path) -> None:
        """Keep a copy of certificate and revocation list in ``folder``, a broker's, from now on."""
        known = {*self._published(), folder.absolute()}
        _replace(self.folder / "published", "".join(f"{one}\n" for one in sorted(known)).encode(), 0o600)
        _replace(folder / "ca.pem", self.pem.encode(), 0o644)
        for name in ("crl.pem", "hub.pem"):
            _replace(folder / name, (self.folder / name).read_bytes(), 0o644)

    def sealing_secret(self) -> bytes:
        """Bytes that only this authority has, to derive keys for sealing from."""
        return self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    def for_device(self, device: Address, request: str, days: int) -> Issued:
        """A certificate for the key of a signing request (PEM); its other wishes are not looked at."""
        try:
            asked = x509.load_pem_x509_csr(request.encode())
        except ValueError as error:
            raise AuthorityError("the signing request can't be read; enrol again") from error
        public = asked.public_key()
        right = isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)
        if not asked.is_signature_valid or not isinstance(public, ec.EllipticCurvePublicKey) or not right:
            raise AuthorityError("the signing request is not signed by its own EC P-256 key; enrol again")
        if len(device.key) > LONGEST_NAME:
            raise AuthorityError(f"site and device together have more than {LONGEST_NAME - 1} characters; shorten one")
        uri = x509.UniformResourceIdentifier(f"bedside:{device.key}")
        return self._issue(device.key, public, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def for_server(self, what: str, names: Sequence[str], folder: Path | None = None) -> tuple[Path, Path]:
        """Certificate and key of a server as ``what``.pem and .key, for these host names or addresses; made anew."""
        shown = [_general_name(one) for one in dict.fromkeys(names)]
        return self._files(what, names[0], shown, ExtendedKeyUsageOID.SERVER_AUTH, folder)

    def for_hub(self) -> Path:
        """The certificate that the hub shows to the broker, with its key in ``hub.key``; made anew.

        It is signed by itself: the broker's port for hubs takes this one certificate, and none of the boxes'.
        """
        key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.timezone.utc)
        name, ends = _name(HUB_NAME), now + dt.timedelta(days=SERVER_DAYS)
        builder = _builder(name, name, key.public_key(), key, now - _EARLIER, ends, ca=False)
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.serial_number(x509.random_serial_number()).add_extension(purpose, critical=False)
        _replace(self.folder / "hub.key", _private(key), 0o600)
        certificate = self.folder / "hub.pem"
        _replace(certificate, builder.sign(key, SHA256()).public_bytes(Encoding.PEM), 0o644)
        return certificate

    def revoke(self, serials: Iterable[str], now: dt.datetime) -> None:
        """Write the list of what is revoked: these and no others. Its end is the authority's own: see ``docs/hub.md``."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - _EARLIER)
            .next_update(self._certificate.not_valid_after_utc)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
        )
        for serial in sorted(set(serials)):
            one = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(now)
            builder = builder.add_revoked_certificate(one.build())
        data = builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)
        for folder in [self.folder, *self._published()]:
            if folder.is_dir():  # a broker's folder that is gone has no broker
                _replace(folder / "crl.pem", data, 0o644)

    def _published(self) -> list[Path]:
        path = self.folder / "published"
        return [Path(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def _files(
        self,
        what: str,
        name: str,
        shown: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        folder: Path | None = None,
    ) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self._issue(name, key.public_key(), shown, purpose, SERVER_DAYS)
        certificate, private = ((folder or self.folder) / f"{what}.{kind}" for kind in ("pem", "key"))
        _replace(private, _private(key), 0o600)
        _replace(certificate, (issued.pem + self.pem).encode(), 0o644)
        return certificate, private

    def _issue(
        self,
        name: str,
        public: ec.EllipticCurvePublicKey,
        shown: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        days: int,
    ) -> Issued:
        now = dt.datetime.now(dt.timezone.utc)
        ends = min(now + dt.timedelta(days=days), self._certificate.not_valid_after_utc)
        serial = x509.random_serial_number()
        builder = _builder(_name(name), self._certificate.subject, public, self._key, now - _EARLIER, ends, ca=False)
        builder = builder.serial_number(serial).add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if shown:
            builder = builder.add_extension(x509.SubjectAlternativeName(shown), critical=False)
        made = builder.sign(self._key, SHA256())
        return Issued(made.public_bytes(Encoding.PEM).decode(), f"{serial:x}", int(ends.timestamp() * 1000))


def make_authority(folder: Path, name: str) -> Authority:
    """Make an authority in ``folder``; raises ``AuthorityError`` when there is one, or ``OSError``."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / "ca.key").exists():
        raise AuthorityError(f"{folder}: there is an authority already; every box trusts it, so it is not replaced")
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.timezone.utc)
    ends = now + dt.timedelta(days=ROOT_DAYS)
    subject = _name(name[:LONGEST_NAME])
    builder = _builder(subject, subject, key.public_key(), key, now - _EARLIER, ends, ca=True)
    made = builder.serial_number(x509.random_serial_number()).sign(key, SHA256())
    _new(folder / "signing.key", base64.b64encode(os.urandom(32)) + b"\n")
    _replace(folder / "ca.pem", made.public_bytes(Encoding.PEM), 0o644)
    _new(folder / "ca.key", _private(key))  # last: it says that there is one
    authority = Authority(folder)
    authority.revoke([], now)
    authority.for_hub()
    return authority


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    begins: dt.datetime,
    ends: dt.datetime,
    *,
    ca: bool,
) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(usage, critical=True)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, data: bytes, mode: int) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    _new(part, data)
    part.chmod(mode)
    part.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
