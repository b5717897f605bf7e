"""A PUBLISH of quality of service 1, packed (MQTT 5, 3.3): for both ends, because paho takes ten times as long for it.

What this module keeps true: a packet is what the specification says or is not made: topics and properties longer than their
length fields raise ``OverflowError``.
"""

from __future__ import annotations

FIRST_ID, LAST_ID = 1 << 10, 65535
"""Packet ids of what is packed here; those below are paho's own (SUBSCRIBE)."""

_PUBLISH_QOS_1, _RETAIN = 0x32, 0x01
_USER_PROPERTY = 0x26


def publish(topic: bytes, payload: bytes, number: int, properties: bytes = b"", *, retain: bool = False) -> bytes:
    """The packet. ``topic`` is a ``text_field``, ``properties`` are packed already, ``number`` is the packet id."""
    body = b"".join((topic, number.to_bytes(2, "big"), variable(len(properties)), properties))
    first = _PUBLISH_QOS_1 | (_RETAIN if retain else 0)
    return b"".join((bytes((first,)), variable(len(body) + len(payload)), body, payload))


def text_field(text: str) -> bytes:
    """A UTF-8 string with its length (1.5.4)."""
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def text_pair(key: str, value: str) -> bytes:
    """A user property (3.3.2.3.7)."""
    return bytes((_USER_PROPERTY,)) + text_field(key) + text_field(value)


def variable(number: int) -> bytes:
    """A variable byte integer (1.5.5)."""
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)
