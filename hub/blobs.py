"""The blob store: pieces are put into a part file at their offset, a verified whole lies under its SHA-256.

What this module keeps true: no name from the wire reaches a path (only hexadecimal digits that were checked); what
``write`` was given is durable when it returns; a file under a content's name always has that content, because it gets
there only by ``finish`` and ``adopt``: hash, rename, fsync of the folder. The folder may be shared by workers on several
machines.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

_HEX = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")


class BlobStore:
    """Files below one folder: ``parts/<transfer>.part``, ``<aa>/<sha256>`` and ``derived/<name>``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = folder / "parts"

    def open(self) -> None:
        """Make the folders; raises ``OSError``."""
        self.parts.mkdir(parents=True, exist_ok=True)

    def free(self) -> int:
        """Bytes that are free where the blobs lie."""
        return shutil.disk_usage(self.folder).free

    def path(self, sha256: str) -> Path:
        """Where the content with this hash lies, or would lie."""
        return self.folder / _checked(sha256)[:2] / sha256

    def part(self, transfer: str) -> Path:
        """Where the pieces of a transfer (``blob:…``) are put together."""
        return self.parts / f"{_checked(transfer.removeprefix('blob:'))}.part"

    def part_size(self, transfer: str) -> int:
        """How long the part file is; 0 when there is none."""
        try:
            return self.part(transfer).stat().st_size
        except FileNotFoundError:
            return 0

    def write(self, transfer: str, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Put ``pieces`` (offset in bytes, data) into the part file; durable on return. Raises ``OSError``."""
        path = self.part(transfer)
        new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            for offset, data in pieces:
                _write_all(descriptor, data, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            _fsync_folder(self.parts)

    def finish(self, transfer: str, sha256: str, total: int) -> bool:
        """Verify the whole and give it its content's name; False (and no part file) when the hash does not match.

        May be called again after a crash, or by two workers at once: a content that is already there stays as it is.
        """
        part, final = self.part(transfer), self.path(sha256)
        try:
            good = part.stat().st_size == total and _sha256(part) == sha256
        except FileNotFoundError:  # another worker was quicker, or a crash came after the rename
            return final.exists() and final.stat().st_size == total
        if not good:
            part.unlink(missing_ok=True)
            return False
        if not final.parent.is_dir():
            final.parent.mkdir(exist_ok=True)
            _fsync_folder(self.folder)
        with contextlib.suppress(FileNotFoundError):  # another worker was quicker
            part.chmod(0o440)
            part.replace(final)
        _fsync_folder(final.parent)
        return True

    def adopt(self, file: Path, sha256: str) -> None:
        """Give a file on this file system, whose content has this hash, its content's name; durable on return."""
        final = self.path(sha256)
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not final.parent.is_dir():
            final.parent.mkdir(exist_ok=True)
            _fsync_folder(self.folder)
        file.chmod(0o440)
        file.replace(final)
        _fsync_folder(final.parent)

    def drop(self, sha256: str) -> None:
        """Remove a content that nothing refers to."""
        self.path(sha256).unlink(missing_ok=True)

    def stored(self) -> Iterator[str]:
        """The hashes of everything that lies here whole."""
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            yield from (path.name for path in folder.iterdir() if _HEX.fullmatch(path.name))

    def part_ids(self) -> Iterator[str]:
        """The transfers that have a part file."""
        yield from (f"blob:{path.stem}" for path in self.parts.glob("*.part") if _HEX.fullmatch(path.stem))

    def discard(self, transfer: str) -> None:
        """Remove the part file, if there is one."""
        self.part(transfer).unlink(missing_ok=True)


def _checked(digits: str) -> str:
    if not _HEX.fullmatch(digits):
        raise ValueError("not a SHA-256 or the id of a transfer")
    return digits


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
