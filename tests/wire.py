"""Messages as a box would send them, made from little; for tests of the hub and of the link."""

from __future__ import annotations

import hashlib
from typing import Any

from appliance.protocol import chunks
from appliance.protocol.chunks import Chunk, Kind
from appliance.protocol.messages import CapturePart, FindingPart, ModelPart, Receipt, Result, decode, encode, make_id
from appliance.protocol.topics import Address
from appliance.records import ADVICE_NOT_DIAGNOSIS, Modality, Moment, Patient, Triage, capture_id
from hub.arrivals import Incoming

BOX = Address("site-1", "box-1")
OTHER_BOX = Address("site-1", "box-2")


def result(number: int = 1, *, address: Address = BOX, revision: int = 0, **changes: Any) -> Result:
    """A result of the capture ``number`` of a device; ``changes`` are fields of the message."""
    sha256 = hashlib.sha256(f"{number}".encode()).hexdigest()
    capture = capture_id(address.key, sha256)
    fields: dict[str, Any] = {
        "id": make_id("result", address.key, capture, str(revision)),
        "sequence": number,
        "revision": revision,
        "status": "read",
        "triage": Triage.CRITICAL,
        "advice": ADVICE_NOT_DIAGNOSIS,
        "capture": CapturePart(
            id=capture,
            sha256=sha256,
            size=15_000_000,
            modality=Modality.CHEST_XRAY,
            media_type="application/dicom",
            received=Moment(boot_id="boot", monotonic_ns=number, wall="2026-01-01T08:00:00Z", uncertainty_s=1.0),
            patient=Patient(id=f"P{number}", name="DOE^JANE", age_years=41.0, sex="F"),
        ),
        "findings": [
            FindingPart(
                id="pneumothorax",
                label="Pneumothorax",
                probability=0.91,
                positive=True,
                threshold=0.4,
                confidence="high",
            ),
            FindingPart(id="effusion", label="Pleural effusion", probability=0.12, positive=False, threshold=0.5),
        ],
        "model": ModelPart(
            bundle="chest-xray",
            version="1.0.0",
            sha256="a" * 64,
            engine="onnxruntime",
            provider="CPUExecutionProvider",
            precision="int8",
            golden="passed",
        ),
        "milliseconds": 41.5,
    }
    return Result(**{**fields, **changes})


def incoming(message: Result | Any, address: Address = BOX, leaf: str = "result") -> Incoming:
    """The message as the hub's broker delivers it."""
    return Incoming(f"bedside/v1/{address.key}/up/{leaf}", encode(message))


def pieces(
    data: bytes,
    *,
    size: int = 16_384,
    capture: str = "0" * 32,
    kind: Kind = "original",
    media_type: str = "application/dicom",
    sha256: str = "",
) -> list[Chunk]:
    """``data`` as chunks of ``size`` bytes."""
    digest = sha256 or hashlib.sha256(data).hexdigest()
    return [
        Chunk(
            capture_id=capture,
            kind=kind,
            sha256=digest,
            offset=offset,
            total=len(data),
            media_type=media_type,
            data=data[offset : offset + size],
        )
        for offset in range(0, len(data), size)
    ]


def incoming_chunk(chunk: Chunk, address: Address = BOX) -> Incoming:
    """The chunk as the hub's broker delivers it."""
    header = tuple(chunks.properties(chunk))
    return Incoming(f"bedside/v1/{address.key}/up/blob", chunk.data, header, chunk.media_type)


def answers(published: list[tuple[str, bytes]]) -> dict[str, list[tuple[str, str, int]]]:
    """The receipts by id: (status, sha256, offset) of each item, whichever device they go to."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    for _, payload in published:
        for item in decode(payload, Receipt).items:
            found.setdefault(item.id, []).append((item.status, item.sha256, item.offset))
    return found
