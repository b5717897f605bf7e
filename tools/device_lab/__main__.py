"""Runs the laboratory: ``python -m tools.device_lab [SCENARIO…] [--cuts N] [--seed S] [--json FILE]``.

Scenarios: ``video``, ``sound``, ``power``, ``disk``, ``watchdog``; all of them without any. Ends with 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.device_lab.machine import CACHE, LabError, Machine, Said

Judged = dict[str, Any]


def main() -> int:
    """Run what is asked for and print what each showed."""
    parser = argparse.ArgumentParser(prog="python -m tools.device_lab", description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], help="all of them without any")
    parser.add_argument("--cuts", type=int, default=3, help="power cuts of the scenario power")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    results: dict[str, Judged] = {}
    for name in asked.scenarios or SCENARIOS:
        began = time.monotonic()
        try:
            result = SCENARIOS[name](asked)
        except LabError as error:
            result = {"ok": False, "why": str(error)}
        result["seconds"] = round(time.monotonic() - began)
        results[name] = result
        details = ", ".join(f"{key} {value}" for key, value in result.items() if key not in ("ok", "seconds"))
        print(f"{'ok    ' if result['ok'] else 'FAILED'} {name} ({result['seconds']} s): {details}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(result["ok"] for result in results.values()) else 1


def heard(scenario: str, limit_s: float, *, disk: Path | None = None) -> dict[str, dict[str, Any]]:
    """Everything a scenario says, by its words; raises ``LabError`` with the end of its log if it failed."""
    machine = Machine(scenario, disk=disk)
    with machine:
        said = {one.word: one.values for one in machine.says(limit_s)}
    if "failed" in said:
        raise LabError(f"{said['failed']['error']}\n" + "\n".join(machine.log[-25:]))
    return said


def video(_: argparse.Namespace) -> Judged:
    """Unplugged in the middle of a clip: the clip is kept, the picture comes back by itself."""
    said = heard("video", 600)
    live, pulled, plugged, kept = (said.get(word, {}) for word in ("live", "pulled", "plugged", "kept"))
    ok = bool(live.get("ok") and pulled.get("gone") and plugged.get("live") and kept.get("monotonic"))
    return {"ok": ok and kept["frames"] > 5, "size": live.get("size"), "frames kept": kept.get("frames")}


def sound(_: argparse.Namespace) -> Judged:
    """A tone is heard, pulled out, plugged in, heard again."""
    said = heard("sound", 600)
    first, pulled, again = said["first"], said["pulled"], said["again"]
    right = all(abs(one["hz"] - 440) < 3 for one in (first, pulled, again))
    noticed = pulled["trouble"] == "gone" and pulled["seconds"] >= 2
    figures = {"Hz": round(first["hz"], 1), "kept before the plug was pulled (s)": round(pulled["seconds"], 1)}
    return {"ok": right and noticed and not again["trouble"], **figures, "said": pulled["trouble"]}


def power(asked: argparse.Namespace) -> Judged:
    """Power is cut while captures are kept; after each cut everything that was said to be kept is there and whole."""
    chance = random.Random(asked.seed)
    disk = fresh_disk()
    said_kept: list[str] = []
    result = {"ok": True, "cuts": 0, "kept": 0, "lost": 0, "damaged": 0}
    for _ in range(asked.cuts):
        machine = Machine("keep", disk=disk)
        stop_after = chance.randint(5, 60)
        with machine:
            count = 0
            for one in machine.says(400):
                if one.word == "failed":
                    raise LabError(f"{one.values['error']}\n" + "\n".join(machine.log[-25:]))
                if one.word == "kept":
                    said_kept.append(one.values["capture"])
                    count += 1
                    if count >= stop_after:
                        time.sleep(chance.random() * 0.3)
                        machine.cut_power()
                        break
            # What was on its way through the pipe was said before the cut, too.
            said_kept += [one.values["capture"] for one in rest(machine) if one.word == "kept"]
        found = heard("look", 300, disk=disk)["found"]
        lost = set(said_kept) - set(found["captures"])
        result["cuts"] += 1
        result["kept"] = len(said_kept)
        result["lost"] += len(lost)
        result["damaged"] += found["damaged"] + found["missing"]
        result["ok"] = bool(result["ok"] and not lost and not result["damaged"] and found["audit"])
    return result


def rest(machine: Machine) -> list[Said]:
    """What was said and not read yet."""
    try:
        return list(machine.says(20))
    except (LabError, ValueError):  # half a line
        return []


def disk(_: argparse.Namespace) -> Judged:
    """Writes fail for a while: refused with a reason, and what was kept before and after stays."""
    said = heard("disk", 400, disk=fresh_disk())["disk"]
    ok = not said["lost"] and not said["other"] and said["kept"] >= 6 and said["refused"] >= 1
    return {"ok": ok, **said}


def watchdog(_: argparse.Namespace) -> Judged:
    """A daemon that hangs ends in a restart of the box."""
    machine = Machine("watchdog")
    with machine:
        said = {one.word: one.values for one in machine.says(500)}
    if "failed" in said:
        raise LabError(f"{said['failed']['error']}\n" + "\n".join(machine.log[-25:]))
    return {"ok": "hung" in said and "alive" not in said, "pings": said.get("ping", {}).get("number", 0)}


def fresh_disk() -> Path:
    """An empty ext4 file system of 512 MB."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / "disk.img"
    with path.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", str(path)], check=True)
    return path


SCENARIOS: dict[str, Callable[[argparse.Namespace], Judged]] = {
    "video": video,
    "sound": sound,
    "power": power,
    "disk": disk,
    "watchdog": watchdog,
}

if __name__ == "__main__":
    sys.exit(main())
