"""Numbers about the box itself: temperature, memory, disk, load; for the hub's fleet page, the console and the doctor.

What this module keeps true: numbers only, nothing about a person, a file or a place; what a box has no sensor for is left
out, never guessed as zero. Everything is read from ``/proc`` and ``/sys`` (proc(5); the kernel's thermal/sysfs-api) and
costs about a millisecond.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from appliance.protocol.messages import Telemetry

_KIB = 1024


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The box now. Bytes, seconds, degrees Celsius; ``None`` where there is no sensor."""

    temperature_c: float | None
    memory_total: int | None
    memory_available: int | None
    resident: int | None
    load: float | None
    uptime_s: float | None
    disk_total: int | None
    disk_free: int | None


def measure(folder: Path, root: Path = Path("/")) -> Machine:
    """Look at the box; ``folder`` names the disk, ``root`` is where ``proc`` and ``sys`` lie."""
    memory = _fields(root / "proc/meminfo")
    resident = _fields(root / "proc/self/status").get("VmRSS")
    disk = _disk(folder)
    return Machine(
        temperature_c=hottest(root),
        memory_total=memory.get("MemTotal"),
        memory_available=memory.get("MemAvailable"),
        resident=resident,
        load=_first_number(root / "proc/loadavg"),
        uptime_s=_first_number(root / "proc/uptime"),
        disk_total=disk[0] if disk else None,
        disk_free=disk[1] if disk else None,
    )


def message(machine: Machine, counts: Mapping[str, float]) -> Telemetry:
    """The telemetry message: the machine's numbers that are known, and ``counts`` (names as in the metrics page)."""
    known = {name: value for name, value in msgspec.structs.asdict(machine).items() if value is not None}
    return Telemetry(values={name: round(float(value), 3) for name, value in {**known, **counts}.items()})


def hottest(root: Path = Path("/")) -> float | None:
    """The highest temperature of any thermal zone in °C, ``None`` without a sensor.

    Zones that fail to answer are passed over, and so are readings that no box survives: a Jetson's unused zones report
    −256 °C.
    """
    found = []
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        try:
            celsius = int(path.read_text()) / 1000
        except (OSError, ValueError):
            continue
        if -40 < celsius < 150:
            found.append(celsius)
    return max(found, default=None)


def _fields(path: Path) -> dict[str, int]:
    """``Name:  number kB`` lines, in bytes."""
    found: dict[str, int] = {}
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[name] = int(words[0]) * _KIB
    return found


def _first_number(path: Path) -> float | None:
    try:
        return float(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _disk(folder: Path) -> tuple[int, int] | None:
    try:
        stat = os.statvfs(folder)
    except OSError:
        return None
    return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
