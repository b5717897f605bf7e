"""Where the box's power comes from, as the kernel says (its ABI, ``sysfs-class-power``).

What this module keeps true: what the box has no sensor for is ``None``, never guessed; the battery of a mouse or a stethoscope
(scope ``Device``) is not the box's.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """``on_mains``: whether a supply is plugged in; ``battery``: its charge, 0 to 1. ``None`` where nothing says so."""

    on_mains: bool | None = None
    battery: float | None = None


def power(root: Path = Path("/")) -> Power:
    """Look; ``root`` is where ``sys`` lies. Costs well below a millisecond."""
    mains: list[bool] = []
    charge: list[float] = []
    draining = False
    try:
        supplies = sorted((root / "sys/class/power_supply").iterdir())
    except OSError:
        return Power()
    for supply in supplies:
        if _read(supply / "scope") == "Device":
            continue
        kind = _read(supply / "type")
        if kind in {"Mains", "USB", "Wireless"} and _read(supply / "online") in {"0", "1"}:
            mains.append(_read(supply / "online") == "1")
        elif kind in {"Battery", "UPS"}:
            draining = draining or _read(supply / "status") == "Discharging"
            capacity = _read(supply / "capacity")
            if capacity.isdecimal():
                charge.append(min(int(capacity), 100) / 100)
    on_mains = any(mains) if mains else False if draining else None
    return Power(on_mains=on_mains, battery=min(charge) if charge else None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
