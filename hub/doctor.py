"""``bedside-hub doctor``: looks at what the hub needs and says what to do where something is missing.

What this module keeps true: it changes nothing (a database that is not there yet is not made); every failing point names a
remedy.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import exc

from hub.config import Config, is_loopback
from hub.database import MIGRATIONS, Database, DatabaseError
from hub.people import People
from hub.users import Users, UsersError


class Point(NamedTuple):
    """One thing that was looked at."""

    name: str
    good: bool
    text: str


def examine(config: Config) -> Iterator[Point]:
    """Look at everything, one point after the other."""
    yield Point("configuration", True, "valid")
    yield _database(config)
    yield _blobs(config.blobs, config.storage.refuse_below)
    yield _broker(config)
    if config.web.enabled:
        yield _web(config)


def _database(config: Config) -> Point:
    url = config.database_url
    if url.startswith("sqlite") and not Path(url.removeprefix("sqlite:///")).exists():
        return Point("database", True, "not there yet; it is made at the first start")
    try:
        database = Database(url)
        with database.read() as connection:
            version = database.version(connection)
    except (DatabaseError, exc.SQLAlchemyError, OSError) as error:
        return Point("database", False, f"{str(error).splitlines()[0]}; check database.url and that the server runs")
    known = len(MIGRATIONS)
    if version > known:
        return Point("database", False, f"schema {version} is newer than this program ({known}); install the newer one")
    return Point("database", True, f"{database.url.get_backend_name()}, schema {version} of {known}")


def _blobs(folder: Path, refuse_below: int) -> Point:
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    if not os.access(there, os.W_OK | os.X_OK):
        return Point("blobs", False, f"{there} can't be written to; give it to the hub's user")
    stat = os.statvfs(there)
    free = stat.f_bavail * stat.f_frsize // 1_000_000
    if free < refuse_below:
        return Point("blobs", False, f"{free} MB free, less than storage.refuse_below ({refuse_below} MB); make room")
    return Point("blobs", True, f"{folder}, {free} MB free")


def _broker(config: Config) -> Point:
    broker = config.reached_broker
    where = f"{broker.host}:{broker.port}"
    try:
        with socket.create_connection((broker.host, broker.port), timeout=5) as connection:
            if broker.tls:
                context = ssl.create_default_context(cafile=broker.ca_file)
                if broker.certificate_file:
                    context.load_cert_chain(broker.certificate_file, broker.key_file)
                with context.wrap_socket(connection, server_hostname=broker.host):
                    pass
    except ssl.SSLError as error:
        return Point("broker", False, f"{where}: {error.reason}; check broker.ca_file and the broker's certificate")
    except OSError as error:
        return Point("broker", False, f"{where}: {error.strerror or error}; start it, or check broker.host and port")
    return Point("broker", True, f"{where} answers{' with TLS' if broker.tls else ''}")


def _web(config: Config) -> Point:
    if config.web.users_file:
        try:
            Users(Path(config.web.users_file))
        except UsersError as error:
            return Point("web", False, str(error))
    where = f"{config.web.address}:{config.web.port}"
    if config.web.users_file or _anybody(config.database_url):
        return Point("web", True, f"{where}, signing in")
    if is_loopback(config.web.address):
        return Point("web", True, f"{where}, no sign-in, this machine only")
    return Point("web", False, f"{where}: nobody may sign in yet; bedside-hub user add NAME --role administrator")


def _anybody(url: str) -> bool:
    if url.startswith("sqlite") and not Path(url.removeprefix("sqlite:///")).exists():
        return False
    try:
        return People(Database(url)).needed()
    except (DatabaseError, exc.SQLAlchemyError, OSError):
        return False  # the point "database" says what is wrong
