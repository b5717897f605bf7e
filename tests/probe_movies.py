"""Movies of a made-up machine's screen, and a box whose ultrasound door shows them."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from appliance.capture.intake import Intake
from appliance.capture.video import VideoDoor
from appliance.capture.video_scan import Scan
from appliance.config import StorageConfig, UltrasoundConfig
from appliance.health.clock import Clock
from appliance.store.store import Store
from tools.simulate import probe
from tools.simulate.ultrasound import Scene

T = TypeVar("T")


@functools.cache
def screen(frames: int = 30, *, linear: bool = False) -> probe.Screen:
    """The screen of a machine with two B-lines."""
    return probe.screen(Scene(frames=frames, b_lines=2), linear=linear)


def movie(folder: Path, *, frames: int = 30, codec: str = "MJPG", repeat: int = 1) -> Path:
    """The screen as a movie file of ``frames × repeat`` pictures."""
    target = folder / f"probe-{codec}.avi"
    probe.write(target, screen(frames).frames, codec=codec)
    if repeat == 1:
        return target
    once = target.rename(folder / f"once-{codec}.avi")
    loop = ["ffmpeg", "-v", "error", "-stream_loop", str(repeat - 1), "-i", once, "-c", "copy", target]
    subprocess.run(loop, check=True, stdin=subprocess.DEVNULL)
    return target


@contextlib.contextmanager
def box(state: Path, source: Path | str, **config: Any) -> Iterator[tuple[VideoDoor, Store]]:
    """A started door on a store in ``state``."""
    clock = Clock()
    clock.anchor(time.time(), 0.1)
    store = Store(StorageConfig(state=str(state), refuse_below=16, reserve=4), clock.now)
    given = {"pre_roll": 1.0, **config}
    door = VideoDoor(UltrasoundConfig(source=str(source), **given), Intake(store, "site-1/box-1"))
    door.start()
    try:
        yield door, store
    finally:
        door.stop()
        store.close()


def until(door: VideoDoor, seen: Callable[[Scan], T | None], seconds: float = 20.0) -> T:
    """What ``seen`` gives for the first state for which it gives anything."""
    end, scan = time.monotonic() + seconds, door.scan()
    while not (found := seen(scan)):
        assert time.monotonic() < end, f"not within {seconds} s; the state is {scan}"
        scan = door.scan(scan.serial, 1.0)
    return found


def live(door: VideoDoor, kept: int = 1) -> Scan:
    """The first state in which ``kept`` frames have been kept."""
    return until(door, lambda scan: scan if scan.phase == "live" and not scan.reason and scan.kept >= kept else None)
