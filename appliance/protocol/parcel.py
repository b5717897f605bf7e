"""Parcels: what waits for the hub, as one file on a stick, and the hub's receipts on the way back.

What this module keeps true: only the hub that a parcel is for can read it, and only a parcel that is whole and from the
device that it names is read at all; receipts are obeyed only if that hub signed them for this device. Inside are the very
messages that the link would carry, with the same ids: what went both ways is stored once.

Format, integers big-endian: 8 bytes ``MAGIC``; 4 bytes length of the header; the header (``Header``, msgpack); frames of
AES-256-GCM, each of ``FRAME`` plain bytes (the last may be shorter) and 16 bytes tag; 64 bytes Ed25519 signature of the
device over ``MAGIC`` and the SHA-256 of all before. The content key is HKDF-SHA256 over the X25519 secret of a key made for
this parcel and the hub's, bound to both public keys (as in HPKE, RFC 9180, base mode). A frame's nonce is its number (8
bytes) and 1 for the last else 0 (4 bytes); the header's hash is authenticated with each. The plain bytes are entries, each 4
bytes length and an ``Entry``, msgpack.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAGIC = b"BSPARCL1"
SUFFIX, RECEIPTS_SUFFIX = ".parcel", ".receipts"
FRAME = 1 << 20
_TAG, _SIGNATURE, _KEY = 16, 64, 32
_LARGEST_HEADER, _LARGEST_ENTRY = 4096, 1 << 20
_RECEIPTS = b"bedside receipts 1\0"


class ParcelError(Exception):
    """A parcel, its receipts or a key can't be used; the message names cause and remedy."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """From whom (``site/name``), which of how an export's parcels, and the public key made for it."""

    device: str
    export: str
    number: int
    public: bytes


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A message as the link would publish it; ``leaf`` is the end of its topic."""

    leaf: str
    payload: bytes
    content_type: str = ""
    properties: tuple[tuple[str, str], ...] = ()


class Receipts(msgspec.Struct, frozen=True, kw_only=True):
    """The hub's answer to a parcel: encoded ``messages.Receipt`` without a time (they travel for days), signed."""

    device: str
    receipts: tuple[bytes, ...]
    signature: bytes = b""


class HubSecret:
    """The hub's keys, derived from one secret of 32 bytes."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _KEY:
            raise ParcelError("the hub's key file does not hold 32 bytes; make one with: bedside-hub keys FILE")
        self.opening = X25519PrivateKey.from_private_bytes(_derived(secret, b"bedside hub open 1"))
        self.signing = Ed25519PrivateKey.from_private_bytes(_derived(secret, b"bedside hub sign 1"))

    @property
    def public(self) -> str:
        """What the boxes are given: both public keys, base64."""
        keys = self.opening.public_key().public_bytes_raw() + self.signing.public_key().public_bytes_raw()
        return base64.b64encode(keys).decode()

    def sign(self, device: str, receipts: list[bytes]) -> bytes:
        """The receipts for a device as a file's content."""
        unsigned = Receipts(device=device, receipts=tuple(receipts))
        signature = self.signing.sign(_RECEIPTS + msgspec.msgpack.encode(unsigned))
        return msgspec.msgpack.encode(msgspec.structs.replace(unsigned, signature=signature))


class HubPublic:
    """The hub's public keys, as ``HubSecret.public`` gives them; raises ``ParcelError``."""

    def __init__(self, text: str) -> None:
        if not text:
            raise ParcelError(
                "usb.hub_key is empty: write the hub's key for parcels into the configuration (docs/usb.md)"
            )
        keys = _unbase64(text, 2 * _KEY, "the hub's public key (usb.hub_key)")
        self.opening = X25519PublicKey.from_public_bytes(keys[:_KEY])
        self._signing = Ed25519PublicKey.from_public_bytes(keys[_KEY:])

    def opened(self, data: bytes, device: str) -> tuple[bytes, ...]:
        """The receipts of a file's content, if this hub signed them for this device; raises ``ParcelError``."""
        try:
            found = msgspec.msgpack.decode(data, type=Receipts)
            unsigned = msgspec.structs.replace(found, signature=b"")
            self._signing.verify(found.signature, _RECEIPTS + msgspec.msgpack.encode(unsigned))
        except (msgspec.DecodeError, UnicodeDecodeError, InvalidSignature) as error:
            raise ParcelError("these receipts are damaged or not from this hub; have them written again") from error
        if found.device != device:
            raise ParcelError(f"these receipts are for {found.device[:80]}; take them there")
        return found.receipts


def device_public(text: str) -> Ed25519PublicKey:
    """A device's public key from its base64; raises ``ParcelError``."""
    return Ed25519PublicKey.from_public_bytes(_unbase64(text, _KEY, "a device's public key"))


