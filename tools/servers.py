"""Real servers for tests and benchmarks: a broker, a database; each on a free port of loopback, in a folder of its own.

What this module keeps true: nothing is shared between two servers; a missing program is ``MissingServer`` with the line
that installs it; a server that is stopped and started again keeps its port and what it had persisted.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.free_port import free_port


class MissingServer(Exception):  # noqa: N818 - the state of the machine
    """The program is not installed, or can't run here; the message says what to do."""


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 15.0) -> None:
    """Wait until somebody listens on 127.0.0.1:port; raises ``RuntimeError`` when ``process`` ends before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode} before it listened on {port}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not listen on {port} after {seconds} s")


class Mosquitto:
    """A mosquitto broker: ``start``, ``stop`` (orderly, sessions are saved), ``kill`` (SIGKILL, they are not)."""

    host = "127.0.0.1"

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if program is None:
            raise MissingServer("mosquitto is not installed (apt-get install mosquitto)")
        self.program = program
        self.port = free_port()
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        lines = [
            f"listener {self.port} {self.host}",
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {folder}/",
            f"user {pwd.getpwuid(os.getuid()).pw_name}",
            "max_queued_messages 100000",
            "max_inflight_messages 1000",
            *options,
        ]
        self.file = folder / "mosquitto.conf"
        self.file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def start(self) -> None:
        """Start it and wait until it listens."""
        log = (self.folder / "mosquitto.log").open("ab")
        with log:
            self.process = subprocess.Popen([self.program, "-c", str(self.file)], stdout=log, stderr=log)
        wait_for_port(self.port, self.process)

    def stop(self) -> None:
        """End it in an orderly way; sessions and retained messages are written to its folder."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what it had not saved is gone."""
        self._end(signal.SIGKILL)

    def _end(self, with_signal: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(with_signal)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
            self.process = None


@contextlib.contextmanager
def running_mosquitto(*options: str) -> Iterator[Mosquitto]:
    """A broker in a folder of its own; ``options`` are further lines of its configuration."""
    with tempfile.TemporaryDirectory(prefix="mosquitto-") as folder:
        broker = Mosquitto(Path(folder), options)
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()


class PostgreSQL:
    """A PostgreSQL server with one empty database; ``url`` is what SQLAlchemy takes."""

    def __init__(self, folder: Path) -> None:
        self.bin = _postgresql_bin()
        self.port = free_port()
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self._prefix: list[str] = []
        if os.getuid() == 0:
            owner = _postgresql_owner()
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            self._prefix = ["runuser", "-u", owner.pw_name, "--"]
        command = [self.bin / "initdb", "-D", folder / "data", "-A", "trust", "-U", "hub", "-E", "UTF8", "--no-sync"]
        subprocess.run(self._as_owner(command), check=True, capture_output=True, cwd="/")

    @property
    def url(self) -> str:
        """The URL for ``database.url``."""
        return f"postgresql+psycopg://hub@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        command: list[Any] = [self.bin / "postgres", "-D", self.folder / "data", "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"]
        log = (self.folder / "postgresql.log").open("ab")
        with log:
            self.process = subprocess.Popen(self._as_owner(command), stdout=log, stderr=log, cwd="/")
        wait_for_port(self.port, self.process)
        for _ in range(200):
            check: list[Any] = [self.bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
            if subprocess.run(check, check=False, cwd="/").returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError("PostgreSQL listens but takes no connections")

    def stop(self) -> None:
        """End it at once but in an orderly way (a fast shutdown)."""
        self._end("fast")

    def kill(self) -> None:
        """End it as a crash would: without a checkpoint."""
        self._end("immediate")

    def _end(self, mode: str) -> None:
        if self.process is not None:
            command = [self.bin / "pg_ctl", "stop", "-D", self.folder / "data", "-m", mode, "-t", "20"]
            subprocess.run(self._as_owner(command), check=False, capture_output=True, cwd="/")
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
            self.process = None

    def _as_owner(self, command: list[Any]) -> list[str]:
        return [*self._prefix, *map(str, command)]


@contextlib.contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server in a folder of its own; as root it runs as the user ``postgres``."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        server = PostgreSQL(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()  # its folder goes with it: nothing needs to be saved


def _postgresql_bin() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    program = shutil.which("initdb")
    if program is None:
        raise MissingServer("PostgreSQL is not installed (apt-get install postgresql)")
    return Path(program).parent


def _postgresql_owner() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError as error:
        raise MissingServer("PostgreSQL does not run as root and there is no user postgres") from error
