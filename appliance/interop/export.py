"""Captures as files without their patients, in a folder: for teaching, research, a second opinion.

What this module keeps true: a file's name is made of pseudonyms only and it has that name once it is whole; what can't be
cleaned is named with its reason and not written; nothing changes on the box.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

from typing_extensions import Self

from appliance.config import Config
from appliance.interop.deidentify import Withheld
from appliance.interop.outgoing import cleaned, hidden, options_of
from appliance.records import Capture, Reading
from appliance.store.attachments import Attachments, within
from appliance.store.captures import Captures
from appliance.store.errors import StoreError
from appliance.store.files import RealFiles
from appliance.store.journal import Reader
from appliance.store.keys import key_file, open_key
from appliance.store.patients import Patients
from appliance.store.vault import Vault

_SUFFIX = {"application/dicom": ".dcm", "audio/flac": ".flac"}


class Written(NamedTuple):
    """One capture: its row in the index, or why it is not there."""

    capture_id: str
    row: tuple[str, ...] = ()
    withheld: str = ""


class Exporter:
    """Reads beside a running daemon, or without one. Use as a context; raises ``StoreError``, ``ProfileError``."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "file",
        "patient",
        "modality",
        "status",
        "triage",
        "findings",
        "refused",
        "bundle",
        "version",
    )

    def __init__(self, config: Config) -> None:
        folder = config.state
        if not key_file(folder).exists():
            raise StoreError(f"{folder}: nothing was ever kept here; name the daemon's configuration with --config")
        self._options = options_of(config.deidentify)
        self._key = open_key(folder, RealFiles())
        self._reader = Reader(folder / "journal.sqlite")
        self._captures = Captures(self._reader, self._key)
        self._attachments, self._patients = Attachments(self._reader), Patients(self._reader, self._key)
        self._vault = Vault(folder / "vault", self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def write(self, folder: Path, only: Iterable[str] = ()) -> Iterator[Written]:
        """Write the captures (all, or ``only`` these) and say of each what became of it."""
        chosen = list(only) or [row["id"] for row in self._reader.all("SELECT id FROM capture ORDER BY sequence")]
        for capture_id in chosen:
            try:
                yield self._one(folder, capture_id)
            except StoreError as error:
                yield Written(capture_id, withheld=str(error))

    def _one(self, folder: Path, capture_id: str) -> Written:
        capture = self._confirmed(self._captures.get(capture_id).capture)
        if not self._vault.has(capture.sha256):
            return Written(capture_id, withheld="its file was removed from the box after it was delivered")
        try:
            clean = cleaned(capture, self._vault.read(capture.sha256), self._key.blind, self._options)
        except Withheld as error:
            return Written(capture_id, withheld=str(error))
        told = hidden(capture, self._key.blind, self._options)
        name = self._key.blind(f"file\0{capture_id}")[:16] + _SUFFIX[clean.media_type]
        whose = told.patient.id or "unknown"
        target = folder / whose / name
        target.parent.mkdir(exist_ok=True)
        part = target.with_name(f"{name}.part")
        part.write_bytes(clean.data)
        part.replace(target)
        return Written(
            capture_id, row=(f"{whose}/{name}", whose, *_answer(capture, self._captures.reading(capture_id)))
        )

    def _confirmed(self, capture: Capture) -> Capture:
        """The capture with the patient whom a person confirmed, who goes before what the sender said."""
        word = self._attachments.current(capture.id)
        visit = self._patients.visit(word.visit) if word is not None and word.visit else None
        return within(capture, visit, word)


def _answer(capture: Capture, reading: Reading | None) -> tuple[str, ...]:
    if reading is None:
        return (capture.modality.value, "waiting", "", "", "", "", "")
    found = " ".join(f"{one.id}={one.probability:.3f}{'+' if one.positive else ''}" for one in reading.findings)
    refused = reading.refusal.code if reading.refusal else ""
    said = (reading.status, reading.triage.value, found, refused, reading.bundle, reading.bundle_version)
    return (capture.modality.value, *said)
