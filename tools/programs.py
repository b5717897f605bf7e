"""The three programs on loopback, as a demonstration, a torture or a benchmark drives them: broker, hub, box, and the link.

What this module keeps true: they are the real commands in processes of their own, on free ports, in one folder; the link
between box and broker goes through a fault proxy and is down at first; a program that was killed is started again with the
same configuration and state.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tools.fault_proxy import FaultProxy
from tools.free_port import free_port

_DEADLINE = 180.0


class Programs:
    """The three programs and the link, in ``folder``; ``box``: more TOML for the box, ``environment``: more variables."""

    def __init__(self, folder: Path, box: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._box = box
        self._environment = {**os.environ, **(environment or {})}
        self.broker, self.dicom, self.console, self.web = (free_port() for _ in range(4))
        self.link = FaultProxy(self.broker)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[str, ...]] = {}

    @property
    def bedside_url(self) -> str:
        """The bedside console's address."""
        return f"http://127.0.0.1:{self.console}"

    @property
    def hub_url(self) -> str:
        """The worklist's address."""
        return f"http://127.0.0.1:{self.web}"

    @property
    def inbox(self) -> Path:
        """The box's watched folder."""
        return self.folder / "inbox"

    def start(self) -> None:
        """Start broker, hub and box; the link between box and broker is down."""
        mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if mosquitto is None:
            sys.exit("mosquitto is missing: sudo apt-get install -y mosquitto")
        (self.inbox / "heart-sound").mkdir(parents=True)
        (self.inbox / "lung-sound").mkdir()
        self.link.start()
        self.link.refuse()
        (self.folder / "broker").mkdir(mode=0o777)
        (self.folder / "broker").chmod(0o777)
        self._write(
            "mosquitto.conf",
            f"listener {self.broker} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {self.folder}/broker/\n",
        )
        self._write(
            "hub.toml",
            f'[storage]\nstate = "{self.folder}/hub"\nrefuse_below = 1\n[broker]\nport = {self.broker}\n'
            f"[web]\nport = {self.web}\n",
        )
        self._write(
            "box.toml",
            f'[device]\nsite = "demo"\nname = "bedside-1"\n[storage]\nstate = "{self.folder}/box"\nrefuse_below = 64\n'
            f'reserve = 8\n[dicom]\naddress = "127.0.0.1"\nport = {self.dicom}\n'
            f'[folder]\nenabled = true\npath = "{self.inbox}"\nsettle = 0.3\n'
            f'[link]\nport = {self.link.port}\nreconnect_to = 1.0\n[console]\nport = {self.console}\nsign_in = "off"\n'
            f"{self._box}",
        )
        self._run("broker", mosquitto, "-c", str(self.folder / "mosquitto.conf"))
        self._run("hub", _program("bedside-hub"), "run", "--config", str(self.folder / "hub.toml"))
        self._run("box", _program("bedside"), "run", "--config", str(self.folder / "box.toml"))
        self.wait("the hub's pages", lambda: get(self.hub_url + "/api/health"))
        self.wait("the bedside console", lambda: get(self.bedside_url + "/api/status"))
        self.wait("the models", self._models_ready)

    def _models_ready(self) -> bool:
        status = get(self.bedside_url + "/api/status")
        return bool(status.get("models") or status.get("model_problems"))

    def wait(self, what: str, done: Callable[[], Any], seconds: float = _DEADLINE) -> Any:
        """The first true answer of ``done``; shows the programs' logs and exits when there is none."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                if answer := done():
                    return answer
            for name, process in self.running.items():
                if process.poll() is not None:
                    self.give_up(f"{name} ended with status {process.returncode}")
            time.sleep(0.05)
        return self.give_up(f"{what}: nothing within {seconds:.0f} s")

    def stop(self) -> None:
        """End the programs in an orderly way."""
        for process in reversed(list(self.running.values())):
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
            process.kill()
        self.link.stop()

    def kill(self, name: str) -> None:
        """SIGKILL, then the same program again."""
        self.running[name].kill()
        self.running[name].wait()
        self._run(name, *self._commands[name])

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def _run(self, name: str, *command: str) -> None:
        self._commands[name] = command
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)

    def give_up(self, why: str) -> None:
        """Show the ends of the programs' logs, stop them, and exit with 1."""
        for name in self.running:
            tail = (self.folder / f"{name}.log").read_text(errors="replace")[-1500:]
            print(f"--- {name}\n{tail}", file=sys.stderr)
        self.stop()
        sys.exit(f"failed: {why}")


def _program(name: str) -> str:
    """A command installed beside this Python."""
    return str(Path(sys.executable).parent / name)


def get(url: str) -> Any:
    """The JSON at ``url``."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own pages on loopback
        return json.load(answer)


def post(url: str, body: dict[str, Any]) -> Any:
    """Post JSON, get JSON."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)