def public_text(key: Ed25519PrivateKey) -> str:
    """A device's public key as base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


class ParcelWriter:
    """Writes one parcel. ``write`` takes the bytes as they come; ``size`` is what it has taken and still will."""

    def __init__(
        self,
        write: Callable[[bytes], object],
        device: str,
        export: str,
        number: int,
        hub: HubPublic,
        key: Ed25519PrivateKey,
    ) -> None:
        self._write, self._key = write, key
        made = X25519PrivateKey.generate()
        public = made.public_key().public_bytes_raw()
        header = msgspec.msgpack.encode(Header(device=device, export=export, number=number, public=public))
        self._cipher = AESGCM(_content_key(made.exchange(hub.opening), public, hub.opening.public_bytes_raw()))
        self._bound = hashlib.sha256(header).digest()
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._frames = self._written = self.entries = 0
        self._put(MAGIC + struct.pack(">I", len(header)) + header)

    @property
    def size(self) -> int:
        """Bytes of the file if it were finished now."""
        return self._written + len(self._buffer) + _TAG + _SIGNATURE

    def add(self, entry: Entry) -> None:
        """Add a message."""
        data = msgspec.msgpack.encode(entry)
        self._buffer += struct.pack(">I", len(data)) + data
        self.entries += 1
        while len(self._buffer) > FRAME:  # strictly: the last frame is marked, so one is always held back
            self._seal(bytes(self._buffer[:FRAME]), last=False)
            del self._buffer[:FRAME]

    def finish(self) -> None:
        """Write the rest and the signature."""
        self._seal(bytes(self._buffer), last=True)
        self._write(self._key.sign(MAGIC + self._hash.digest()))

    def _seal(self, plain: bytes, *, last: bool) -> None:
        self._put(self._cipher.encrypt(_nonce(self._frames, last=last), plain, self._bound))
        self._frames += 1

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self._written += len(data)
        self._write(data)


def header_of(path: Path) -> Header:
    """From whom a parcel says it is, unproven; raises ``ParcelError`` or ``OSError``."""
    with path.open("rb") as file:
        return _header(file)[0]


def entries(path: Path, hub: HubSecret, device: Ed25519PublicKey) -> Iterator[Entry]:
    """The messages of a parcel, once all of it is proven to be whole and the device's; raises ``ParcelError``."""
    size = path.stat().st_size - _SIGNATURE
    with path.open("rb") as file:
        header, head = _header(file)
        _prove(file, size, device)
        file.seek(len(MAGIC) + 4 + len(head))
        try:
            secret = hub.opening.exchange(X25519PublicKey.from_public_bytes(header.public))
        except ValueError as error:  # a point of small order
            raise ParcelError("its header is damaged; export it again") from error
        cipher = AESGCM(_content_key(secret, header.public, hub.opening.public_key().public_bytes_raw()))
        yield from _split(_frames(file, size, cipher, hashlib.sha256(head).digest()))


def _header(file: BinaryIO) -> tuple[Header, bytes]:
    start = file.read(len(MAGIC) + 4)
    length = struct.unpack(">I", start[-4:])[0] if len(start) == len(MAGIC) + 4 else 0
    if not start.startswith(MAGIC) or not 0 < length <= _LARGEST_HEADER:
        raise ParcelError("not a parcel; leave it out")
    head = file.read(length)
    try:
        header = msgspec.msgpack.decode(head, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ParcelError("its header is damaged; export it again") from error
    if len(header.public) != _KEY:
        raise ParcelError("its header is damaged; export it again")
    return header, head


def _prove(file: BinaryIO, size: int, device: Ed25519PublicKey) -> None:
    digest, left = hashlib.sha256(), size
    file.seek(0)
    while left > 0 and (block := file.read(min(left, FRAME))):
        digest.update(block)
        left -= len(block)
    try:
        device.verify(file.read(_SIGNATURE), MAGIC + digest.digest())
    except InvalidSignature as error:
        raise ParcelError("cut off, damaged, or not from the device it names; export it again") from error


def _frames(file: BinaryIO, end: int, cipher: AESGCM, bound: bytes) -> Iterator[bytes]:
    number = 0
    while (left := end - file.tell()) > 0:
        last = left <= FRAME + _TAG
        try:
            yield cipher.decrypt(_nonce(number, last=last), file.read(min(left, FRAME + _TAG)), bound)
        except (InvalidTag, ValueError) as error:
            raise ParcelError("for another hub, or damaged: this hub's key does not open it") from error
        number += 1


def _split(frames: Iterator[bytes]) -> Iterator[Entry]:
    buffer = bytearray()
    for frame in frames:
        buffer += frame
        at = 0
        while len(buffer) - at >= 4:
            (length,) = struct.unpack_from(">I", buffer, at)
            if length > _LARGEST_ENTRY:
                raise ParcelError("an entry is larger than any message; export it again")
            if len(buffer) - at - 4 < length:
                break
            try:
                yield msgspec.msgpack.decode(buffer[at + 4 : at + 4 + length], type=Entry)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ParcelError("an entry is not a message; export it again") from error
            at += 4 + length
        del buffer[:at]
    if buffer:
        raise ParcelError("it ends within a message; export it again")


def _content_key(secret: bytes, made: bytes, hub: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY, salt=None, info=b"bedside parcel 1" + made + hub).derive(secret)


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY, salt=None, info=purpose).derive(secret)


def _nonce(number: int, *, last: bool) -> bytes:
    return struct.pack(">QI", number, int(last))


def _unbase64(text: str, size: int, what: str) -> bytes:
    try:
        data = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != size:
        raise ParcelError(f"{what} is not {size} bytes of base64; copy the whole line again")
    return data
