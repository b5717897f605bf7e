"""How a box becomes known to a hub: the one-time code, the request and the answer, the same over HTTPS and on a stick.

What this module keeps true: nothing is trusted on first use. The code holds a secret and a pin of the hub's authority; request
and answer are authenticated with keys derived from that secret (HMAC-SHA256, RFC 2104; HKDF, RFC 5869), and the secret
itself never travels. So whoever carries them, reads them or stands between can neither enrol a box of his own with it nor
give the box another authority. The box proves that it holds both of its keys: the request is a certificate signing request
(PKCS #10) and is signed with the signing key.

A code is 30 bytes in 48 letters and digits of Crockford's base 32, in groups of six: 4 bytes number, 12 bytes secret, 12
bytes of the SHA-256 of the authority's public key (SPKI, DER), 2 bytes of SHA-256 over all that, against slips in typing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Annotated, NamedTuple, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Meta

from appliance.protocol.signing import Signer, is_proven

MAXIMUM = 64 * 1024
"""A request or an answer of more bytes is refused unread."""
REQUEST_SUFFIX, ANSWER_SUFFIX = ".enrol", ".enrolled"

_NUMBER, _SECRET, _PIN, _CHECK = 4, 12, 12, 2
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_GROUP = 6
_STANDARD = str.maketrans(_ALPHABET, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
_CROCKFORD = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", _ALPHABET)
_SLIPS = str.maketrans("ILO", "110", " -\t\r\n")


class EnrolmentError(Exception):
    """The box can't be enrolled so; the message names cause and remedy."""


Pem = Annotated[str, Meta(max_length=8192)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Code(NamedTuple):
    """A one-time code."""

    number: bytes
    secret: bytes
    pin: bytes

    @property
    def text(self) -> str:
        """As it is shown and typed."""
        body = self.number + self.secret + self.pin
        letters = base64.b32encode(body + _check(body)).decode().translate(_CROCKFORD)
        return "-".join(letters[at : at + _GROUP] for at in range(0, len(letters), _GROUP))

    @staticmethod
    def parse(text: str) -> Code:
        """A code as somebody typed it; raises ``EnrolmentError``."""
        letters = text.upper().translate(_SLIPS)
        try:
            data = base64.b32decode(letters.translate(_STANDARD).encode())
        except ValueError:
            data = b""
        body, check = data[:-_CHECK], data[-_CHECK:]
        if len(body) != _NUMBER + _SECRET + _PIN or check != _check(body) or set(letters) - set(_ALPHABET):
            raise EnrolmentError("this is not a code, or a letter of it is wrong; compare it with what the hub printed")
        return Code(body[:_NUMBER], body[_NUMBER : _NUMBER + _SECRET], body[_NUMBER + _SECRET :])


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the box asks. ``signature`` is over all before it, ``proof`` over all that and the signature."""

    number: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}$")]
    device: Annotated[str, Meta(max_length=80)]
    signing_request: Pem
    signing_key: Key
    signature: Annotated[bytes, Meta(max_length=64)] = b""
    proof: Annotated[bytes, Meta(max_length=32)] = b""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub says: both certificates, the keys that the hub signs with. ``request``: SHA-256 of what it answers."""

    device: Annotated[str, Meta(max_length=80)]
    request: Annotated[bytes, Meta(min_length=32, max_length=32)]
    certificate: Pem
    authority: Pem
    hub_keys: Annotated[list[Key], Meta(min_length=1, max_length=16)]
    broker: Annotated[str, Meta(max_length=300)] = ""
    parcel_key: Annotated[str, Meta(max_length=200)] = ""
    proof: Annotated[bytes, Meta(max_length=32)] = b""


def make_request(code: Code, device: str, signing_request: str, signer: Signer) -> bytes:
    """The request of a box, encoded."""
    bare = Request(number=code.number.hex(), device=device, signing_request=signing_request, signing_key=signer.public)
    signed = msgspec.structs.replace(bare, signature=signer.sign(_REQUEST + msgspec.json.encode(bare)))
    proof = _mac(request_key(code.secret), msgspec.json.encode(signed))
    return msgspec.json.encode(msgspec.structs.replace(signed, proof=proof))


def read_request(data: bytes) -> Request:
    """A request, unproven; raises ``EnrolmentError``."""
    return _read(data, Request)


def is_request_proven(request: Request, key: bytes) -> bool:
    """Whether it was made with the code of ``key`` (``request_key``) and by who holds the signing key."""
    signed = msgspec.structs.replace(request, proof=b"")
    bare = msgspec.structs.replace(signed, signature=b"")
    right = hmac.compare_digest(_mac(key, msgspec.json.encode(signed)), request.proof)
    return right and is_proven(request.signing_key, _REQUEST + msgspec.json.encode(bare), request.signature)


def make_answer(answer: Answer, key: bytes) -> bytes:
    """The answer, encoded and proven with ``key`` (``answer_key``)."""
    bare = msgspec.structs.replace(answer, proof=b"")
    return msgspec.json.encode(msgspec.structs.replace(bare, proof=_mac(key, msgspec.json.encode(bare))))


def read_answer(data: bytes, code: Code, request: bytes) -> Answer:
    """The hub's answer to ``request``, if it is that; raises ``EnrolmentError``."""
    answer = _read(data, Answer)
    bare = msgspec.structs.replace(answer, proof=b"")
    if not hmac.compare_digest(_mac(answer_key(code.secret), msgspec.json.encode(bare)), answer.proof):
        raise EnrolmentError("the answer is not from the hub that made this code; nothing was taken from it")
    if answer.request != hashlib.sha256(request).digest():
        raise EnrolmentError("the answer is to another request; carry the newest one to the hub")
    if not hmac.compare_digest(pin_of(answer.authority), code.pin):
        raise EnrolmentError("the answer brings another authority than the code names; nothing was taken from it")
    return answer


def request_key(secret: bytes) -> bytes:
    """What proves a request."""
    return _derived(secret, b"bedside enrolment request 1")


def answer_key(secret: bytes) -> bytes:
    """What proves an answer."""
    return _derived(secret, b"bedside enrolment answer 1")


def pin_of(authority: str) -> bytes:
    """The pin of an authority's certificate (PEM); raises ``EnrolmentError``."""
    try:
        public = x509.load_pem_x509_certificate(authority.encode()).public_key()
    except ValueError as error:
        raise EnrolmentError("the hub's authority is not a certificate; ask the hub's operator") from error
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()[:_PIN]


_REQUEST = b"bedside enrolment 1\0"
_T = TypeVar("_T", Request, Answer)


def _read(data: bytes, kind: type[_T]) -> _T:
    if len(data) > MAXIMUM:
        raise EnrolmentError(f"{len(data)} bytes are more than any enrolment has")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnrolmentError(f"not an enrolment: {error}") from error


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK]
