"""What live ultrasound says to a nurse: a word, what to do, how urgent; and what became of a freeze or clip.

What this module keeps true: each state of ``video_scan.Scan`` has its words here, in the catalogue; a reason that has none is
told as a lost picture, never in a technician's English.
"""

from __future__ import annotations

from typing import Literal

from appliance.capture import video_area
from appliance.capture.video_scan import Scan, Waiting
from appliance.console.words import N_, Words
from appliance.records import Reading, Record

Tone = Literal["routine", "urgent", "critical", "not-read", "reading"]
"""The colours and icons of the levels, used again: green, amber, red, grey with a question mark, grey and waiting."""

_OPENING: tuple[str, str, Tone] = (N_("Opening"), N_("The picture comes in a moment."), "reading")
_LOST: tuple[str, str, Tone] = (
    N_("Picture lost"),
    N_("Check the plug and that the machine is on. It is opened again by itself."),
    "critical",
)
_ABSENT: tuple[str, str, Tone] = (
    N_("No probe"),
    N_("Plug the grabber of the probe or machine into this box."),
    "not-read",
)
_UNFOUND: tuple[str, str, Tone] = (
    N_("Source not there"),
    N_("Plug it in and switch it on, or have the configured source changed."),
    "not-read",
)
_REASONS: dict[str, tuple[str, str, Tone]] = {
    video_area.SEARCHING: (
        N_("Looking for the picture"),
        N_("Move the probe a little. Nothing is kept until the picture area is found."),
        "reading",
    ),
    video_area.STILL: (
        N_("Nothing moves"),
        N_("End the machine's freeze and move the probe. Nothing is kept yet."),
        "urgent",
    ),
    video_area.NO_PICTURE: (
        N_("No ultrasound picture"),
        N_("Show the live picture without menus over it. Nothing is kept yet."),
        "urgent",
    ),
    video_area.FILLS: (
        N_("Confirm the picture area"),
        N_("The picture fills the whole screen. If no name stands in it, confirm the area below."),
        "urgent",
    ),
    video_area.COLOURED: (
        N_("Not ultrasound"),
        N_("This looks like a camera. Choose the machine's video output. Nothing is kept."),
        "urgent",
    ),
    video_area.CHANGED: (
        N_("The screen has changed"),
        N_("Close the menu on the machine. Frames are kept again once the live picture is back."),
        "urgent",
    ),
    video_area.DISK: (
        N_("Disk full"),
        N_("Nothing is kept until there is room. Tell who maintains the box."),
        "critical",
    ),
}
_QUALITY: dict[str, tuple[str, str, Tone]] = {
    "good": (N_("Good picture"), N_("Freeze it or record a clip."), "routine"),
    "frozen": (N_("Frozen"), N_("The machine's picture stands still: end its freeze."), "urgent"),
    "no-contact": (N_("No contact"), N_("Put gel on the probe and press it to the skin."), "urgent"),
    "too-dark": (N_("Too dark"), N_("Raise the gain."), "urgent"),
    "too-bright": (N_("Too bright"), N_("Lower the gain."), "urgent"),
}
_ENDED: dict[str, str] = {
    "": "",
    "limit": N_("It ended by itself: it was as long as a clip may be."),
    "source": N_("The picture was lost meanwhile. What came before is here."),
    "disk": N_("The disk was full. What came before is here."),
    "power": N_("The power failed meanwhile. What came before is being kept."),
}


class Said(Record, frozen=True, kw_only=True, omit_defaults=False):
    """The state in words, as the page shows it. ``score``: of the quality meter, ``None`` while there is nothing to judge."""

    serial: int
    tone: Tone
    word: str
    hint: str
    score: int | None
    meter: str
    live: bool
    able: bool
    recording: bool
    elapsed: str
    numbers: str
    device: str
    takes: str
    area: tuple[float, float, float, float] | None
    confirmed: bool
    reading: str


def said(scan: Scan, words: Words, reading: Reading | None = None) -> Said:
    """A state in one language; ``reading``: the preview of the newest picture."""
    word, hint, tone = _state(scan)
    able = scan.phase == "live" and not scan.reason and scan.kept > 0
    clip = next((take for take in scan.takes if take.recording), None)
    judged = scan.phase == "live" and scan.quality is not None
    score = round(100 * scan.quality.score) if judged and scan.quality is not None else None
    return Said(
        serial=scan.serial,
        tone=tone,
        word=words(word),
        hint=words(hint),
        score=score,
        meter=words(N_("Quality {n} of 100"), n=words.number(score)) if score is not None else "",
        live=scan.phase == "live",
        able=able,
        recording=scan.recording,
        elapsed=words(N_("Recording: {time}"), time=words.duration(clip.seconds)) if clip else "",
        numbers=words(
            N_("Kept: {kept} · lost on the way: {lost} · this box was too slow for: {dropped} · not kept: {refused}"),
            kept=words.number(scan.kept),
            lost=words.number(scan.lost),
            dropped=words.number(scan.dropped),
            refused=words.number(scan.refused),
        ),
        device=_device(scan, words),
        takes=" ".join(take.id for take in scan.takes if not take.recording),
        area=scan.area.box if scan.area else None,
        confirmed=scan.area is not None and scan.area.confirmed,
        reading=_reading(reading, words) if able and reading is not None else "",
    )


def take_words(take: Waiting, words: Words) -> tuple[str, str]:
    """What a freeze or clip is called, and why it ended early."""
    name = words(N_("Frozen picture"))
    if take.kind == "clip":
        name = words(N_("Clip of {time}"), time=words.duration(take.seconds)) if take.seconds else words(N_("Clip"))
    why = _ENDED.get(take.ended, "")
    return name, words(why) if why else ""


def _reading(reading: Reading, words: Words) -> str:
    """What the model sees just now: the signs that are there, or that there is none, or why it can't tell."""
    if reading.refusal is not None:
        return reading.refusal.reason
    there = [f"{one.label} {words.percent(one.probability)}" for one in reading.findings if one.positive]
    return ", ".join(there) if there else words(N_("No sign that the model knows"))


def _state(scan: Scan) -> tuple[str, str, Tone]:
    if scan.phase in {"asleep", "opening"}:
        return _OPENING
    if scan.phase == "gone":
        absent = scan.reason.startswith("no video grabber")
        missing = scan.reason.startswith(("the configured video source", "the video stream does not answer"))
        return _ABSENT if absent else _UNFOUND if missing else _LOST
    if scan.reason:
        return _REASONS.get(scan.reason, _LOST)
    return _QUALITY[scan.quality.state if scan.quality else "good"]


def _device(scan: Scan, words: Words) -> str:
    if not scan.device:
        return ""
    columns, rows = scan.size
    rate = words.number(scan.rate, 1)
    return f"{scan.device} · {columns}×{rows} {scan.format} · " + words(N_("{n} pictures a second"), n=rate)
