"""The box's side of becoming known to a hub: ask with a one-time code, over HTTPS or on a stick, and take the answer.

What this module keeps true: the hub's authority is believed only if it is the one that the code names, whoever answers
(``protocol/enrolment.py``); the secret of the code never leaves the box. A request is kept until it is answered, so
that asking again after a lost answer is the same request.
"""

from __future__ import annotations

import datetime as dt
import http.client
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from cryptography import x509

from appliance.config import Config
from appliance.protocol.enrolment import (
    ANSWER_SUFFIX,
    MAXIMUM,
    REQUEST_SUFFIX,
    Code,
    EnrolmentError,
    make_request,
    pin_of,
    read_answer,
)
from appliance.store.credentials import (
    FOLDER,
    Granted,
    IdentityError,
    identity_of,
    install,
    signing_key,
    signing_request,
)
from appliance.store.errors import Damaged
from appliance.store.files import RealFiles, durable
from appliance.store.keys import open_key

_PENDING, _SEALED = "pending", "identity:pending"
_PATIENCE = 20.0
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, openssl/x509_vfy.h


class _Pending(msgspec.Struct, frozen=True):
    """A request that waits for its answer, and the code it was made with."""

    code: str
    device: str
    request: bytes


class Enrolled(NamedTuple):
    """What came of it: until when the certificate is valid, where the hub's broker is (``host:port`` or empty)."""

    device: str
    ends: dt.datetime
    broker: str
    parcel_key: str


def enrol(config: Config, url: str, code: str) -> Enrolled:
    """Enrol over HTTPS at the hub's ``url``; raises ``EnrolmentError``, ``IdentityError`` or ``OSError``."""
    pending = _pending(config, Code.parse(code))
    return _take(config, pending, _ask(url, Code.parse(code), pending.request))


def write_request(config: Config, folder: Path, code: str) -> Path:
    """Write the request for a hub that can't be reached, as a file to be carried there."""
    pending = _pending(config, Code.parse(code))
    path = folder / f"bedside-{pending.device.replace('/', '.')}{REQUEST_SUFFIX}"
    path.write_bytes(pending.request)
    return path


def take_answer(config: Config, path: Path) -> Enrolled:
    """Take the answer that was carried back; a folder stands for the one of this box in it."""
    device = _device(config)
    if path.is_dir():
        path = path / f"bedside-{device.replace('/', '.')}{ANSWER_SUFFIX}"
    try:
        sealed = (config.state / FOLDER / _PENDING).read_bytes()
        pending = msgspec.json.decode(open_key(config.state, RealFiles()).unseal(sealed, _SEALED), type=_Pending)
    except (OSError, msgspec.MsgspecError, Damaged) as error:
        raise EnrolmentError(
            "this box asked for nothing; ask first: bedside enrol --offline FOLDER --code CODE"
        ) from error
    with path.open("rb") as file:
        return _take(config, pending, file.read(MAXIMUM + 1))


def _pending(config: Config, code: Code) -> _Pending:
    RealFiles().make_folder(config.state / FOLDER)
    path, device = config.state / FOLDER / _PENDING, _device(config)
    key = open_key(config.state, RealFiles())
    try:
        found = msgspec.json.decode(key.unseal(path.read_bytes(), _SEALED), type=_Pending)
        if found.code == code.text and found.device == device:
            return found
    except (OSError, msgspec.MsgspecError, Damaged):
        pass  # none, or of another time: it is made anew
    made = _Pending(
        code.text,
        device,
        make_request(code, device, signing_request(config.state, device, key), signing_key(config.state, key)),
    )
    with durable(RealFiles(), path) as file:
        file.write(key.seal(msgspec.json.encode(made), _SEALED))
    return made


def _take(config: Config, pending: _Pending, data: bytes) -> Enrolled:
    answer = read_answer(data, Code.parse(pending.code), pending.request)
    device = _device(config)
    if answer.device != device:
        raise EnrolmentError(f"the answer is for {answer.device[:80]}, this box is {device}; see [device]")
    granted = Granted(answer.certificate, answer.authority, answer.hub_keys, answer.broker, answer.parcel_key)
    key = open_key(config.state, RealFiles())
    install(config.state, device, granted, key)
    (config.state / FOLDER / _PENDING).unlink(missing_ok=True)
    found = identity_of(config.state, key)
    if found is None:
        raise IdentityError(f"{config.state / FOLDER}: the certificate is not there; enrol again")
    return Enrolled(device, found.ends, found.broker, found.parcel_key)


def _ask(url: str, code: Code, request: bytes) -> bytes:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        raise EnrolmentError(f"{url}: say the hub's address as https://…")
    if parts.scheme == "http":
        return _call(url, "POST", "/enrol", request, None)
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # only to ask whom to trust; the code says whether it is true
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    authority = _call(url, "GET", "/enrol/authority", None, careless).decode(errors="replace")
    if pin_of(authority) != code.pin:
        raise EnrolmentError(f"{url} is not the hub that made this code; nothing was sent to it. Check the address")
    return _call(url, "POST", "/enrol", request, _trusting(authority))


def _trusting(authority: str) -> ssl.SSLContext:
    """A context that takes a server of the hub's own authority, or of one that the system knows."""
    context = ssl.create_default_context()
    context.load_verify_locations(cadata=authority)
    begins = x509.load_pem_x509_certificate(authority.encode()).not_valid_before_utc
    if dt.datetime.now(dt.timezone.utc) < begins:  # a box that woke in 1970: see certificates.py
        context.verify_flags |= _NO_CHECK_TIME
    return context


def _call(url: str, method: str, path: str, body: bytes | None, context: ssl.SSLContext | None) -> bytes:
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection = (
        http.client.HTTPSConnection(host, parts.port, timeout=_PATIENCE, context=context)
        if context is not None
        else http.client.HTTPConnection(host, parts.port, timeout=_PATIENCE)
    )
    try:
        connection.request(method, parts.path.rstrip("/") + path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read(MAXIMUM + 1)
    except (OSError, http.client.HTTPException) as error:
        raise EnrolmentError(f"{url}: {error or type(error).__name__}; check the address and the network") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise EnrolmentError(f"the hub refused: {data.decode(errors='replace').strip()[:300]}")
    return data


def _device(config: Config) -> str:
    return f"{config.device.site}/{config.device.name}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
