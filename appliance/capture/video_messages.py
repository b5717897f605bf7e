"""What goes between the daemon and the process that decodes video, encoded by msgspec.

What this module keeps true: no message holds a frame of which the region is not known, but for the reduced look at the
screen that a person needs to find out why; no message holds the box's key.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

import msgspec

from appliance.capture.video_area import Quality, Region

READY, HEARD, PICTURE, GONE = "ready", "heard", "picture", "gone"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is started with. ``folder`` and ``key``: the session's part of the ring; ``regions`` by source id."""

    source: str
    folder: str
    key: bytes
    keep_s: float
    most: int
    rate_limit: float
    fixed: tuple[float, float, float, float] | None = None
    regions: dict[str, Region] = {}


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon wants now; each replaces the one before.

    ``pins``: spans (from, to; 0 open) of CLOCK_MONOTONIC ns that must stay; ``look``: width of the picture that a viewer
    waits for, 0 for none; ``raw``: that picture's pixels are wanted as well, for a live reading; ``search``: count of the
    times that a person asked to look for the area anew; ``region``: a person's area; ``spool``: false while the disk is full.
    """

    pins: tuple[tuple[int, int], ...] = ()
    look: int = 0
    raw: bool = False
    search: int = 0
    region: Region | None = None
    spool: bool = True


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=READY):
    """The source is open."""

    id: str
    name: str
    width: int
    height: int
    rate: float
    format: str
    lossy: bool
    method: str


class Heard(msgspec.Struct, frozen=True, kw_only=True, tag=HEARD):
    """Where the process stands, several times a second.

    ``kept``: frames in the ring since the start; ``lost``: frames that the source should have given and did not;
    ``dropped``: frames that this box was too slow for; ``refused``: frames not kept because their region is not known, or
    the screen had changed; ``reason``: why, one of ``video_area.REASONS``, empty while frames are kept.
    """

    number: int
    t_ns: int
    kept: int
    lost: int
    dropped: int
    refused: int
    rate: float
    quality: Quality
    reason: str = ""
    region: Region | None = None
    durable: bool = True


class Picture(msgspec.Struct, frozen=True, kw_only=True, tag=PICTURE):
    """A reduced picture for the screen. ``whole``: it shows all of the screen, because the region is not known."""

    number: int
    t_ns: int
    jpeg: bytes
    whole: bool
    rows: int = 0
    columns: int = 0
    pixels: bytes = b""


class Gone(msgspec.Struct, frozen=True, kw_only=True, tag=GONE):
    """The process ends, because its source did."""

    reason: str


Message = Ready | Heard | Picture | Gone


def send(link: Connection, message: Message | Order | Settings) -> None:
    """Send a message; raises ``OSError`` when the other end is gone."""
    link.send_bytes(msgspec.msgpack.encode(message))
