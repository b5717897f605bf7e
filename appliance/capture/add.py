"""The file command: files put into the box by hand, beside a running daemon or without one.

What this module keeps true: a file is said to be kept only when it is (promise 1), whichever way it went in; one that is
refused says why and disturbs no other.
"""

from __future__ import annotations

import http.client
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from appliance.capture.facts import FileReader
from appliance.capture.header import NotDicom
from appliance.capture.intake import Intake, IntakeError
from appliance.config import Config
from appliance.records import Modality, Moment
from appliance.store.errors import InUse, StoreError
from appliance.store.files import RealFiles
from appliance.store.keys import open_key
from appliance.store.people import local_secret
from appliance.store.store import Store

SOURCE = "file"
_TIMEOUT = 120
_BLOCK = 1 << 20


class Added(NamedTuple):
    """What became of a file: the words for people, and whether it is kept."""

    path: Path
    outcome: str
    kept: bool


class _Answer(msgspec.Struct, kw_only=True):
    """What the console answers: ``error`` names cause and remedy when nothing was kept."""

    capture_id: str = ""
    duplicate: bool = False
    conflict: bool = False
    error: str = ""


def add_files(config: Config, files: Iterable[Path], modality: Modality, now: Callable[[], Moment]) -> Iterator[Added]:
    """Keep each file, directly or through the running daemon's console; ``now`` is the clock.

    Raises ``StoreError`` when neither takes anything.
    """
    try:
        store = Store(config.storage, now)
    except InUse:
        yield from _through_console(config, files, modality, local_secret(open_key(config.state, RealFiles())))
        return
    try:
        intake = Intake(store, f"{config.device.site}/{config.device.name}")
        for path in files:
            yield keep_file(intake, path, modality)
    finally:
        store.close()


def keep_file(intake: Intake, path: Path, modality: Modality) -> Added:
    """Keep one file, read once in blocks."""
    facts = FileReader(SOURCE, modality)
    try:
        with path.open("rb") as file, intake.open() as incoming:
            while block := file.read(_BLOCK):
                facts.feed(block)
                incoming.write(block)
            kept = incoming.keep(facts.finish())
    except (NotDicom, IntakeError) as error:
        return Added(path, f"not kept: {error}", kept=False)
    except OSError as error:
        return Added(path, f"not kept: {error.strerror}; check the name and the rights", kept=False)
    return Added(path, _words(kept.capture_id, duplicate=kept.duplicate, conflict=kept.conflict), kept=True)


def _through_console(config: Config, files: Iterable[Path], modality: Modality, token: str) -> Iterator[Added]:
    if not config.console.enabled:
        raise StoreError("the daemon is running without its console; put the files into the watched folder instead")
    for path in files:
        connection = http.client.HTTPConnection(config.console.here, config.console.port, timeout=_TIMEOUT)
        try:
            body, content_type = _form(path.read_bytes(), "" if modality is Modality.OTHER else modality.value)
            headers = {"Content-Type": content_type, "Authorization": f"Bearer {token}"}
            connection.request("POST", "/api/captures", body=body, headers=headers)
            answer = msgspec.json.decode(connection.getresponse().read(), type=_Answer)
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            yield Added(path, f"not kept: the running daemon's console did not take it ({error})", kept=False)
            continue
        finally:
            connection.close()
        if answer.capture_id:
            words = _words(answer.capture_id, duplicate=answer.duplicate, conflict=answer.conflict)
            yield Added(path, words, kept=True)
        else:
            yield Added(path, f"not kept: {answer.error}", kept=False)


def _form(data: bytes, modality: str) -> tuple[bytes, str]:
    """The file as ``multipart/form-data`` (RFC 7578), and the content type; its name stays here."""
    boundary = uuid.uuid4().hex
    fields = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="modality"\r\n\r\n{modality}\r\n' if modality else ""
    )
    head = (
        f'{fields}--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + data + f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _words(capture_id: str, *, duplicate: bool, conflict: bool) -> str:
    if duplicate:
        return f"already kept as {capture_id}"
    return f"kept as {capture_id}" + ("; another file has the same instance UID, both are kept" if conflict else "")
