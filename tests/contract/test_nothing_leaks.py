"""A thousand patients with odd names pass through a box: none of them can be read anywhere but where they belong."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog

from appliance.config import LinkConfig
from appliance.protocol import messages
from appliance.protocol.messages import Telemetry
from appliance.protocol.topics import UP, Address
from appliance.records import Patient, Triage
from appliance.store import audit
from appliance.store.outbox import Priority
from appliance.sync.uplink import Uplink
from tests.boxes import DEVICE, keep, now, open_store, reading

COUNT = 1000
ALPHABETS = (
    "ÀÉÎÕÜßøłžşğ",
    "ابتثجحخدذرزس",
    "अआइईउऊऋएऐओऔ",
    "田中山川木村高橋",
    "АБВГДЕЖЗИЙК",
    "ሀለሐመሠረሰሸቀበ",
    "\u200f\u202e\u00a0\u2009",
    "😀🩻🫀",
    "'\"\\/%_;--<>&",
    "\u0301\u0308\u0327",
)


def people() -> list[Patient]:
    """Names and numbers from all over Unicode, each with a tag that no program writes by chance."""
    chance = random.Random(20260101)

    def odd(alphabet: str, length: int) -> str:
        return "".join(chance.choice(alphabet) for _ in range(length))

    made = []
    for number in range(COUNT):
        alphabet = ALPHABETS[number % len(ALPHABETS)]
        name, identity = (f"Qz{chance.getrandbits(64):016x}" for _ in range(2))
        made.append(
            Patient(
                id=f"{odd(alphabet, 2)}{identity}{odd(alphabet, 2)}",
                name=f"{odd(alphabet, 3)}{name}{odd(alphabet, 3)}^{odd(alphabet, 4)}",
                birth_date=f"19{number % 90 + 10}0{number % 9 + 1}1{number % 9}",
            )
        )
    return made


TAG = re.compile(rb"(?i)q\0{0,3}z\0{0,3}((?:[0-9a-f]\0{0,3}){16})")
"""A tag in UTF-8, UTF-16 or UTF-32 of either order, in either case, escaped or not: the tag itself is ASCII."""


def tags(patients: list[Patient]) -> set[str]:
    """The tags of names and numbers."""
    return {text for one in patients for text in found(f"{one.id} {one.name}".encode(), None)}


def found(data: bytes, wanted: set[str] | None) -> list[str]:
    """The tags that stand in ``data``, of those that are wanted."""
    hits = {match[1].replace(b"\0", b"").decode().lower() for match in TAG.finditer(data)}
    return sorted(hits if wanted is None else hits & wanted)


class Wire:
    """A connection that keeps what went over it."""

    def __init__(self) -> None:
        self.topics: set[str] = set()
        self.tokens: list[int] = []
        self.results = 0

    def publish(self, leaf: str, payload: bytes, token: int, content_type: str, properties: object) -> bool:
        self.topics.add(Address("site-1", "box-1").up(leaf))  # type: ignore[arg-type]
        self.tokens.append(token)
        self.results += leaf == "result"
        return True


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    text = io.StringIO()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=text))
    yield text
    structlog.reset_defaults()


def test_a_scan_of_everything_that_a_box_writes_finds_none_of_a_thousand_people(
    tmp_path: Path, logged: io.StringIO
) -> None:
    patients = people()
    wanted = tags(patients)
    assert len(wanted) == 2 * COUNT
    for way in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "unicode_escape"):
        assert found(b"\xff" + patients[3].name.upper().encode(way), wanted), "the scan itself finds what is there"
    store = open_store(tmp_path)

    def through(number: int) -> str:
        from appliance.sync.report import result_of

        patient = patients[number]
        content = f"DICM {patient.name} {patient.id}".encode()
        kept = keep(store, content, uid=f"1.2.{number}", patient=patient)
        entry = store.captures.get(kept.capture_id)
        said = reading(kept.capture_id, Triage.CRITICAL if number % 10 == 0 else Triage.ROUTINE)
        payload = messages.encode(result_of(entry.capture, said, DEVICE, entry.sequence))
        assert patient.name in entry.capture.patient.name

        def report(tx: object) -> None:
            store.captures.checked(tx, kept.capture_id)  # type: ignore[arg-type]
            store.captures.read(tx, said, now().wall)  # type: ignore[arg-type]
            store.outbox.put(
                tx,  # type: ignore[arg-type]
                message_id=messages.make_id("result", DEVICE, kept.capture_id, "0"),
                capture_id=kept.capture_id,
                leaf="result",
                priority=Priority.of("result", said.triage),
                sha256=messages.sha256(payload),
                payload=payload,
            )
            store.captures.reported(tx, kept.capture_id)  # type: ignore[arg-type]

        store.journal.write(report)
        return kept.capture_id

    with ThreadPoolExecutor(16) as threads:
        captures = list(threads.map(through, range(COUNT)))
    wire = Wire()
    uplink = Uplink(store, LinkConfig(), lambda: 0.0, lambda: "2026-01-01")
    uplink.connected(wire)
    for _ in range(20):
        uplink.step()
        for token in wire.tokens:
            uplink.acknowledged(token)
        wire.tokens.clear()
    assert wire.results > 100
    entries = "".join(str(dict(row)) for row in audit.entries(store.journal))
    metrics = messages.encode(Telemetry(values={"captures": float(len(captures))}))
    store.close()

    assert len(set(captures)) == COUNT
    assert found(entries.encode(), wanted) == []
    assert found(logged.getvalue().encode() + metrics + " ".join(wire.topics).encode(), wanted) == []
    assert wire.topics <= {Address("site-1", "box-1").up(leaf) for leaf in UP}
    assert scanned(tmp_path, wanted) > 1_000_000


def scanned(folder: Path, wanted: set[str]) -> int:
    """How many bytes were looked at, names and contents, of which none is wanted."""
    count = 0
    for path in sorted(folder.rglob("*")):
        assert found(str(path.relative_to(folder)).encode("utf-8", "surrogateescape"), wanted) == []
        if path.is_file() and path.name != "reserve":
            assert found(path.read_bytes(), wanted) == [], path.name
            count += path.stat().st_size
    return count
