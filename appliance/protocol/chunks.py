"""Chunks of a transfer: binary payloads with a small header in MQTT 5 user properties.

What this module keeps true: a chunk says which transfer it belongs to (the SHA-256 of the whole), where it lies, how long
the whole is and the CRC-32 of its own bytes; a chunk that contradicts itself is refused before any of it is stored. The
receiver may get chunks more than once and in any order: they are placed by offset, so nothing is ever doubled.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from appliance.protocol.messages import MessageError, make_id

Kind = Literal["preview", "original"]

MAXIMUM_CHUNK = 256 * 1024
MAXIMUM_TRANSFER = 8 << 30


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One piece. ``offset`` and ``total`` in bytes; ``sha256`` and ``total`` are of the bytes as transferred.

    ``encoding`` says how the transferred bytes become the original (``""``: they are it).
    """

    capture_id: str
    kind: Kind
    sha256: str
    offset: int
    total: int
    media_type: str
    data: bytes
    encoding: str = ""

    @property
    def id(self) -> str:
        """The transfer's id, as receipts name it."""
        return transfer_id(self.capture_id, self.kind, self.sha256)


def transfer_id(capture_id: str, kind: Kind, sha256: str) -> str:
    """The id of a transfer: the same capture, kind and bytes are the same transfer."""
    return make_id("blob", capture_id, kind, sha256)


def properties(chunk: Chunk) -> list[tuple[str, str]]:
    """The chunk's header as MQTT 5 user properties (the media type travels as the content type)."""
    header = [
        ("c", chunk.capture_id),
        ("k", chunk.kind[0]),
        ("h", chunk.sha256),
        ("o", str(chunk.offset)),
        ("n", str(chunk.total)),
        ("x", f"{zlib.crc32(chunk.data):08x}"),
    ]
    return [*header, ("e", chunk.encoding)] if chunk.encoding else header


def parse(header: Iterable[tuple[str, str]], content_type: str, data: bytes) -> Chunk:
    """Check and join header and payload; raises ``MessageError`` naming what contradicts."""
    fields = dict(header)
    capture, digest = fields.get("c", ""), fields.get("h", "")
    if not re.fullmatch(r"[0-9a-f]{32}", capture) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise MessageError("chunk: user properties c (capture id) and h (sha256) are missing or malformed")
    kinds: dict[str, Kind] = {"p": "preview", "o": "original"}
    kind = kinds.get(fields.get("k", ""))
    if kind is None:
        raise MessageError("chunk: user property k is neither p (preview) nor o (original)")
    numbers = [fields.get(name, "") for name in ("o", "n")]
    if not all(re.fullmatch(r"[0-9]{1,13}", number) for number in numbers):
        raise MessageError("chunk: user properties o (offset) and n (total) are not counts of bytes")
    offset, total = (int(number) for number in numbers)
    if not 0 < len(data) <= MAXIMUM_CHUNK or total > MAXIMUM_TRANSFER or offset + len(data) > total:
        raise MessageError(f"chunk: {len(data)} bytes at {offset} of {total} do not fit")
    if fields.get("x") != f"{zlib.crc32(data):08x}":
        raise MessageError("chunk: CRC-32 does not match; damaged on the way, it will be sent again")
    if len(content_type) > 128 or len(fields.get("e", "")) > 64:
        raise MessageError("chunk: content type or encoding is too long")
    return Chunk(
        capture_id=capture,
        kind=kind,
        sha256=digest,
        offset=offset,
        total=total,
        media_type=content_type,
        data=data,
        encoding=fields.get("e", ""),
    )


def merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join [start, end) byte ranges that touch or overlap; sorted."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def missing(ranges: Iterable[tuple[int, int]], total: int) -> Iterator[tuple[int, int]]:
    """The [start, end) gaps that ``ranges`` leave in ``total`` bytes."""
    position = 0
    for start, end in merge(ranges):
        if start > position:
            yield position, start
        position = max(position, end)
    if position < total:
        yield position, total
