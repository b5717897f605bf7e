"""Whatever bytes come where enrolments, signatures and certificates are read, the answer is a refusal and never a crash."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.protocol.enrolment import Code, EnrolmentError, Request, make_request, read_answer, read_request
from appliance.protocol.signing import SIGNATURE, KeySigner, is_proven, proof, proof_of, statement
from appliance.protocol.topics import Address
from hub.authority import AuthorityError, make_authority
from hub.database import Database
from hub.enrolment import Enrolments

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOPIC = "bedside/v1/clinic-a/box-1/up/result"
SIGNER = KeySigner(bytes(32))


@pytest.fixture(scope="module")
def enrolments() -> Iterator[Enrolments]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/hub.sqlite")
        database.migrate()
        yield Enrolments(database, make_authority(Path(folder) / "ca", "Test hub"))
        database.close()


@QUICK
@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_no_enrolment(enrolments: Enrolments, data: bytes) -> None:
    with pytest.raises(EnrolmentError):
        enrolments.enrol(data, 1)
    with pytest.raises(EnrolmentError):
        read_answer(data, Code(bytes(4), bytes(12), bytes(12)), b"")


@QUICK
@given(
    st.text(st.characters(codec="utf-8"), max_size=80),
    st.text(st.characters(codec="utf-8"), max_size=300),
    st.binary(max_size=64),
    st.binary(max_size=32),
)
def test_a_request_of_the_right_form_with_any_content_is_refused_without_its_code(
    enrolments: Enrolments, device: str, signing_request: str, signature: bytes, mac: bytes
) -> None:
    code = Code.parse(enrolments.make_code(Address("clinic-a", "box-1"), 1, 1))
    made = Request(
        number=code.number.hex(),
        device=device,
        signing_request=signing_request,
        signing_key=bytes(32),
        signature=signature,
        proof=mac,
    )
    with pytest.raises(EnrolmentError):
        enrolments.enrol(msgspec.json.encode(made), 1)


@QUICK
@given(st.text(st.characters(codec="utf-8"), max_size=300))
def test_a_signing_request_of_any_text_with_the_right_code_is_refused_with_its_reason(
    enrolments: Enrolments, signing_request: str
) -> None:
    code = Code.parse(enrolments.make_code(Address("clinic-a", "box-1"), 1, 1))
    with pytest.raises((EnrolmentError, AuthorityError), match="signing request"):
        enrolments.enrol(make_request(code, "clinic-a/box-1", signing_request, SIGNER), 1)


@QUICK
@given(st.binary(max_size=200))
def test_a_request_reads_as_it_was_written_or_not_at_all(data: bytes) -> None:
    code = Code(bytes(4), data[:12].ljust(12, b"\0"), bytes(12))
    assert Code.parse(code.text) == code
    assert read_request(make_request(code, "a/b", data.hex(), SIGNER)).signing_request == data.hex()


@QUICK
@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=100)), max_size=6), st.binary(max_size=50))
def test_any_properties_carry_no_proof_that_was_not_made(properties: list[tuple[str, str]], payload: bytes) -> None:
    said = statement(TOPIC, payload, properties)
    carried = proof_of(properties)
    assert not is_proven(SIGNER.public, said, carried.signature)
    assert is_proven(SIGNER.public, said, proof_of([*properties, *proof(SIGNER, said)]).signature)


@QUICK
@given(st.integers(0, 63), st.integers(0, 7), st.binary(max_size=50))
def test_any_bit_of_a_signature_counts(at: int, bit: int, payload: bytes) -> None:
    said = statement(TOPIC, payload)
    signature = bytearray(proof_of(proof(SIGNER, said)).signature)
    signature[at] ^= 1 << bit
    assert not is_proven(SIGNER.public, said, bytes(signature))
    assert dict(proof(SIGNER, said))[SIGNATURE]
