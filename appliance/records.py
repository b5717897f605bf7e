"""The words of the domain: patient, capture, finding, reading, review.

What this module keeps true: every record is frozen, typed and free of I/O; a record that crosses a process or the wire
is one of these (or a message of ``appliance.protocol`` made of these), encoded by msgspec. Times are RFC 3339 strings in
UTC *with* their uncertainty, never bare floats; order is never taken from them (see ``Moment``).
"""

from __future__ import annotations

import enum
import hashlib
from typing import Literal

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all records: immutable, compared by value, keyword-only."""


class Modality(str, enum.Enum):
    """What a capture is of. The value is also the id by which a bundle names what it reads."""

    CHEST_XRAY = "chest-xray"
    LUNG_ULTRASOUND = "lung-ultrasound"
    HEART_SOUND = "heart-sound"
    LUNG_SOUND = "lung-sound"
    OTHER = "other"


class Triage(str, enum.Enum):
    """How soon a human should look, in the order of waiting: critical first."""

    CRITICAL = "critical"
    URGENT = "urgent"
    ROUTINE = "routine"

    @property
    def rank(self) -> int:
        """0 for the most urgent."""
        return ("critical", "urgent", "routine").index(self.value)


class CaptureState(str, enum.Enum):
    """The states of promise 2, in order."""

    KEPT = "kept"
    CHECKED = "checked"
    READ = "read"
    REPORTED = "reported"
    DELIVERED = "delivered"


class Moment(Record, frozen=True, kw_only=True):
    """When something happened, honestly (promise 7).

    ``boot_id`` and ``monotonic_ns`` give order on one box together with the journal's sequence; ``wall`` is for people
    and is only as good as ``uncertainty_s`` says (``None``: no clock source has been trusted since boot).
    """

    boot_id: str
    monotonic_ns: int
    wall: str
    uncertainty_s: float | None = None


class Patient(Record, frozen=True, kw_only=True):
    """Whom a capture is of, as far as the sender said. Every field may be empty: a capture without a name is still kept.

    ``age_until``: set when only a range of ages is known, from ``age_years`` up to this (years).
    """

    id: str = ""
    issuer: str = ""
    name: str = ""
    birth_date: str = ""
    sex: Literal["", "M", "F", "O"] = ""
    age_years: float | None = None
    age_until: float | None = None


class Code(Record, frozen=True, kw_only=True):
    """A coded concept: scheme (``SCT``, ``DCM``, ``RADLEX``, ``99BEDSIDE``), value, meaning."""

    scheme: str
    value: str
    meaning: str


class Capture(Record, frozen=True, kw_only=True):
    """One thing taken at the bedside and kept: a DICOM instance, a clip, a recording, a picture file.

    ``id`` derives from the device and the content's SHA-256 (``capture_id``), so that the same bytes are the same
    capture, however often they arrive. ``sha256`` and ``size`` (bytes) are those of the original file as received.
    """

    id: str
    sha256: str
    size: int
    modality: Modality
    media_type: str
    source: str
    patient: Patient
    received: Moment
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""
    sop_class_uid: str = ""
    transfer_syntax_uid: str = ""
    study_date: str = ""
    body_part: str = ""
    view: str = ""
    accession_number: str = ""
    description: str = ""
    encounter_id: str = ""
    position: str = ""


class Finding(Record, frozen=True, kw_only=True):
    """One answer of a bundle. ``probability`` is calibrated, 0 to 1; ``positive`` is at ``threshold``, the operating point."""

    id: str
    label: str
    code: Code
    probability: float
    positive: bool
    threshold: float
    sensitivity: float | None = None
    specificity: float | None = None
    experimental: bool = False
    confidence: Literal["low", "moderate", "high"] = "moderate"


class Refusal(Record, frozen=True, kw_only=True):
    """Why there is no answer, and what to do about it (promise 6). ``code`` is stable, e.g. ``not-chest``, ``too-dark``."""

    code: str
    reason: str
    advice: str


class Engine(Record, frozen=True, kw_only=True):
    """What really ran: promise 5. ``provider`` is read back from the session, never taken from the configuration."""

    engine: str
    provider: str
    device: str
    precision: str
    golden: Literal["passed", "not-run"] = "not-run"
    artefact: str = ""


class Measure(Record, frozen=True, kw_only=True):
    """A quantity found beside the findings: heart rate, signal quality index, contrast. ``unit`` is UCUM."""

    id: str
    label: str
    value: float
    unit: str


class Reading(Record, frozen=True, kw_only=True):
    """What the box says of one capture. Advice for a human, never a diagnosis.

    ``overlay`` is the activation map of the positive or strongest finding, row-major 8-bit, ``overlay_shape`` (rows,
    columns), stretched over ``overlay_box`` of the picture (top, left, bottom, right as shares of its height and width);
    empty when there is none. ``overlay_frame`` is the frame of a cine, 0 first, that it belongs to.
    """

    capture_id: str
    modality: Modality
    status: Literal["read", "not_read"]
    triage: Triage
    advice: str
    findings: tuple[Finding, ...] = ()
    refusal: Refusal | None = None
    measures: tuple[Measure, ...] = ()
    warnings: tuple[str, ...] = ()
    bundle: str = ""
    bundle_version: str = ""
    bundle_sha256: str = ""
    engine: Engine | None = None
    milliseconds: float = 0.0
    overlay: bytes = b""
    overlay_shape: tuple[int, int] = (0, 0)
    overlay_finding: str = ""
    overlay_box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    overlay_frame: int = 0


class Review(Record, frozen=True, kw_only=True):
    """The human's word on a capture. ``id`` derives from its content, so a repeated delivery is the same review."""

    id: str
    capture_id: str
    decision: Literal["accept", "modify", "reject"]
    note: str
    reviewer: str
    reviewed_at: str
    findings: dict[str, bool] = {}
    triage: Triage | None = None


def capture_id(device: str, sha256: str) -> str:
    """The id of a capture: 32 hexadecimal digits of SHA-256 over the device's name and the content's SHA-256 (hex)."""
    return hashlib.sha256(f"capture\0{device}\0{sha256}".encode()).hexdigest()[:32]


ADVICE_NOT_DIAGNOSIS = "Advice for a health worker, not a diagnosis."
