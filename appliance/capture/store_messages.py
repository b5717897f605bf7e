"""The command sets of C-STORE: PS3.7, 9.3.1, Implicit VR Little Endian.

What this module keeps true: a request is understood only when it has all it needs; whatever else the bytes are, the answer
is None, in linear time.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_C_STORE_RQ, _C_STORE_RSP, _NO_DATA_SET = 0x0001, 0x8001, 0x0101
_SOP_CLASS, _FIELD, _MESSAGE_ID, _DATA_SET_TYPE, _INSTANCE = 0x0002, 0x0100, 0x0110, 0x0800, 0x1000


class StoreRequest(NamedTuple):
    """What of a C-STORE request matters."""

    sop_class: str
    instance: str
    message_id: int


def store_request(command: memoryview) -> StoreRequest | None:
    """The request, if ``command`` is the command set of a C-STORE request with a data set to come."""
    values: dict[int, bytes] = {}
    offset = 0
    while offset + 8 <= len(command):
        group, element, length = struct.unpack_from("<HHI", command, offset)
        offset += 8 + length
        if group != 0 or offset > len(command):
            return None
        values[element] = bytes(command[offset - length : offset])
    numbers = [int.from_bytes(values.get(number, b""), "little") for number in (_FIELD, _DATA_SET_TYPE, _MESSAGE_ID)]
    sop_class, instance = (values.get(number, b"").rstrip(b"\0 ") for number in (_SOP_CLASS, _INSTANCE))
    complete = _MESSAGE_ID in values and _DATA_SET_TYPE in values and sop_class.isascii() and instance.isascii()
    if numbers[0] != _C_STORE_RQ or numbers[1] == _NO_DATA_SET or not (complete and sop_class and instance):
        return None
    if numbers[2] > 0xFFFF or max(len(sop_class), len(instance)) > 64:
        return None
    return StoreRequest(sop_class.decode("ascii"), instance.decode("ascii"), numbers[2])


def store_response(request: StoreRequest, status: int, comment: str) -> bytes:
    """The command set of the answer; ``comment`` (at most 64 characters go out) names the cause of a failure."""
    body = b"".join(
        (
            _element(_SOP_CLASS, _text(request.sop_class, b"\0")),
            _element(_FIELD, struct.pack("<H", _C_STORE_RSP)),
            _element(0x0120, struct.pack("<H", request.message_id)),
            _element(_DATA_SET_TYPE, struct.pack("<H", _NO_DATA_SET)),
            _element(0x0900, struct.pack("<H", status)),
            _element(0x0902, _text(comment[:64], b" ")) if comment else b"",
            _element(_INSTANCE, _text(request.instance, b"\0")),
        )
    )
    return _element(0x0000, struct.pack("<I", len(body))) + body


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def _text(value: str, padding: bytes) -> bytes:
    encoded = value.encode("ascii", "replace")
    return encoded + padding * (len(encoded) % 2)
