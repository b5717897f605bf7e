"""The thief: has a copy of the box's disk, without the key that the service manager unseals for the running program."""

from __future__ import annotations

import os
import shutil
import sqlite3
import ssl
from collections.abc import Iterator
from pathlib import Path

from appliance.store.credentials import IdentityError, identity_of
from appliance.store.errors import Damaged, StoreError
from appliance.store.files import RealFiles
from appliance.store.keys import CREDENTIAL, BoxKey, open_key
from appliance.store.vault import Vault
from tools.attack.report import Try, planted
from tools.attack.world import BOX, World

WHO = "thief"


def attack(world: World) -> Iterator[Try]:
    """Read everything, try to decrypt, try to pose as the box."""
    copy = world.folder / "stolen"
    shutil.copytree(world.state(BOX), copy, ignore=shutil.ignore_patterns("lock", "reserve"))
    yield Try(WHO, "reads every byte and every name on the disk", _scan(copy))
    yield Try(WHO, "reads the logs of box and hub", planted(world.log("box") + world.log("hub")))
    yield Try(WHO, "opens the journal and reads its columns", _journal(copy))
    yield Try(WHO, "decrypts the images with keys of its own", _blobs(copy))
    yield Try(WHO, "control: the box's own key opens them", "" if _own(copy, world) else "it does not")
    yield Try(WHO, "starts the program on the copy", _start(copy))
    yield Try(WHO, "takes the box's certificate to pose as it", _pose(copy))


def _scan(copy: Path) -> str:
    for path in sorted(copy.rglob("*")):
        found = planted(str(path)) or (planted(path.read_bytes()) if path.is_file() else "")
        if found:
            return f"{found} ({path.name})"
    return ""


def _journal(copy: Path) -> str:
    connection = sqlite3.connect(copy / "journal.sqlite")
    try:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = [row for table in tables for row in connection.execute(f"SELECT * FROM {table}")]  # noqa: S608
        return next((found for row in rows for one in row if (found := planted(_bytes(one)))), "")
    finally:
        connection.close()


def _blobs(copy: Path) -> str:
    for secret in (bytes(32), b"\xff" * 32, os.urandom(32)):
        vault = Vault(copy / "vault", BoxKey(secret))
        for sha256 in vault.blobs():
            try:
                return f"{len(b''.join(vault.frames(sha256)))} bytes of an image"
            except (Damaged, StoreError):
                continue
    return ""


def _own(copy: Path, world: World) -> bool:
    vault = Vault(copy / "vault", BoxKey((world.folder / "credentials" / CREDENTIAL).read_bytes()))
    return any(planted(b"".join(vault.frames(sha256))) for sha256 in vault.blobs())


def _start(copy: Path) -> str:
    kept = os.environ.pop("CREDENTIALS_DIRECTORY", None)
    try:
        open_key(copy, RealFiles())
    except StoreError:
        return ""
    finally:
        if kept is not None:
            os.environ["CREDENTIALS_DIRECTORY"] = kept
    return "a key"


def _pose(copy: Path) -> str:
    chain = copy / "identity" / "certificate.pem"
    for password in ("", "bedside", "0" * 32):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(chain, password=password)
        except (ssl.SSLError, ValueError):
            continue
        return "the certificate with its key"
    try:
        identity_of(copy, BoxKey(bytes(32)))
    except IdentityError:
        return ""
    return "the signing key"


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
