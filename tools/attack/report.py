"""What an attacker tried and what it got."""

from __future__ import annotations

from typing import NamedTuple

from tools.attack.world import PLANTED


class Try(NamedTuple):
    """One attempt; ``got`` is empty when it was nothing."""

    who: str
    what: str
    got: str = ""


def planted(data: bytes | str) -> str:
    """What of the planted patient is in ``data``, in any of the ways that programs write text; empty when nothing is."""
    raw = data.encode() if isinstance(data, str) else data
    folded = raw.lower()
    for text in (*PLANTED, *PLANTED[0].split(), PLANTED[0].replace(" ", "^")):
        for way in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le"):
            if text.lower().encode(way) in folded:
                return f"{text!r} in {way}"
    return ""
