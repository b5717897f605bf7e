"""What a point of ``bedside doctor`` is."""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One point: ``ok`` is ``None`` where it can't be said or is not in use. ``remedy`` says what to do, for a technician."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


def well(name: str, found: str) -> Check:
    """All is well."""
    return Check(name=name, ok=True, found=found)


def wrong(name: str, found: str, remedy: str) -> Check:
    """Something must be done."""
    return Check(name=name, ok=False, found=found, remedy=remedy)


def unsure(name: str, found: str, remedy: str = "") -> Check:
    """Not in use, or only a human can say whether it should be so."""
    return Check(name=name, ok=None, found=found, remedy=remedy)
