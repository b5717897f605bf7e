"""The state of live ultrasound as it is shown.

What this module keeps true: it holds numbers and codes, and of a patient nothing; ``serial`` grows with every change.
"""

from __future__ import annotations

from typing import Literal

from typing_extensions import Self

from appliance.capture.video_area import Quality, Region
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


def area_of(region: Region | None) -> Area | None:
    """A region as shares of its screen."""
    if region is None:
        return None
    top, left, bottom, right = region.box
    rows, columns = region.rows, region.columns
    return Area(
        box=(round(top / rows, 4), round(left / columns, 4), round(bottom / rows, 4), round(right / columns, 4)),
        confirmed=region.confirmed,
    )
