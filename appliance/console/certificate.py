"""The clinic-local certificate of the console: a small authority of this box alone, and the server certificate it gives itself.

What this module keeps true: no key leaves the box or lies on its disk in clear (the authority's is sealed with the box key, the
server's encrypted with a secret of it); the authority may speak only for this box's names and for private addresses (RFC 5280,
4.2.1.10), so that a tablet that trusts it trusts it for nothing else; its dates don't depend on the box's clock, which may not
know the time at first start, so a wrong clock never costs the tablets' trust. The server certificate is made anew before it
ends, and when the box has got a name or an address that it doesn't cover.
"""

from __future__ import annotations

import datetime as dt
import itertools
import ssl
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.store.errors import StoreError
from appliance.store.files import Files, durable
from appliance.store.keys import BoxKey

FOLDER = "console-tls"
SERVER_DAYS, RENEW_DAYS = 180, 60
"""A server certificate holds this long (tablets refuse more than 825 days), and is made anew when less than this is left."""

_AUTHORITY_DATES = (dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc), dt.datetime(2055, 1, 1, tzinfo=dt.timezone.utc))
_EARLIER = dt.timedelta(days=1)
"""A server certificate begins this much before it is made, for tablets whose clock lags."""
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "127.0.0.0/8", "fc00::/7", "fe80::/10")
_SEALED_AS = "console-authority"

Address = IPv4Address | IPv6Address


class OwnCertificate:
    """The authority and the server certificate in a state folder; made on first use. Raises ``OSError`` and ``StoreError``."""

    def __init__(self, state: Path, key: BoxKey, files: Files, device: str) -> None:
        self._folder = state / FOLDER
        self._key = key
        self._files = files
        self._device = device

    @property
    def server(self) -> Path:
        """PEM file of certificate and encrypted key; see ``password``."""
        return self._folder / "server.pem"

    @property
    def password(self) -> str:
        """What the server's key is encrypted with."""
        return self._key.blind("console-tls-key")

    def renew(self, names: Sequence[str], now: dt.datetime) -> bool:
        """Make what is missing, ends soon or doesn't cover ``names`` (host names and addresses); whether anything was made."""
        self._files.make_folder(self._folder)
        authority, key = self._authority(names)
        wanted = _general_names(authority, names)
        if self.server.exists() and _still_good(self.server.read_bytes(), authority, wanted, now):
            return False
        own = ec.generate_private_key(ec.SECP256R1())
        made = _server(wanted, own, authority, key, now)
        private = own.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(self.password.encode("ascii"))
        )
        with durable(self._files, self.server) as file:
            file.write(made.public_bytes(Encoding.PEM) + private)
        return True

    def _authority(self, names: Sequence[str]) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        path, sealed = self._folder / "ca.pem", self._folder / "ca.key"
        if path.exists() and sealed.exists():
            key = load_der_private_key(self._key.unseal(sealed.read_bytes(), _SEALED_AS), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise StoreError(f"{sealed}: not an EC key; remove the folder {self._folder}, tablets must trust anew")
            return x509.load_pem_x509_certificate(path.read_bytes()), key
        made = ec.generate_private_key(ec.SECP256R1())
        certificate = _root(self._device, names, made)
        plain = made.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        with durable(self._files, sealed) as file:
            file.write(self._key.seal(plain, _SEALED_AS))
        with durable(self._files, path) as file:
            file.write(certificate.public_bytes(Encoding.PEM))
        return certificate, made


def authority_pem(state: Path) -> bytes | None:
    """The authority's certificate, which tablets are to trust; ``None`` when there is none yet. Raises ``OSError``."""
    try:
        return (state / FOLDER / "ca.pem").read_bytes()
    except FileNotFoundError:
        return None


def fingerprint(pem: bytes) -> str:
    """SHA-256 of a certificate as pairs of hex digits with colons, as tablets show it."""
    return x509.load_pem_x509_certificate(pem).fingerprint(SHA256()).hex(":").upper()


def box_addresses(trie: Path = Path("/proc/self/net/fib_trie")) -> list[str]:
    """The IPv4 addresses of this box's interfaces, as the kernel's routing table has them; empty where it can't be read."""
    try:
        lines = trie.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = {
        before.split()[-1] for before, line in itertools.pairwise(lines) if line.split() == ["/32", "host", "LOCAL"]
    }
    return sorted(found)


def tls_context() -> ssl.SSLContext:
    """What tablets are answered with: TLS 1.2 at least, with forward secrecy and authenticated encryption only.

    1.2 is let in because the system browsers of Android 9 and iOS 12.1 and older, which clinics have, know nothing newer; the
    suites left to it are those that 1.3 kept.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    made.options |= ssl.OP_NO_RENEGOTIATION
    made.set_alpn_protocols(["http/1.1"])
    return made


def _root(device: str, names: Sequence[str], key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    hosts = sorted({one for one in names if _address(one) is None} | {"localhost", "local"})
    networks = [ip_network(one) for one in _PRIVATE]
    there = [found for one in names if (found := _address(one)) is not None]
    apart = [ip_network(one) for one in there if not any(one in network for network in networks)]
    permitted = [*(x509.DNSName(one) for one in hosts), *(x509.IPAddress(one) for one in [*networks, *apart])]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bedside {device}"[:64])])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(name, name, key.public_key(), *_AUTHORITY_DATES)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .sign(key, SHA256())
    )


def _server(
    names: list[x509.GeneralName],
    own: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    now: dt.datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bedside console")])
    ends = now + dt.timedelta(days=SERVER_DAYS)
    return (
        _builder(subject, authority.subject, own.public_key(), now - _EARLIER, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begins: dt.datetime, ends: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _general_names(authority: x509.Certificate, names: Iterable[str]) -> list[x509.GeneralName]:
    """The names that the authority may speak for, in order."""
    permitted = authority.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
    suffixes = [one.value for one in permitted if isinstance(one, x509.DNSName)]
    networks = [one.value for one in permitted if isinstance(one, x509.IPAddress)]
    shown: list[x509.GeneralName] = []
    for one in dict.fromkeys(names):
        address = _address(one)
        if address is None and any(one == suffix or one.endswith(f".{suffix}") for suffix in suffixes):
            shown.append(x509.DNSName(one))
        elif address is not None and any(_within(address, network) for network in networks):
            shown.append(x509.IPAddress(address))
    return shown


def _still_good(pem: bytes, authority: x509.Certificate, wanted: list[x509.GeneralName], now: dt.datetime) -> bool:
    try:
        made = x509.load_pem_x509_certificate(pem)
        made.verify_directly_issued_by(authority)
        covered = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    in_time = made.not_valid_before_utc <= now <= made.not_valid_after_utc - dt.timedelta(days=RENEW_DAYS)
    return in_time and set(wanted) <= set(covered)


def _within(address: Address, network: object) -> bool:
    return isinstance(network, (IPv4Network, IPv6Network)) and address in network


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
