"""The messages, as JSON with a published JSON Schema, and the rules that make delivery provable.

What this module keeps true:

1. Every message that must arrive has an ``id`` that derives from device and content origin, never from time or chance:
   whoever sends it again sends the same id with the same bytes.
2. Its ``sha256`` (hex, of the encoded payload) travels back in the receipt. Only a receipt with the same id *and* hash
   closes a sender's row. The same id with another hash is a ``conflict``: kept aside, alarmed, never overwritten.
3. Decoding is strict: unknown fields are ignored (so that a newer sender can add some), but types, sizes and formats are
   checked before anything is stored; ``MessageError`` names the field.

Receipts need no receipt: losing one makes the sender send again, which the receiver answers again.
"""

from __future__ import annotations

import hashlib
import inspect
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from appliance.records import Code, Modality, Moment, Patient, Triage

Id = Annotated[str, Meta(pattern=r"^[a-z]+:[0-9a-f]{32}(:[0-9]{1,6})?$", description="kind, colon, 32 hex digits")]
CaptureId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Short = Annotated[str, Meta(max_length=128)]
Text = Annotated[str, Meta(max_length=4000)]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Size = Annotated[int, Meta(ge=0, le=1 << 40)]

MAXIMUM_JSON = 256 * 1024
"""A JSON message larger than this (bytes) is refused unread."""


class MessageError(ValueError):
    """The payload is not a message of this protocol; the text names the field and what was expected."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the messages and their parts: defaults are left out, for a link that is paid by the byte."""


class FindingPart(_Message, frozen=True, kw_only=True):
    """One finding of a result."""

    id: Short
    label: Short
    probability: Probability
    positive: bool
    threshold: Probability
    code: Code | None = None
    confidence: Literal["low", "moderate", "high"] = "moderate"
    experimental: bool = False


class MeasurePart(_Message, frozen=True, kw_only=True):
    """One measured quantity of a result; ``unit`` is UCUM."""

    id: Short
    label: Short
    value: float
    unit: Short = ""


class ModelPart(_Message, frozen=True, kw_only=True):
    """Which bundle answered and what really ran it (promise 5)."""

    bundle: Short
    version: Short
    sha256: Sha256
    engine: Short
    provider: Short
    device: Short = ""
    precision: Short = ""
    golden: Literal["passed", "not-run"] = "not-run"


class CapturePart(_Message, frozen=True, kw_only=True):
    """What was captured. ``sha256`` and ``size`` are those of the original as it was received at the bedside."""

    id: CaptureId
    sha256: Sha256
    size: Size
    modality: Modality
    media_type: Short
    received: Moment
    patient: Patient = Patient()
    study_uid: Short = ""
    series_uid: Short = ""
    instance_uid: Short = ""
    sop_class_uid: Short = ""
    study_date: Short = ""
    body_part: Short = ""
    view: Short = ""
    accession_number: Short = ""
    description: Short = ""
    encounter_id: Short = ""
    position: Short = ""


class OverlayPart(_Message, frozen=True, kw_only=True):
    """The activation map of one finding: row-major 8-bit, base64 in JSON, stretched over ``box`` of the picture.

    ``box``: top, left, bottom, right as shares of the picture's height and width.
    """

    finding: Short
    rows: Annotated[int, Meta(ge=1, le=64)]
    columns: Annotated[int, Meta(ge=1, le=64)]
    data: Annotated[bytes, Meta(max_length=4096)]
    box: tuple[Probability, Probability, Probability, Probability] = (0.0, 0.0, 1.0, 1.0)


class Result(_Message, frozen=True, kw_only=True, tag_field="schema", tag="bedside/result/1"):
    """A reading, or the reason why there is none, with the capture it is of. ``up/result``."""

    id: Id
    sequence: int
    capture: CapturePart
    status: Literal["read", "not_read"]
    triage: Triage
    advice: Text
    findings: Annotated[list[FindingPart], Meta(max_length=64)] = []
    refusal_code: Short = ""
    reason: Text = ""
    measures: Annotated[list[MeasurePart], Meta(max_length=64)] = []
    warnings: Annotated[list[Text], Meta(max_length=32)] = []
    model: ModelPart | None = None
    overlay: OverlayPart | None = None
    milliseconds: float = 0.0
    revision: int = 0


class ReceiptItem(_Message, frozen=True, kw_only=True):
    """One confirmation. For a transfer ``id`` is ``blob:…`` and ``offset`` counts the bytes that are durable from the start."""

    id: Id
    sha256: Sha256
    status: Literal["stored", "partial", "conflict", "refused"]
    offset: Size = 0
    reason: Text = ""


class Receipt(_Message, frozen=True, kw_only=True, tag_field="schema", tag="bedside/receipt/1"):
    """Sent after the receiver's own commit: ``down/receipt`` from the hub, ``up/receipt`` from the device.

    ``time`` is the sender's wall clock (RFC 3339, UTC) with ``uncertainty_s``: a time source for boxes without any.
    """

    items: Annotated[list[ReceiptItem], Meta(max_length=1000)]
    time: Short = ""
    uncertainty_s: float | None = None
    sender: Short = ""


class ReviewMessage(_Message, frozen=True, kw_only=True, tag_field="schema", tag="bedside/review/1"):
    """The radiologist's word on a capture. ``down/review``."""

    id: Id
    capture_id: CaptureId
    decision: Literal["accept", "modify", "reject"]
    reviewer: Short
    reviewed_at: Short
    note: Text = ""
    findings: Annotated[dict[str, bool], Meta(max_length=64)] = {}
    triage: Triage | None = None


