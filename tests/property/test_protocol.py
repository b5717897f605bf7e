"""The wire: what is sent comes out the same; what is hostile is refused by name."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol import chunks, messages, topics
from appliance.protocol.chunks import Chunk
from appliance.protocol.messages import MessageError
from appliance.protocol.topics import Address, TopicError

RANGES = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)).map(lambda x: (x[0], x[0] + x[1])), max_size=12)


@given(RANGES, st.integers(1, 80))
def test_merged_and_missing_ranges_make_up_the_whole(ranges: list[tuple[int, int]], total: int) -> None:
    ranges = [(start, min(end, total)) for start, end in ranges if start < total]
    covered = {byte for start, end in ranges for byte in range(start, end)}
    merged = chunks.merge(ranges)
    assert {byte for start, end in merged for byte in range(start, end)} == covered
    assert all(before[1] < after[0] for before, after in itertools.pairwise(merged))
    gaps = {byte for start, end in chunks.missing(ranges, total) for byte in range(start, end)}
    assert gaps == set(range(total)) - covered


@given(st.binary(min_size=1, max_size=5000), st.integers(0, 100_000), st.sampled_from(["preview", "original"]))
def test_a_chunk_comes_out_as_it_went_in(data: bytes, offset: int, kind: chunks.Kind) -> None:
    chunk = Chunk(
        capture_id="a" * 32,
        kind=kind,
        sha256="b" * 64,
        offset=offset,
        total=offset + len(data) + 7,
        media_type="application/dicom",
        data=data,
    )
    assert chunks.parse(chunks.properties(chunk), "application/dicom", data) == chunk


@given(st.dictionaries(st.sampled_from(list("ckhonxe")), st.text(max_size=70)), st.binary(max_size=100))
def test_a_hostile_chunk_header_is_refused_by_name(header: dict[str, str], data: bytes) -> None:
    with pytest.raises(MessageError, match="chunk: "):
        chunks.parse(list(header.items()), "x", data)


def test_a_chunk_damaged_on_the_way_is_refused() -> None:
    chunk = Chunk(
        capture_id="a" * 32, kind="preview", sha256="b" * 64, offset=0, total=9, media_type="", data=b"012345678"
    )
    with pytest.raises(MessageError, match="CRC-32"):
        chunks.parse(chunks.properties(chunk), "", b"012345679")


@given(st.text(max_size=200))
def test_no_foreign_topic_is_taken_for_ours(text: str) -> None:
    with pytest.raises(TopicError):
        topics.parse(text)


@pytest.mark.parametrize("name", ["", "A", "a/b", "+", "#", "a b", "-a", "a" * 33, "ä", "a\0"])
def test_no_odd_name_makes_a_topic(name: str) -> None:
    with pytest.raises(TopicError):
        Address("site", name).up("result")


@pytest.mark.parametrize("kind", messages.MESSAGES)
@given(payload=st.binary(max_size=300))
def test_bytes_that_are_no_message_are_refused(kind: type[messages.Message], payload: bytes) -> None:
    with pytest.raises(MessageError):
        messages.decode(payload, kind)


@pytest.mark.parametrize(
    "payload", [b"[" * 100_000, b'{"a":' * 50_000, os.urandom(messages.MAXIMUM_JSON + 1), b"null", b"", b"\xff\xfe"]
)
def test_deep_large_and_empty_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(MessageError):
        messages.decode(payload, messages.Result)


def test_ids_derive_from_their_origin_only() -> None:
    assert messages.make_id("result", "a", "bc") == messages.make_id("result", "a", "bc")
    assert messages.make_id("result", "a", "bc") != messages.make_id("result", "ab", "c")
    assert messages.make_id("result", "a") != messages.make_id("review", "a")
