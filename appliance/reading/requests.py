"""What is asked of the reading process and what it answers: plain records, light enough for every process to import.

What this module keeps true: nothing here imports an engine, a decoder or numpy, so the process that keeps captures needs none
of them.
"""

from __future__ import annotations

import msgspec

from appliance.inference.trust import TrustSettings
from appliance.records import Capture, Engine, Modality, Reading


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a capture besides its bytes; each goes before what the file says."""

    capture_id: str = ""
    name: str = ""
    modality: Modality | None = None
    age_years: float | None = None
    sex: str = ""
    body_part: str = ""
    view: str = ""


def known_of(capture: Capture) -> Known:
    """What the journal knows of a capture."""
    modality = None if capture.modality is Modality.OTHER else capture.modality
    return Known(capture_id=capture.id, modality=modality, age_years=capture.patient.age_years)


class LiveFrame(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A picture of a running video: ``rows × columns`` bytes of grey, or ``rows × columns × 3`` of RGB, row by row."""

    rows: int
    columns: int
    channels: int
    pixels: bytes


class LiveSound(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The newest samples of a recording that goes on: float32, little-endian, one channel, full scale ±1.

    ``session`` names the recording, ``first`` is the number of the first sample sent here, counted from the recording's
    beginning; ``whole``: whoever sends has none from before.
    """

    session: str
    rate_hz: float
    first: int
    samples: bytes
    whole: bool


class LiveAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The reading of what is live now.

    ``have``: samples of the recording that this process has got. ``reading`` is ``None`` when some before those sent are
    missing here (the process was started anew): all are to be sent again.
    """

    reading: Reading | None
    have: int = 0


class ReadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is started with.

    ``vault``: folder of encrypted blobs; ``key``: folder of the box key. ``warm``: modalities whose engines are made ready
    before the first request (all when empty). ``trust``: who may vouch for bundles; ``None``: none need to.
    """

    models: str
    cache: str
    installed: str = ""
    engine: str = "auto"
    vault: str = ""
    key: str = ""
    trust: TrustSettings | None = None
    warm: tuple[Modality, ...] = ()


class ReadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One capture to read: a plain file (``path``) or a blob of the vault (``sha256``), and what is known of it.

    With ``preview`` the answer is the small picture of the capture in place of a reading; asked for right after the
    reading of the same capture, nothing is decoded again. With ``ahead`` it is only decoded and prepared, for a
    request that follows, and the answer is empty. With ``pixels`` the answer is ``Raw``, of ``frame``. With
    ``describe`` the answer is ``Described``. With ``live`` it is a ``LiveAnswer``.
    """

    known: Known = Known()
    path: str = ""
    sha256: str = ""
    preview: bool = False
    pixels: bool = False
    frame: int | None = None
    describe: bool = False
    ahead: bool = False
    live: LiveFrame | LiveSound | None = None


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """An encoded small picture; of a sound also what it sounds like (``sound``: OGG with Opus)."""

    media_type: str
    data: bytes
    sound: bytes = b""


class Raw(msgspec.Struct, frozen=True, kw_only=True):
    """Grey values, row by row, unsigned 16-bit little-endian; ``offset`` is to be added for the stored value.

    ``low`` to ``high``: the values that the sender's window (or else all there is) spreads from black to white; ``invert``:
    the other way round (MONOCHROME1). ``rows`` is 0 where there is nothing to window.
    """

    rows: int = 0
    columns: int = 0
    offset: int = 0
    low: float = 0.0
    high: float = 1.0
    invert: bool = False
    data: bytes = b""


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that serves in this process, and what really runs it.

    ``state``: ``ready``, ``building`` (a better engine's plan is being built) or ``unbuilt`` (it waits to be built).
    """

    bundle: str
    version: str
    modality: Modality
    engine: Engine
    state: str


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What serves in this process, and what does not and why. ``building``: the plan that is built now, in words."""

    serving: tuple[Serving, ...]
    problems: tuple[str, ...]
    building: str = ""