class Command(_Message, frozen=True, kw_only=True, tag_field="schema", tag="bedside/command/1"):
    """Something the hub asks of the device. ``down/command``.

    ``acknowledged``: a human has taken note of the capture (stops escalation). ``escalate``: show the capture again,
    loudly. ``status``: publish status now. ``resend``: the hub lost what it had confirmed (restored from a backup): send
    the capture's result and blobs again.
    """

    id: Id
    kind: Literal["acknowledged", "escalate", "status", "resend"]
    capture_id: CaptureId | None = None
    issued_at: Short = ""


class Status(_Message, frozen=True, kw_only=True, tag_field="schema", tag="bedside/status/1"):
    """Retained state of a device; the last will says ``online: false``. ``up/status``."""

    online: bool
    version: Short = ""
    boot_id: Short = ""
    bundles: dict[str, str] = {}
    waiting_messages: int = 0
    waiting_bytes: int = 0
    captures: int = 0
    free_bytes: int = 0
    clock_uncertainty_s: float | None = None
    problems: list[Text] = []


class Telemetry(_Message, frozen=True, kw_only=True, tag_field="schema", tag="bedside/telemetry/1"):
    """Numbers about the box, expiring: never clinical. ``up/telemetry``."""

    values: dict[str, float]


class Renewal(_Message, frozen=True, kw_only=True, tag_field="schema", tag="bedside/renewal/1"):
    """A box asks for a new certificate, before its own ends. ``up/renewal``; signed like everything of an enrolled box.

    ``signing_request``: PKCS #10, PEM, for a new key.
    """

    id: Id
    signing_request: Annotated[str, Meta(max_length=8192)]


class Certificate(_Message, frozen=True, kw_only=True, tag_field="schema", tag="bedside/certificate/1"):
    """The answer to a renewal: certificates (PEM), the keys (Ed25519) that the hub signs with. ``down/certificate``."""

    id: Id
    certificate: Annotated[str, Meta(max_length=8192)]
    authority: Annotated[str, Meta(max_length=8192)]
    hub_keys: Annotated[list[Annotated[bytes, Meta(max_length=32)]], Meta(min_length=1, max_length=16)]
    broker: Annotated[str, Meta(max_length=300)] = ""
    parcel_key: Annotated[str, Meta(max_length=200)] = ""


class Checkpoint(_Message, frozen=True, kw_only=True, tag_field="schema", tag="bedside/checkpoint/1"):
    """Where a box's audit log stands: ``sequence`` entries, and the chain's value after the last. ``up/checkpoint``.

    What the log said up to there can't be changed any more without the hub knowing (``docs/identity.md``).
    """

    id: Id
    sequence: Annotated[int, Meta(ge=1, le=1 << 53)]
    chain: Sha256
    previous: Annotated[int, Meta(ge=0, le=1 << 53, description="sequence of the checkpoint before, 0 for the first")]
    wall: Short = ""


Message = Result | Receipt | ReviewMessage | Command | Status | Telemetry | Renewal | Certificate | Checkpoint
MESSAGES: tuple[type[Message], ...] = (
    *(Result, Receipt, ReviewMessage, Command, Status, Telemetry),
    *(Renewal, Certificate, Checkpoint),
)

_ENCODER = msgspec.json.Encoder()
_T = TypeVar("_T", bound=Message)


def encode(message: Message) -> bytes:
    """The payload of a message: compact UTF-8 JSON, fields in the order of the schema, defaults left out."""
    return _ENCODER.encode(message)


def decode(payload: bytes | bytearray | memoryview, kind: type[_T]) -> _T:
    """Decode and check a payload; raises ``MessageError`` naming the field. Never more than ``MAXIMUM_JSON`` bytes."""
    if len(payload) > MAXIMUM_JSON:
        raise MessageError(f"payload of {len(payload)} bytes is larger than {MAXIMUM_JSON}")
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a {kind.__struct_config__.tag} message: {error}") from error


def sha256(payload: bytes | bytearray | memoryview) -> str:
    """Hex SHA-256 of an encoded payload, as receipts carry it."""
    return hashlib.sha256(payload).hexdigest()


Kind = Literal["result", "blob", "review", "command", "renewal", "checkpoint"]


def make_id(kind: Kind, *origin: str) -> str:
    """A deterministic id: ``kind`` and 32 hex digits of SHA-256 over ``origin`` (device, capture, revision …)."""
    return f"{kind}:{hashlib.sha256(chr(0).join((kind, *origin)).encode()).hexdigest()[:32]}"


def json_schemas() -> dict[str, dict[str, Any]]:
    """Name → JSON Schema (2020-12) of every message, as published under ``docs/schema``."""
    return {kind.__name__.removesuffix("Message").lower(): _schema(kind) for kind in MESSAGES}


def _schema(kind: type[Message]) -> dict[str, Any]:
    schema = _tidy(msgspec.json.schema(kind))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _tidy(part: Any) -> Any:
    """Descriptions without the indentation of the source, which Python keeps before 3.13 and drops from then on."""
    if isinstance(part, dict):
        return {
            key: inspect.cleandoc(value) if key == "description" and isinstance(value, str) else _tidy(value)
            for key, value in part.items()
        }
    return [_tidy(one) for one in part] if isinstance(part, list) else part
