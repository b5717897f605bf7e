"""The published form of a signature, so that another program can make and check one."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.protocol.signing import KeySigner, Proof, proof, proof_of, statement
from appliance.sync.signing import PROOF_BYTES

TOPIC = "bedside/v1/clinic-a/box-1/up/result"


def test_a_message_is_signed_as_the_protocol_says() -> None:
    secret = bytes(range(32))
    own = Ed25519PrivateKey.from_private_bytes(secret)
    text = b"\0".join((b"bedside message 1", TOPIC.encode(), hashlib.sha256(b"payload").hexdigest().encode()))
    found = dict(proof(KeySigner(secret), statement(TOPIC, b"payload")))
    assert base64.urlsafe_b64decode(found["s"] + "==") == own.sign(text)
    digest = hashlib.sha256(own.public_key().public_bytes_raw()).digest()
    assert found["i"] == base64.urlsafe_b64encode(digest[:8]).rstrip(b"=").decode()


def test_the_bytes_of_a_proof_are_those_that_the_budget_counts() -> None:
    found = proof(KeySigner(bytes(32)), statement(TOPIC, b"payload"))
    assert sum(1 + 2 + len(name) + 2 + len(value) for name, value in found) == PROOF_BYTES


def test_a_chunk_is_signed_by_what_it_shares_with_the_others() -> None:
    topic = TOPIC.replace("result", "blob")
    header = [("c", "0" * 32), ("k", "o"), ("h", "a" * 64), ("o", "4096"), ("n", "9000"), ("x", "deadbeef")]
    text = "\0".join(("bedside transfer 1", topic, "0" * 32, "o", "a" * 64, "9000", "application/dicom", ""))
    assert statement(topic, b"some bytes", header, "application/dicom") == text.encode()
    other = [(name, "8192" if name == "o" else value) for name, value in header]
    assert statement(topic, b"other bytes", other, "application/dicom") == text.encode()
    encoded = statement(topic, b"", [*header, ("e", "bedside-original-1")], "application/dicom")
    assert encoded == text.encode() + b"bedside-original-1"


def test_no_part_can_be_moved_into_its_neighbour() -> None:
    topic = TOPIC.replace("result", "blob")
    one = statement(topic, b"", [("c", "a\0b"), ("k", "c")], "")
    other = statement(topic, b"", [("c", "a"), ("k", "b\0c")], "")
    assert one != other


@pytest.mark.parametrize(
    "properties",
    [(), [("s", "")], [("s", "A" * 85)], [("s", "A" * 87)], [("s", "££" * 43)], [("i", "x")], [("s", "A" * 4000)]],
)
def test_what_can_be_no_signature_is_none(properties: list[tuple[str, str]]) -> None:
    assert proof_of(properties) == Proof()
