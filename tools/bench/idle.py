"""What the daemon costs while nobody comes: from start to ready, memory, processor, bytes written to the disk.

What this module keeps true: it is the real daemon (``bedside run``) with its doors, console and link to a real broker, in
processes of its own, at its second start (engines are warm). It is ready when it says so to the service manager; all bundles
serve when it has written that they do. Memory is of all its processes together: resident (pages they share count in each)
against the limit, and proportional (they count once) for information.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from appliance.config import load, shipped_models
from appliance.health.status import serving_of
from tools.bench.rows import Row, row
from tools.free_port import free_port
from tools.servers import Mosquitto

READY_S, ALL_S, MEMORY_MB, PROCESSOR, WRITTEN_GB = 5.0, 10.0, 250.0, 2.0, 1.0
STARTS, SETTLE_S, WATCH_S = 3, 20.0, 60.0
_LONG_S = 180.0
_DAEMON = "import sys; from appliance.cli import main; sys.argv[0] = 'bedside'; main()"


class Idle:
    """A daemon: seconds until it was ready and until all bundles served, and its processes."""

    def __init__(self, configuration: Path, folder: Path) -> None:
        bundles = len(list(shipped_models().glob("*/bundle.toml")))
        (folder / "serving.json").unlink(missing_ok=True)
        address = folder / "notify"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(address))
            manager.settimeout(_LONG_S)
            begun = time.monotonic()
            command = [sys.executable, "-c", _DAEMON, "run", "--config", str(configuration)]
            environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
            self._process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            while b"READY=1" not in manager.recv(4096):
                pass
            self.ready_s = time.monotonic() - begun
            config = load(configuration)
            while len(serving_of(config).serving) < bundles:
                if time.monotonic() > begun + _LONG_S:
                    raise RuntimeError(f"of {bundles} bundles {len(serving_of(config).serving)} serve")
                time.sleep(0.05)
            self.all_s = time.monotonic() - begun

    def processes(self) -> list[psutil.Process]:
        """The daemon and what it started."""
        daemon = psutil.Process(self._process.pid)
        return [daemon, *daemon.children(recursive=True)]

    def stop(self) -> None:
        """Stop it as the service manager does."""
        self._process.terminate()
        self._process.wait(60)


def run() -> Iterator[Row]:
    """The rows."""
    with tempfile.TemporaryDirectory(prefix="bench-idle-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "broker").mkdir()
        broker = Mosquitto(folder / "broker")
        broker.start()
        stack.callback(broker.stop)
        configuration = _configuration(folder, broker.port)
        Idle(configuration, folder).stop()  # derives what this processor wants
        ready, everything = [], []
        for _ in range(STARTS):
            daemon = Idle(configuration, folder)
            ready.append(daemon.ready_s)
            everything.append(daemon.all_s)
            if len(ready) < STARTS:
                daemon.stop()
        stack.callback(daemon.stop)
        yield _target("start to ready", "s", sorted(ready)[STARTS // 2], READY_S, STARTS)
        yield _target("start to all bundles serving", "s", sorted(everything)[STARTS // 2], ALL_S, STARTS)
        time.sleep(SETTLE_S)
        yield from _watched(daemon)


def _watched(daemon: Idle) -> Iterator[Row]:
    """Memory, processor and writes over ``WATCH_S``."""
    before, begun = _spent(daemon), time.monotonic()
    time.sleep(WATCH_S)
    after, seconds = _spent(daemon), time.monotonic() - begun
    processor = 100 * (after[0] - before[0]) / seconds
    yield _target("idle: processor, share of a core", "%", processor, PROCESSOR, 1)
    yield _target("idle: written", "GB/day", (after[1] - before[1]) / seconds * 86400 / 1e9, WRITTEN_GB, 1)
    found = daemon.processes()
    yield _target("idle: memory of all processes", "MB", sum(_resident(one) for one in found), MEMORY_MB, 1)
    shared = sum(one.memory_full_info().pss for one in found) / 1e6
    yield row("idle: the same, shared pages once", "MB", shared)
    for position, one in enumerate(found):
        what = "daemon" if position == 0 else " ".join(one.cmdline()[5:6]) or one.name()
        yield row(f"idle: memory of {what}", "MB", _resident(one))


def _spent(daemon: Idle) -> tuple[float, int]:
    """Processor seconds and bytes written by all processes so far."""
    found = daemon.processes()
    times = [one.cpu_times() for one in found]
    return sum(one.user + one.system for one in times), sum(one.io_counters().write_bytes for one in found)


def _resident(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def _target(name: str, unit: str, ours: float, target: float, count: int) -> Row:
    return row(name, unit, ours, target, peer_name="target", limit=1.0, n=count)


def _configuration(folder: Path, broker: int) -> Path:
    path = folder / "bedside.toml"
    path.write_text(
        f'[storage]\nstate = "{folder}"\nrefuse_below = 16\nreserve = 4\n'
        f'[dicom]\naddress = "127.0.0.1"\nport = {free_port()}\n'
        f'[folder]\nenabled = true\npath = "{folder / "inbox"}"\n'
        f"[console]\nport = {free_port()}\n"
        f"[link]\nport = {broker}\n"
        '[models]\nengine = "cpu"\n',
        encoding="utf-8",
    )
    (folder / "inbox").mkdir()
    return path
