"""A bedside box for the console to show: a real store with captures, readings and the hub's word."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import msgspec
from argon2 import PasswordHasher

from appliance.capture.facts import media_type_of
from appliance.capture.intake import Facts, Intake, IntakeError
from appliance.config import ConsoleConfig, StorageConfig
from appliance.console.app import UPLOAD_LIMIT
from appliance.console.context import Context, Door, Serving, StatusView, Upload
from appliance.console.server import ConsoleServer
from appliance.health.clock import Clock
from appliance.protocol.messages import Command, ReviewMessage, make_id
from appliance.reading.requests import Raw
from appliance.records import ADVICE_NOT_DIAGNOSIS, Code, Engine, Finding, Modality, Patient, Reading, Refusal, Triage
from appliance.store.captures import Kept
from appliance.store.outbox import Priority
from appliance.store.people import People
from appliance.store.store import Store

ENGINE = Engine(engine="onnxruntime", provider="CPUExecutionProvider", device="x86", precision="int8", golden="passed")
QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""argon2id too, at a cost that tests can bear."""
WALL = "2026-03-01T10:00:00.000Z"


def png(rows: int = 60, columns: int = 80, shade: int = 90) -> bytes:
    """A grey PNG, a gradient so that it can be told from nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + bytes((shade + row + column) % 256 for column in range(columns)) for row in range(rows))
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def wav(seconds: float = 0.5, rate: int = 4000) -> bytes:
    """A square wave, 16 bit, one channel."""
    samples = b"".join(struct.pack("<h", 8000 if n // 20 % 2 else -8000) for n in range(int(seconds * rate)))
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * 2, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def finding(label: str, probability: float, **rest: Any) -> Finding:
    """A finding cut at 0.45."""
    given = {"positive": probability >= 0.45, "threshold": 0.45, "sensitivity": 0.9, "specificity": 0.8, **rest}
    code = Code(scheme="99BEDSIDE", value=label.lower().replace(" ", "-"), meaning=label)
    return Finding(id=code.value, label=label, code=code, probability=probability, **given)


class World:
    """A box in ``folder`` with its console on a free port; ``console``: its configuration, else without sign-in."""

    def __init__(self, folder: Path, upload_limit: int = UPLOAD_LIMIT, ultrasound: Any = None, **console: Any) -> None:
        self.clock = Clock()
        self.store = Store(StorageConfig(state=str(folder / "state"), refuse_below=16, reserve=4), self.clock.now)
        self.intake = Intake(self.store, "site-1/box-1")
        self.previews: dict[str, tuple[str, bytes]] = {}
        self.greys: dict[str, Raw] = {}
        self.agreements: dict[str, bool] = {}
        self.uploads: list[Upload] = []
        self.status_view = StatusView(
            version="0.1.0",
            link_since_s=7300,
            free_bytes=41_200_000_000,
            clock_uncertainty_s=0.8,
            wall=self.clock.now().wall,
            models=(
                Serving(
                    bundle="chest-xray",
                    version="1.0.0",
                    modality=Modality.CHEST_XRAY,
                    engine="onnxruntime",
                    provider="CPUExecutionProvider",
                    golden="passed",
                ),
            ),
            doors=(Door(name="DICOM", state="listening on port 11112 as BEDSIDE"),),
        )
        self.context = Context(
            store=self.store,
            status=self._status,
            preview=self.previews.get,
            pixels=self.greys.get,
            add=self._add,
            note_agreement=self._note,
            agreement=self.agreements.get,
            ultrasound=ultrasound,
        )
        self.store.people = People(self.store.journal, self.store.key, QUICK)
        config = ConsoleConfig(**{"port": 0, "sign_in": "off", **console})
        self.server = ConsoleServer(config, self.context, upload_limit=upload_limit)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.client = httpx.Client(base_url=self.url, headers={"accept-language": "en"})

    def close(self) -> None:
        self.client.close()
        self.server.stop()
        self.store.close()

    def keep(self, data: bytes, modality: Modality = Modality.CHEST_XRAY, **facts: Any) -> str:
        """Keep a capture; its id."""
        with self.intake.open() as incoming:
            incoming.write(data)
            media_type = facts.pop("media_type", media_type_of(data[:256]) or "application/dicom")
            return incoming.keep(Facts(modality=modality, media_type=media_type, source="test", **facts)).capture_id

    def read(self, capture_id: str, **reading: Any) -> Reading:
        """Give a capture its reading, as the pipeline does."""
        given = {"status": "read", "triage": Triage.ROUTINE, "advice": f"Usual care. {ADVICE_NOT_DIAGNOSIS}", **reading}
        entry = self.store.captures.get(capture_id)
        made = Reading(
            capture_id=capture_id,
            modality=entry.capture.modality,
            bundle="chest-xray",
            bundle_version="1.0.0",
            engine=ENGINE,
            milliseconds=83.4,
            **given,
        )
        self.store.journal.write(lambda tx: self.store.captures.checked(tx, capture_id))
        self.store.journal.write(lambda tx: self.store.captures.read(tx, made, WALL))
        return made

    def refuse(self, capture_id: str, reason: str, advice: str) -> Reading:
        """Give a capture the reason why it isn't read."""
        refusal = Refusal(code="not-chest", reason=reason, advice=advice)
        return self.read(capture_id, status="not_read", refusal=refusal, advice=f"{advice} {ADVICE_NOT_DIAGNOSIS}")

    def report(self, capture_id: str, *, receipt: bool = False) -> None:
        """Put the result in the outbox; with ``receipt``, the hub confirms it."""
        message, payload = make_id("result", capture_id), b"{}" + capture_id.encode()
        store = self.store

        def put(tx: Any) -> None:
            store.outbox.put(
                tx,
                message_id=message,
                capture_id=capture_id,
                leaf="result",
                priority=Priority.RESULT,
                sha256="0" * 64,
                payload=payload,
            )
            store.captures.reported(tx, capture_id)

        store.journal.write(put)
        if receipt:
            store.journal.write(lambda tx: store.outbox.close(tx, message, "0" * 64, "delivered"))
            store.journal.write(lambda tx: store.captures.delivered_if_complete(tx, capture_id))

    def review(self, capture_id: str, decision: str = "accept", **rest: Any) -> None:
        """The radiologist's word comes back."""
        given = {"reviewer": "Dr. Amina Otieno", "reviewed_at": WALL, **rest}
        message = ReviewMessage(
            id=make_id("review", capture_id, decision), capture_id=capture_id, decision=decision, **given
        )
        self.store.journal.write(lambda tx: self.store.inbox.take(tx, message, "0" * 64, WALL))

    def command(self, capture_id: str, kind: str) -> None:
        """The hub says something about a capture."""
        message = Command(id=make_id("command", capture_id, kind), kind=kind, capture_id=capture_id)
        self.store.journal.write(lambda tx: self.store.inbox.take(tx, message, "0" * 64, WALL))

    def _status(self) -> StatusView:
        return self.status_view

    def _add(self, upload: Upload) -> Kept:
        self.uploads.append(upload)
        media_type = media_type_of(upload.data[:256])
        if not media_type:
            raise IntakeError("this is no DICOM, PNG, JPEG, WAV or FLAC file; choose one of these")
        patient = Patient(id=upload.patient_id, name=upload.patient_name, age_years=upload.age_years)
        modality = upload.modality or Modality.OTHER
        with self.intake.open() as incoming:
            incoming.write(upload.data)
            facts = Facts(modality=modality, media_type=media_type, source="console", patient=patient)
            if upload.held is None:
                return incoming.keep(facts)
            return incoming.keep(msgspec.structs.replace(facts, patient=upload.held.patient), upload.held.attach)

    def _note(self, capture_id: str, agree: bool, _by: str) -> None:
        self.agreements[capture_id] = agree
