"""Claims about the seam to paho: its private hook is still there, over plain TCP and TLS with certificates both ways."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import struct
import threading

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from sqlalchemy import func, select

from appliance.protocol.messages import encode
from hub import doctor, tables
from hub.arrivals import Incoming
from hub.blobs import BlobStore
from hub.config import parse
from hub.database import Database
from hub.ingest import Worker, shared_filters
from hub.receive import Receiver
from hub.session import BufferedSocket, MalformedError, Session, parse_publish
from tests.servers import running_mosquitto
from tests.strict_certificates import strict
from tests.wire import result


def test_paho_still_makes_its_socket_where_ours_steps_in(mosquitto):
    session = Session("seam", lambda _: None)
    session.connect(mosquitto.host, mosquitto.port)
    assert isinstance(session.socket(), BufferedSocket)
    session.disconnect()
    session.turn(0)


WORDS = st.characters(min_codepoint=0x20, max_codepoint=0x2FF)
PROPERTIES = st.lists(st.tuples(st.text(WORDS, max_size=20), st.text(WORDS, max_size=80)), max_size=6)


@given(
    topic=st.text(WORDS, min_size=1, max_size=60),
    payload=st.binary(max_size=400),
    qos=st.sampled_from([0, 1]),
    header=PROPERTIES,
    content_type=st.text(WORDS, max_size=150),
    extras=st.booleans(),
)
def test_a_publish_that_paho_packed_is_taken_apart_into_what_it_was_made_of(
    topic, payload, qos, header, content_type, extras
):
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = header
    properties.ContentType = content_type
    if extras:
        properties.MessageExpiryInterval = 60
        properties.ResponseTopic = "answer/here"
        properties.CorrelationData = b"1234"
        properties.PayloadFormatIndicator = 1
        properties.SubscriptionIdentifier = 300
    name = topic.encode()
    packet = struct.pack("!H", len(name)) + name + (struct.pack("!H", 513) if qos else b"")
    packet += properties.pack() + payload
    delivered = parse_publish(0x30 | qos << 1, packet)
    assert delivered.mid == (513 if qos else 0)
    assert delivered.message == Incoming(topic, payload, tuple(header), content_type)


@given(command=st.integers(0x30, 0x33), packet=st.binary(max_size=120))
def test_any_bytes_are_a_publish_or_are_called_malformed(command, packet):
    with contextlib.suppress(MalformedError):
        assert isinstance(parse_publish(command, packet).message.topic, str)


class Socket:
    """A socket that takes and gives what the test says."""

    def __init__(self, gives=(), takes=()):
        self.gives, self.takes, self.sent, self.closed = list(gives), list(takes), b"", False

    def recv(self, _):
        if not self.gives:
            raise BlockingIOError
        return self.gives.pop(0)

    def send(self, data):
        count = self.takes.pop(0) if self.takes else 0
        if not count:
            raise BlockingIOError
        self.sent += bytes(data[:count])
        return min(count, len(data))

    def close(self):
        self.closed = True


def test_what_is_read_ahead_comes_in_order_and_the_end_is_seen():
    buffered = BufferedSocket(Socket(gives=[b"abcdef", b"gh", b""]))
    assert [buffered.recv(1), buffered.recv(3), buffered.recv(9)] == [b"a", b"bcd", b"ef"]
    assert buffered.pending() == 0
    assert [buffered.recv(5), buffered.recv(5)] == [b"gh", b""]


def test_what_the_peer_does_not_take_at_once_is_kept_and_sent_later_in_order():
    inner = Socket(takes=[2, 0, 3, 100])
    buffered = BufferedSocket(inner)
    assert buffered.send(b"abcd") == 4
    assert buffered.send(b"efgh") == 4
    assert buffered.flush() is False
    assert inner.sent == b"ab"
    assert buffered.flush() is True
    assert inner.sent == b"abcdefgh"


def test_a_peer_that_takes_nothing_stops_the_writer_instead_of_filling_the_memory():
    buffered = BufferedSocket(Socket())
    with pytest.raises(BlockingIOError):
        for _ in range(100):
            buffered.send(b"x" * (1 << 20))


def _write(path, name, issuer=None, *, ca=False):
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(
        issuer[0].subject if issuer else subject, subject, key.public_key(), x509.random_serial_number()
    )
    builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=2))
    builder = strict(builder, key, issuer[1] if issuer else key, ca=ca)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    (path / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (path / f"{name}.key").write_bytes(private)
    return certificate, key


def test_a_worker_takes_results_in_over_tls_with_certificates_both_ways(tmp_path):
    authority = _write(tmp_path, "ca", ca=True)
    for name in ("broker", "hub", "box"):
        _write(tmp_path, name, authority)
    options = (
        f"cafile {tmp_path}/ca.pem",
        f"certfile {tmp_path}/broker.pem",
        f"keyfile {tmp_path}/broker.key",
        "require_certificate true",
    )
    with running_mosquitto(*options) as broker:
        config = parse(f"""
            [storage]
            state = "{tmp_path}"
            refuse_below = 1
            [broker]
            port = {broker.port}
            tls = true
            ca_file = "{tmp_path}/ca.pem"
            certificate_file = "{tmp_path}/hub.pem"
            key_file = "{tmp_path}/hub.key"
        """)
        assert {point.name: point.good for point in doctor.examine(config)}["broker"]
        database = Database(config.database_url)
        database.migrate()
        blobs = BlobStore(config.blobs)
        blobs.open()
        worker = Worker(
            config.broker,
            config.ingest,
            Receiver(database, blobs),
            client_id="hub",
            filters=shared_filters("ingest"),
        )
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            assert worker.connected.wait(10)
            _box_sends(tmp_path, broker, 200)
            assert _stored(database, 200)
        finally:
            worker.stop()
            thread.join(10)
            database.close()


def _box_sends(folder, broker, count):
    box = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    box.tls_set(f"{folder}/ca.pem", f"{folder}/box.pem", f"{folder}/box.key")
    box.connect(broker.host, broker.port)
    box.loop_start()
    threading.Event().wait(0.3)
    for number in range(count):
        box.publish("bedside/v1/site-1/box-1/up/result", encode(result(number)), qos=1).wait_for_publish(10)
    box.disconnect()
    box.loop_stop()


def _stored(database, count):
    for _ in range(200):
        with database.read() as connection:
            found = connection.execute(select(func.count()).select_from(tables.result)).scalar_one()
        if found == count:
            return True
        threading.Event().wait(0.05)
    return False


def test_no_more_is_posted_than_the_broker_takes_and_the_rest_follows_its_acknowledgements():
    class Line:
        def __init__(self):
            self.sent, self.gives = b"", []

        def send(self, data):
            self.sent += bytes(data)
            return len(data)

        def recv(self, size):
            if not self.gives:
                raise BlockingIOError
            return self.gives.pop(0)

        def close(self):
            pass

    class Allowed:
        ReceiveMaximum = 2

    line = Line()
    session = Session("hub", lambda _: None)
    session._sock = inner = BufferedSocket(line)
    session.begin(Allowed())
    for number in range(5):
        session.post("t", b"%d" % number, [("s", "x")])
    inner.flush()
    packet = len(line.sent) // 2
    for index, expected in ((0, b"0"), (1, b"1")):
        one = line.sent[index * packet : (index + 1) * packet]
        assert parse_publish(one[0], one[2:]) == (1024 + index, Incoming("t", expected, (("s", "x"),), ""))
    line.gives = [b"\x40\x02\x04\x00\x40\x03\x04\x01\x10"]
    session._take_acknowledgements(inner)
    session._send_posted()
    inner.flush()
    assert len(line.sent) == 4 * packet
    session.begin(None)
    session.post("t", b"6", [("s", "x")])
    inner.flush()
    assert len(line.sent) == 5 * packet, "what waited for the connection before is not sent on the next one"
