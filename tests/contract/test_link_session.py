"""The box's session against the hub's own reading of the wire and against a real broker."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol.buffered import BufferedSocket
from appliance.sync.session import Session, Waker
from hub.arrivals import Incoming
from hub.session import parse_publish
from tests.servers import running_mosquitto

WORDS = st.characters(min_codepoint=0x20, max_codepoint=0x2FF)
TOPIC = "bedside/v1/site-1/box-1/up/blob"


class Line:
    """A socket that keeps what is sent and gives what it was told to."""

    def __init__(self, *gives: bytes) -> None:
        self.sent = bytearray()
        self.gives = list(gives)

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def recv(self, size: int) -> bytes:
        if not self.gives:
            raise BlockingIOError
        return self.gives.pop(0)

    def close(self) -> None:
        pass


def session(inner: Line, aliases: int = 0) -> tuple[Session, list[tuple[int, bool]]]:
    published: list[tuple[int, bool]] = []
    one = Session("box", lambda number, taken: published.append((number, taken)), Waker())
    one._sock = BufferedSocket(inner)
    one.alias_maximum = aliases
    return one, published


def packets(data: bytes) -> list[tuple[int, bytes]]:
    """(first byte, body) of each packet, by the specification's own algorithm for the length."""
    found, at = [], 0
    while at < len(data):
        first, length, factor = data[at], 0, 1
        while True:
            at += 1
            length += (data[at] & 127) * factor
            factor *= 128
            if data[at] < 128:
                break
        found.append((first, bytes(data[at + 1 : at + 1 + length])))
        at += 1 + length
    return found


@given(
    payload=st.binary(min_size=1, max_size=40_000),
    header=st.lists(st.tuples(st.text(WORDS, max_size=20), st.text(WORDS, max_size=80)), max_size=7),
    content_type=st.text(WORDS, max_size=100),
)
def test_the_hub_reads_what_the_box_packs(payload, header, content_type):
    line = Line()
    box, _ = session(line)
    number = box.post(TOPIC, payload, content_type, header)
    box.socket().flush()
    [(first, body)] = packets(line.sent)
    assert parse_publish(first, body) == (number, Incoming(TOPIC, payload, tuple(header), content_type))


def test_a_topic_goes_once_and_then_by_its_alias_and_again_on_the_next_connection():
    first, second = Line(), Line()
    for line in (first, second):
        box, _ = session(line, aliases=1)
        for _ in range(3):
            box.post(TOPIC, b"data")
        box.post("bedside/v1/site-1/box-1/up/result", b"{}")
        box.socket().flush()
        topics = [body[2 : 2 + int.from_bytes(body[:2], "big")] for _, body in packets(line.sent)]
        assert topics == [TOPIC.encode(), b"", b"", b"bedside/v1/site-1/box-1/up/result"]


def test_acknowledgements_are_read_whole_in_parts_and_with_a_reason():
    stream = b"\x40\x02\x04\x00" + b"\x40\x03\x04\x01\x97" + b"\x40\x04\x04\x02\x10\x00" + b"\x40\x02\x04\x03"
    for cut in range(len(stream) + 1):
        box, published = session(Line(stream[:cut], stream[cut:]) if 0 < cut < len(stream) else Line(stream))
        while box.socket()._inner.gives or box.socket().buffered:
            assert box._read(box.socket())
        assert published == [(0x400, True), (0x401, False), (0x402, True), (0x403, True)]


def test_the_end_of_the_stream_is_noticed():
    box, _ = session(Line(b"\x40\x02\x04\x00", b"", b""))
    assert box._read(box.socket())
    assert not box._read(box.socket())


@pytest.fixture(scope="module")
def broker():
    with running_mosquitto("max_inflight_messages 7") as one:
        yield one


def test_what_goes_by_alias_arrives_under_its_topic_and_is_acknowledged(broker):
    heard: list[tuple[str, bytes]] = []
    published: list[int] = []
    box = Session("box", lambda number, _: published.append(number), Waker())
    box.on_connect = lambda client, _data, _flags, _reason, properties: (
        client.allowed(properties),
        client.subscribe("bedside/v1/site-1/box-1/up/blob", qos=0),
    )
    box.on_message = lambda _client, _data, message: heard.append((message.topic, message.payload))
    box.connect(broker.host, broker.port)
    until(box, lambda: box.alias_maximum)
    box.turn(0.2)
    numbers = [box.post(TOPIC, b"%d" % index) for index in range(5)]
    until(box, lambda: len(published) == 5 and len(heard) == 5)
    assert published == numbers
    assert heard == [(TOPIC, b"%d" % index) for index in range(5)]
    assert box.receive_maximum == 7
    box.disconnect()


def until(box: Session, condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        assert box.turn(0.1)


def test_a_ring_ends_the_present_turn_or_the_next_and_after_closing_nothing():
    import select

    waker = Waker()
    poll = select.poll()
    poll.register(waker.fileno(), select.POLLIN)
    waker.ring()
    waker.ring()
    assert poll.poll(0)
    waker.heard()
    assert not poll.poll(0)
    waker.close()
    waker.ring()
    waker.heard()


def test_a_message_that_may_expire_says_so_to_the_broker_and_reads_the_same():
    line = Line()
    box, _ = session(line, aliases=1)
    box.post(TOPIC, b"{}", "application/json", [("s", "signed")], expiry=3600)
    box.socket().flush()
    [(first, body)] = packets(line.sent)
    assert b"\x02\x00\x00\x0e\x10" in body
    delivered = parse_publish(first, body)
    assert delivered.message == Incoming(TOPIC, b"{}", (("s", "signed"),), "application/json")
