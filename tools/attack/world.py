"""What is attacked: a hub, its broker and two enrolled boxes, as the separate programs they are, with TLS, on loopback.

What this module keeps true: everything is made by the commands that an operator uses (``bedside-hub ca``, ``bedside-hub
broker``, ``bedside enrol``); the box's key lies outside its state folder, as where the service manager unseals it. What was
planted (``PLANTED``) is what no attacker may find.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import pwd
import shutil
import signal
import sqlite3
import ssl
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
        self._access = ""
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

    def capture(self) -> str:
        """Send an image of the planted patient as an X-ray machine does; its SOP Instance UID."""
        import pydicom
        from pydicom.data import get_testdata_file
        from pydicom.uid import ComputedRadiographyImageStorage, generate_uid
        from pynetdicom import AE

        image = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
        image.Modality, image.BodyPartExamined, image.ViewPosition = "CR", "CHEST", "PA"
        image.PatientName, image.PatientID = PLANTED[0].replace(" ", "^"), PLANTED[1]
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        entity = AE(ae_title="XRAY")
        entity.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
        association = entity.associate("127.0.0.1", self.dicom, ae_title="BEDSIDE")
        if not association.is_established:
            raise RuntimeError("the box did not take the X-ray machine's association")
        status = association.send_c_store(image).get("Status")
        association.release()
        if status != 0:
            raise RuntimeError(f"the box did not keep the image: {status}")
        return str(image.SOPInstanceUID)

    def deliver(self) -> str:
        """A capture that is wholly at the hub; its id."""
        before = {one["id"] for one in self.cases()}
        self.capture()
        new = self.wait("the case at the hub", lambda: {one["id"] for one in self.cases()} - before)
        self.wait("delivery", lambda: not self.counts()["waiting"])
        return str(next(iter(new)))

    def speak(self) -> None:
        """Have box and hub say something on their topics."""
        self.review(self.deliver())

    def review(self, case: str) -> None:
        """A radiologist's word on a case, at the hub."""
        seen = self._hub_api("GET", f"/api/cases/{case}")["result"]["id"]
        self._hub_api("POST", f"/api/cases/{case}/review", {"result_id": seen, "decision": "accept", "note": "seen"})

    def cases(self) -> list[dict[str, Any]]:
        """What the hub's worklist holds: of each case what an attacker would like to change."""
        rows = self._hub_rows("SELECT id, device, rank, decision, revision, status FROM capture ORDER BY id")
        return [dict(row) for row in rows]

    def aside(self) -> int:
        """How many results the hub keeps aside, because it can't say whose they are."""
        return int(self._hub_rows("SELECT count(*) AS n FROM conflict")[0]["n"])

    def rejections(self, device: str) -> int:
        """How many messages on a device's topics the hub would not take."""
        return int(
            self._hub_rows("SELECT coalesce(sum(count), 0) AS n FROM rejection WHERE device = ?", device)[0]["n"]
        )

    def counts(self) -> dict[str, int]:
        """What of the first box waits for the hub, and what it took from it."""
        connection = sqlite3.connect(f"file:{self.state(BOX)}/journal.sqlite?mode=ro", uri=True, timeout=10)
        waiting = "SELECT (SELECT count(*) FROM {}) + (SELECT count(*) FROM {}) + (SELECT count(*) FROM original)"
        with contextlib.closing(connection):
            rows = waiting.format(
                "outbox WHERE state <> 'delivered' AND capture_id <> ''", "transfer WHERE state <> 'delivered'"
            )
            return {
                "waiting": int(connection.execute(rows).fetchone()[0]),
                "inbox": int(connection.execute("SELECT count(*) FROM inbox").fetchone()[0]),
            }

    def is_online(self) -> bool:
        """Whether the hub sees the first box online, and the broker has a connection of it."""
        rows = self._hub_rows("SELECT key FROM device WHERE online AND key = ?", BOX)
        return self.link.open > 0 and bool(rows)

    def pause(self, name: str) -> None:
        """Stop a program without ending it."""
        self.running[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let it go on."""
        self.running[name].send_signal(signal.SIGCONT)

    def _hub_rows(self, query: str, *values: str) -> list[sqlite3.Row]:
        """Read in the hub's own database, which costs no sign-in."""
        connection = sqlite3.connect(f"file:{self.folder}/hub/hub.sqlite?mode=ro", uri=True, timeout=10)
        connection.row_factory = sqlite3.Row
        with contextlib.closing(connection):
            return connection.execute(query, values).fetchall()

    def _hub_api(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        password = base64.b64encode(":".join(READER).encode()).decode()
        headers = {"Authorization": f"Basic {password}", "Content-Type": "application/json"}
        tls = ssl.create_default_context(cafile=str(self.authority / "ca.pem"))
        connection = http.client.HTTPSConnection("localhost", self.web, timeout=10, context=tls)
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{path}: {answer.status} {data[:200]!r}")
        return json.loads(data)

    def reload_broker(self) -> None:
        """Have mosquitto read its revocation list again, as ``systemctl reload mosquitto`` does."""
        self.running["broker"].send_signal(signal.SIGHUP)
        time.sleep(0.5)

    def own_broker(self) -> None:
        """Whoever owns the broker writes its access list: everything is allowed."""
        acl = self.folder / "broker" / "acl"
        self._access = self._access or acl.read_text(encoding="utf-8")
        acl.write_text(f"user bedside-hub\ntopic readwrite #\n{self._access}", encoding="utf-8")
        self.reload_broker()

    def repair_broker(self) -> None:
        """Put back what ``own_broker`` changed."""
        if self._access:
            (self.folder / "broker" / "acl").write_text(self._access, encoding="utf-8")
            self.reload_broker()
            self._access = ""

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
        (self.folder / "no-models").mkdir()
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
                f'[models]\ndirectory = "{self.folder}/no-models"\n'
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
