"""What is attacked: a hub, its broker and two enrolled boxes, as the separate programs they are, with TLS, on loopback.

What this module keeps true: everything is made by the commands that an operator uses (``bedside-hub ca``, ``bedside-hub
broker``, ``bedside enrol``); the box's key lies outside its state folder, as where the service manager unseals it. What was
planted (``PLANTED``) is what no attacker may find.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from appliance.cli import app as box_commands
from appliance.store.keys import CREDENTIAL
from hub.cli import app as hub_commands
from tools.fault_proxy import FaultProxy
from tools.free_port import free_port
from tools.servers import MissingServer, wait_for_port

SITE = "clinic-a"
BOX, OTHER = f"{SITE}/box-1", f"{SITE}/box-2"
READER = ("Dr Reader", "correct horse battery")
PLANTED = ("Zubeida Nkosazana", "MRN-77-41-09")
"""The patient's name and number in the one capture that is there."""


class World:
    """The programs. ``start``, then the addresses; ``stop`` at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boxes_port, self.hub_port, self.web, self.console, self.dicom = (free_port() for _ in range(5))
        self.link = FaultProxy(self.boxes_port)
        self.authority = folder / "authority"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(folder / "credentials")}

    def start(self, *, with_box: bool = True) -> None:
        """Make the authority, start broker and hub, enrol both boxes, start the first one."""
        mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if mosquitto is None:
            raise MissingServer("mosquitto is not installed (apt-get install mosquitto)")
        (self.folder / "inbox" / "heart-sound").mkdir(parents=True)
        self._configure()
        hub = self.folder / "hub.toml"
        self.hub("ca", "init")
        self.hub("ca", "server", "localhost", "127.0.0.1")
        user = pwd.getpwuid(os.getuid()).pw_name
        ports = ("--port", str(self.boxes_port), "--hub-port", str(self.hub_port), "--address", "127.0.0.1")
        self.hub("broker", str(self.folder / "broker"), "--name", "localhost", *ports, "--user", user)
        self.link.start()
        self._run("broker", mosquitto, "-c", str(self.folder / "broker" / "mosquitto.conf"))
        wait_for_port(self.boxes_port, self.running["broker"])
        self._run("hub", program("bedside-hub"), "run", "--config", str(hub))
        wait_for_port(self.web, self.running["hub"], 60)
        for box in (BOX, OTHER):
            code = self.hub("ca", "code", *box.split("/")).strip()
            self.box("enrol", "--hub", f"https://localhost:{self.web}", "--code", code, of=box)
        if with_box:
            self._run("box", program("bedside"), "run", "--config", str(self.configuration(BOX)))
            wait_for_port(self.dicom, self.running["box"], 60)

    def configuration(self, box: str) -> Path:
        """The configuration of a box."""
        return self.folder / f"{box.partition('/')[2]}.toml"

    def state(self, box: str) -> Path:
        """The state folder of a box."""
        return self.folder / "state" / box.partition("/")[2]

    def hub(self, *arguments: str) -> str:
        """What a command of the hub says."""
        return self._command("bedside-hub", *arguments, "--config", str(self.folder / "hub.toml"))

    def box(self, *arguments: str, of: str = BOX) -> str:
        """What a command of a box says."""
        return self._command("bedside", *arguments, "--config", str(self.configuration(of)))

    def reload_broker(self) -> None:
        """Have mosquitto read its revocation list again, as ``systemctl reload mosquitto`` does."""
        self.running["broker"].send_signal(signal.SIGHUP)
        time.sleep(0.5)

    def wait(self, what: str, done: Callable[[], Any], seconds: float = 60) -> Any:
        """The first true answer; raises ``RuntimeError`` when there is none."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if answer := done():
                return answer
            time.sleep(0.05)
        raise RuntimeError(f"{what}: nothing within {seconds:.0f} s; logs are in {self.folder}")

    def log(self, name: str) -> str:
        """What a program has written."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        """End everything."""
        for process in reversed(list(self.running.values())):
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
            process.kill()
            process.wait()
        self.link.stop()

    def _configure(self) -> None:
        users = self._command("bedside-hub", "password", READER[0], "--password", READER[1])
        (self.folder / "users").write_text(users)
        (self.folder / "credentials").mkdir(mode=0o700)
        (self.folder / "credentials" / CREDENTIAL).write_bytes(os.urandom(32))
        (self.folder / "hub.toml").write_text(
            f'[storage]\nstate = "{self.folder}/hub"\nrefuse_below = 1\n'
            f'[broker]\nhost = "localhost"\nport = {self.hub_port}\ntls = true\n'
            f'[authority]\nfolder = "{self.authority}"\nbroker = "localhost:{self.boxes_port}"\n'
            f'[web]\nport = {self.web}\nusers_file = "{self.folder}/users"\n'
            f'certificate_file = "{self.authority}/web.pem"\nkey_file = "{self.authority}/web.key"\n'
        )
        for box in (BOX, OTHER):
            site, _, name = box.partition("/")
            self.configuration(box).write_text(
                f'[device]\nsite = "{site}"\nname = "{name}"\n'
                f'[storage]\nstate = "{self.state(box)}"\nrefuse_below = 64\nreserve = 8\n'
                f'[dicom]\naddress = "127.0.0.1"\nport = {self.dicom}\nallowed_ae_titles = ["XRAY"]\n'
                f'[folder]\nenabled = true\npath = "{self.folder}/inbox"\nsettle = 0.2\n'
                f'[link]\nhost = "localhost"\nport = {self.link.port}\ntls = true\nreconnect_to = 1.0\n'
                f"[console]\nport = {self.console}\n"
            )

    def _command(self, name: str, *arguments: str) -> str:
        """Run a command as ``name`` would, in this process: a new one costs a second."""
        app = hub_commands if name == "bedside-hub" else box_commands
        done = CliRunner().invoke(app, list(arguments), env=self._environment)
        if done.exit_code:
            raise RuntimeError(f"{name} {' '.join(arguments[:2])}: {done.output.strip()} {done.exception!r}")
        return done.stdout

    def _run(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)


@contextlib.contextmanager
def running(folder: Path, *, with_box: bool = True) -> Iterator[World]:
    """A world in ``folder``, stopped at the end."""
    world = World(folder)
    try:
        world.start(with_box=with_box)
        yield world
    finally:
        world.stop()


def program(name: str) -> str:
    """A command installed beside this Python."""
    return str(Path(sys.executable).parent / name)
