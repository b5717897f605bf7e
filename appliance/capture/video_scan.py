"""The state of live ultrasound as it is shown.

What this module keeps true: it holds numbers and codes, and of a patient nothing; ``serial`` grows with every change.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

import msgspec
from typing_extensions import Self

from appliance.capture.video_area import Quality, Region
from appliance.capture.video_messages import Heard, Ready
from appliance.capture.video_takes import Take
from appliance.records import Record

Phase = Literal["asleep", "opening", "live", "gone"]


class NotNow(Exception):  # noqa: N818 - the condition's name
    """It can't be done in the present state; the message says why and what to do."""


class Waiting(Record, frozen=True, kw_only=True, omit_defaults=False):
    """A freeze or clip that is recorded or waits for a decision. ``seconds``: how long it is (by now)."""

    id: str
    kind: Literal["still", "clip"]
    seconds: float
    ended: str
    recording: bool
    encounter_id: str

    @classmethod
    def of(cls, take: Take, now_ns: int) -> Self:
        """As it is shown at ``now_ns`` (CLOCK_MONOTONIC)."""
        until = take.to_ns or now_ns
        return cls(
            id=take.id,
            kind=take.kind,
            seconds=round(max(0.0, (until - take.from_ns) / 1e9), 1) if until < 2**61 else 0.0,
            ended=take.ended,
            recording=not take.to_ns,
            encounter_id=take.whose.encounter_id,
        )


class Area(Record, frozen=True, kw_only=True, omit_defaults=False):
    """Where the picture lies on the screen, as shares (top, left, bottom, right), and whether a person confirmed it."""

    box: tuple[float, float, float, float]
    confirmed: bool


class Scan(Record, frozen=True, kw_only=True, omit_defaults=False):
    """Live ultrasound now.

    ``phase``: ``asleep`` (nobody looks), ``opening``, ``live``, ``gone`` (with ``reason``, tried again by itself). While
    live, ``reason`` says why frames are not kept. ``kept``, ``lost``, ``dropped``, ``refused``: see
    ``video_messages.Heard``; ``opened`` and ``crashes`` count runs of the decoder since the box started.
    """

    serial: int = 0
    phase: Phase = "asleep"
    reason: str = ""
    device: str = ""
    size: tuple[int, int] = (0, 0)
    format: str = ""
    rate: float = 0.0
    kept: int = 0
    lost: int = 0
    dropped: int = 0
    refused: int = 0
    opened: int = 0
    crashes: int = 0
    quality: Quality | None = None
    area: Area | None = None
    recording: bool = False
    takes: tuple[Waiting, ...] = ()


def scan_of(before: Scan, ready: Ready | None, heard: Heard | None, takes: Iterable[Take]) -> Scan:
    """The next state after ``before``, of which phase, reason and counts of runs are taken."""
    now_ns = time.monotonic_ns()
    ordered = sorted(takes, key=lambda take: take.taken.monotonic_ns)
    return msgspec.structs.replace(
        before,
        serial=before.serial + 1,
        reason=heard.reason if heard else before.reason,
        device=ready.name if ready else "",
        size=(ready.width, ready.height) if ready else (0, 0),
        format=ready.format if ready else "",
        rate=heard.rate if heard else 0.0,
        kept=heard.kept if heard else 0,
        lost=heard.lost if heard else 0,
        dropped=heard.dropped if heard else 0,
        refused=heard.refused if heard else 0,
        quality=heard.quality if heard and not heard.reason else None,
        area=_area_of(heard.region if heard else None),
        recording=any(not take.to_ns for take in ordered),
        takes=tuple(Waiting.of(take, now_ns) for take in ordered),
    )


def _area_of(region: Region | None) -> Area | None:
    """A region as shares of its screen."""
    if region is None:
        return None
    top, left, bottom, right = region.box
    rows, columns = region.rows, region.columns
    return Area(
        box=(round(top / rows, 4), round(left / columns, 4), round(bottom / rows, 4), round(right / columns, 4)),
        confirmed=region.confirmed,
    )
