"""Mixed capture for an hour, with everything unplugged now and then, and the count in the end.

    python -m tools.soak [--minutes N] [--seed S] [--json FILE] [--keep DIR]

The real broker, hub and box; films and archives, sounds, a stick that is pulled away, the stethoscope (PortAudio over a
PulseAudio null sink) and live ultrasound (a transport stream over UDP), each unplugged in the middle; a nurse who looks; a
link that is cut, away or slow. It ends with 1 when anything that the box had said was kept is not at the hub once and whole,
when anything else went wrong, or when a process of box or hub grows.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from tools import arrivals
from tools.free_port import free_port
from tools.programs import Programs, get
from tools.simulate import probe, ultrasound
from tools.simulate.sound_device import NAME, sound_device
from tools.soak import doors, memory, pages, ways

GROWTH_MB_AN_HOUR = 4.0
"""What counts as growth: the least slope of the 95 % interval above this."""
JUDGED_FROM_MIN = 30.0
"""In less time a slope says how caches fill."""
_DRAIN_S = 900.0
_FRAMES = 150


class Outcome(msgspec.Struct, kw_only=True):
    """What the soak counts. ``lost``: owed and not at the hub; ``growing``: processes, from ``JUDGED_FROM_MIN`` on."""

    minutes: float = 0.0
    seed: int = 0
    done: dict[str, dict[str, int]] = {}
    troubles: list[str] = []
    owed: int = 0
    at_hub: int = 0
    lost: int = 0
    doubled: int = 0
    corrupt: int = 0
    set_aside: int = 0
    drain_seconds: float = 0.0
    memory: dict[str, memory.Trend] = {}
    growing: list[str] = []

    @property
    def good(self) -> bool:
        """Whether nothing went wrong and there was something to lose."""
        wrong = self.lost or self.doubled or self.corrupt or self.troubles or self.growing or self.set_aside
        return bool(self.owed) and not wrong


def soak(programs: Programs, used: list[ways.Way], owed: ways.Owed, outcome: Outcome) -> None:
    """Use all ways for the time, let the link do its work, count."""
    programs.link.refuse(False)
    watch = memory.Watch({name: programs.running[name].pid for name in ("box", "hub")})
    watch.start()
    end = time.monotonic() + outcome.minutes * 60
    with ways.working(used):
        while (left := end - time.monotonic()) > 0:
            _tell(left, owed, used)
            time.sleep(min(left, 10.0))
            for name, process in programs.running.items():
                if process.poll() is not None:
                    programs.give_up(f"{name} ended with status {process.returncode}")
    outcome.memory = watch.stop()
    if outcome.minutes >= JUDGED_FROM_MIN:
        outcome.growing = sorted(name for name, one in outcome.memory.items() if one.low > GROWTH_MB_AN_HOUR)
    outcome.done = {way.name: dict(way.counts) for way in used}
    outcome.troubles = [trouble for way in used for trouble in way.troubles]
    programs.link.set(None, 0.0)
    programs.link.refuse(False)
    drained = time.monotonic()
    programs.wait("everything delivered", lambda: arrivals.nothing_waits(programs), _DRAIN_S)
    outcome.drain_seconds = round(time.monotonic() - drained, 1)
    outcome.set_aside = get(programs.bedside_url + "/api/status").get("set_aside", 0)
    count(programs, owed, outcome)


def count(programs: Programs, owed: ways.Owed, outcome: Outcome) -> None:
    """Hold what is owed against what is at the hub."""
    instances, files, captures = Counter[str](), Counter[str](), Counter[str]()
    outcome.corrupt += arrivals.conflicts(programs)
    for case in arrivals.cases(programs):
        outcome.at_hub += 1
        instances[case.instance_uid] += 1
        files[case.sha256] += 1
        captures[case.id] += 1
        pixels = owed.instances.get(case.instance_uid)
        outcome.corrupt += case.original is None or (pixels is not None and case.pixels() != pixels)
    outcome.owed = len(owed.instances) + len(owed.files) + len(owed.captures)
    outcome.lost = (
        sum(not instances[one] for one in owed.instances)
        + sum(not files[one] for one in owed.files)
        + sum(not captures[one] for one in owed.captures)
    )
    outcome.doubled = (
        sum(instances[one] > 1 for one in owed.instances)
        + sum(files[one] > 1 for one in owed.files)
        + sum(captures[one] > 1 for one in owed.captures)
    )


def _tell(left: float, owed: ways.Owed, used: list[ways.Way]) -> None:
    if sys.stderr.isatty():
        troubles = sum(len(way.troubles) for way in used)
        kept = len(owed.instances) + len(owed.files) + len(owed.captures)
        print(f"\r{left / 60:5.1f} min left, {kept} kept, {troubles} troubles", end="", file=sys.stderr)


def main() -> int:
    """Soak and report; 0 only if nothing was lost, nothing else went wrong and nothing grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder and leave it")
    options = parser.parse_args()
    outcome, owed = Outcome(minutes=options.minutes, seed=options.seed), ways.Owed()
    with contextlib.ExitStack() as stack:
        folder = Path(options.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="bedside-soak-")))
        folder.mkdir(parents=True, exist_ok=True)
        device = stack.enter_context(sound_device())
        made = probe.screen(ultrasound.Scene(frames=_FRAMES, b_lines=3, seed=options.seed))
        probe.write(folder / "screen.avi", made.frames, codec="MJPG")
        cable = pages.Cable(folder / "screen.avi", free_port())
        cable.plug()
        stack.callback(cable.pull)
        box = f'[stethoscope]\ndevice = "{NAME}"\n[ultrasound]\nsource = "{cable.source}"\npre_roll = 1.0\n'
        programs = Programs(folder.resolve(), box, device.environment)
        stack.callback(programs.stop)
        programs.start()
        used: list[ways.Way] = [
            doors.Films(programs, owed, options.seed),
            doors.Films(programs, owed, options.seed + 1),
            doors.Stick(programs, owed, options.seed),
            pages.Nurse(programs, owed, options.seed),
            pages.Listening(programs, owed, options.seed, device),
            pages.Scanning(programs, owed, options.seed, cable),
            doors.Weather(programs, owed, options.seed),
        ]
        soak(programs, used, owed, outcome)
    text = msgspec.json.format(msgspec.json.encode(outcome))
    print(text.decode())
    if options.json is not None:
        options.json.write_bytes(text + b"\n")
    return int(not outcome.good)


if __name__ == "__main__":
    sys.exit(main())
