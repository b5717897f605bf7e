"""What stands at the hub in the end, whole or not: what a torture and a soak count by.

What this module keeps true: a case is compared by its bytes, fetched as a radiologist's browser fetches them, never by what
the hub says about them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec
import pydicom

from tools.programs import Programs, get


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A capture at the hub. ``original``: its bytes; ``None`` when not exactly one, or of another hash than said."""

    id: str
    instance_uid: str
    sha256: str
    modality: str
    original: bytes | None

    def pixels(self) -> str:
        """SHA-256 of the pixel data of a DICOM original; empty without an original."""
        if self.original is None:
            return ""
        return hashlib.sha256(pydicom.dcmread(io.BytesIO(self.original)).PixelData).hexdigest()


def nothing_waits(programs: Programs) -> bool:
    """Whether the box has something, has finished with all of it, and the hub has confirmed it."""
    status = get(programs.bedside_url + "/api/status")
    states = status.get("captures", {})
    unfinished = sum(states.get(name, 0) for name in ("kept", "checked", "read", "reported"))
    return bool(states.get("delivered")) and not unfinished and not status.get("waiting_messages", 0)


def cases(programs: Programs) -> Iterator[Case]:
    """Every capture at the hub."""
    with contextlib.closing(_database(programs)) as database:
        ids = [row[0] for row in database.execute("SELECT id FROM capture")]
    for one in ids:
        detail = get(f"{programs.hub_url}/api/cases/{one}")
        capture = detail["result"]["capture"]
        originals = [blob["sha256"] for blob in detail["blobs"] if blob["kind"] == "original"]
        yield Case(
            id=one,
            instance_uid=capture.get("instance_uid", ""),
            sha256=capture["sha256"],
            modality=capture["modality"],
            original=_whole(programs, originals, capture),
        )


def conflicts(programs: Programs) -> int:
    """How many times two different contents came under one id."""
    with contextlib.closing(_database(programs)) as database:
        return int(database.execute("SELECT count(*) FROM conflict").fetchone()[0])


def _database(programs: Programs) -> sqlite3.Connection:
    return sqlite3.connect(programs.folder / "hub" / "hub.sqlite")


def _whole(programs: Programs, originals: list[str], capture: dict[str, Any]) -> bytes | None:
    if len(originals) != 1:
        return None
    try:
        with urllib.request.urlopen(f"{programs.hub_url}/api/blobs/{originals[0]}", timeout=20) as answer:  # noqa: S310
            data: bytes = answer.read()
    except urllib.error.HTTPError:
        return None
    return data if hashlib.sha256(data).hexdigest() == capture["sha256"] else None
