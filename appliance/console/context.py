"""What the console is given: the store to read from, and the few things it may ask of the program around it.

What this module keeps true: the console knows no pipeline, no link and no engine; it sees them through these records and
callables, which the daemon fills in. All records are frozen and can be encoded as JSON.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from appliance.capture.stethoscope import Stethoscope
from appliance.capture.video import VideoDoor
from appliance.console.binding import Held
from appliance.reading.requests import Raw
from appliance.records import Modality, Reading, Record
from appliance.store.captures import Kept
from appliance.store.journal import Transaction
from appliance.store.store import Store


class Serving(Record, frozen=True, kw_only=True):
    """A model that answers on this box, and what really runs it (promise 5).

    ``state``: ``ready``; ``building`` while a better engine is built and this one serves; ``unbuilt`` when it waits to be.
    """

    bundle: str
    version: str
    modality: Modality
    engine: str = ""
    provider: str = ""
    golden: str = "not-run"
    state: str = "ready"


class Door(Record, frozen=True, kw_only=True):
    """A way in for captures. ``state``: words for people, e.g. ``listening on 0.0.0.0:11112 as BEDSIDE``."""

    name: str
    state: str
    open: bool = True


class StatusView(Record, frozen=True, kw_only=True):
    """How the box is, as the status bar shows it.

    ``link_since_s``: seconds since the link came up or went down, by the monotonic clock; ``None`` when it was never up.
    ``link_problem``: cause and remedy, empty when there is none. ``waiting_*`` and ``sent_bytes`` (since the journal began)
    count what is for the hub. ``captures``: number in each state, ``set_aside`` and ``conflicts`` beside. ``free_bytes``:
    what is left before new captures are refused. ``clock_uncertainty_s``: ``None`` when no clock source has been trusted
    since the box was switched on. ``on_mains`` and ``battery`` (0 to 1): ``None`` where no sensor says. ``wall``: the
    box's time, RFC 3339 in UTC. ``building``: the engine that is being built now, empty when none is.
    """

    version: str = ""
    link_configured: bool = True
    link_online: bool = False
    link_since_s: float | None = None
    link_problem: str = ""
    waiting_messages: int = 0
    waiting_bytes: int = 0
    sent_bytes: int = 0
    captures: dict[str, int] = {}  # noqa: RUF012 - msgspec copies it
    free_bytes: int = 0
    clock_uncertainty_s: float | None = None
    wall: str = ""
    models: tuple[Serving, ...] = ()
    model_problems: tuple[str, ...] = ()
    building: str = ""
    on_mains: bool | None = None
    battery: float | None = None
    doors: tuple[Door, ...] = ()
    problems: tuple[str, ...] = ()


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a person hands in at the console. ``modality`` is ``None`` when the file shall say it itself.

    ``data`` are the bytes as they came; ``filename`` is only a hint of the kind and is not kept. ``ticket``: what was given
    out when the patient was confirmed; ``held``: the visit that it stands for, ``None`` without a good one.
    """

    filename: str
    data: bytes
    modality: Modality | None = None
    age_years: float | None = None
    sex: str = ""
    patient_id: str = ""
    patient_name: str = ""
    position: str = ""
    ticket: str = ""
    held: Held | None = None


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """All that the console may use.

    ``preview``: capture id to media type and bytes of a picture (or a small sound) to show, ``None`` when there is none.
    ``add``: keep a file, durable on return; raises ``appliance.capture.intake.IntakeError``.
    ``note_agreement``: the health worker (an id) agrees (``True``) or not with the reading of a capture; durable on return.
    ``agreement``: what was noted last, ``None`` when nothing was.
    ``pixels``: capture id to the stored grey values of its picture; ``None`` when there are none, or not now.
    ``report_again``: called in the transaction that says whose a capture is, so that the hub learns it (see ``binding``).
    ``wake``: called after it: there is something to send.
    ``device``: ``site/name``, the issuer of the numbers that this box gives to patients who have none.
    ``ultrasound``: live video, ``None`` where it is not offered. ``stethoscope``: likewise.
    ``live_reading``: what a model says of the newest live picture, a preview that goes nowhere; ``None`` while there is none.
    """

    store: Store
    status: Callable[[], StatusView]
    preview: Callable[[str], tuple[str, bytes] | None]
    add: Callable[[Upload], Kept]
    note_agreement: Callable[[str, bool, str], None]
    agreement: Callable[[str], bool | None] = lambda _: None
    ultrasound: VideoDoor | None = None
    live_reading: Callable[[], Reading | None] = lambda: None
    stethoscope: Stethoscope | None = None
    pixels: Callable[[str], Raw | None] = lambda _: None
    report_again: Callable[[Transaction, str], None] = lambda _tx, _capture_id: None
    wake: Callable[[], None] = lambda: None
    device: str = "site-1/box-1"
