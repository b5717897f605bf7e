"""A bundle as it is handed over, in a folder or a zip: opened with suspicion.

What this module keeps true: nothing is written before the description's signature was judged; then only the files that the
description names are written, each under its own name inside the target, none larger than allowed, each with the SHA-256
that the description says. A zip with a path that leads outside, a link, a name twice, or more in it than a bundle
can hold is refused as a whole.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from appliance.inference.bundle import DESCRIPTION, BundleError, Description, described
from appliance.inference.signature import SIGNATURE

MOST_BYTES = 1 << 30
"""Of all files of a bundle together."""
MOST_FILES = 1000
_MOST_WORDS = 4 << 20
_SIGNATURE_BYTES = 64
_BLOCK = 1 << 20

_REFUSE = "it was not made by a friend, or damaged on the way: get it again from its maker"


class _Source(Protocol):
    def open(self, name: str) -> IO[bytes]: ...

    def has(self, name: str) -> bool: ...


class _Folder:
    """A bundle's folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, name: str) -> bool:
        return (self._root / name).exists()

    def open(self, name: str) -> IO[bytes]:
        path = self._root / name
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise BundleError(f"{path}: lies outside the bundle; files of a bundle stay in its folder")
        return path.open("rb")


class _Zip:
    """A zip of a bundle: its files at the top, or all in one folder."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive = archive
        self._names: dict[str, zipfile.ZipInfo] = {}
        entries = archive.infolist()
        if len(entries) > MOST_FILES:
            raise BundleError(f"{path}: holds {len(entries)} entries, a bundle has at most {MOST_FILES}; {_REFUSE}")
        for entry in entries:
            _harmless(entry, path)
            if entry.filename in self._names:
                raise BundleError(f"{path}: holds {entry.filename!r} twice; {_REFUSE}")
            self._names[entry.filename] = entry
        tops = [name for name in self._names if PurePosixPath(name).name == DESCRIPTION and name.count("/") <= 1]
        self._prefix = tops[0].removesuffix(DESCRIPTION) if len(tops) == 1 else ""

    def has(self, name: str) -> bool:
        return self._prefix + name in self._names

    def open(self, name: str) -> IO[bytes]:
        try:
            return self._archive.open(self._names[self._prefix + name])
        except KeyError as error:
            raise FileNotFoundError(2, "No such file in the zip", name) from error


def unpack(source: Path, target: Path, vouch: Callable[[bytes, bytes, Path], object]) -> Description:
    """Write the bundle in ``source`` (a folder or a zip) to ``target``, an empty folder.

    Args:
        source: What was handed over.
        target: Where its files go, each durable.
        vouch: Gets the description, its signature (empty: none) and ``source``; raises when the bundle may not be trusted.

    Raises:
        BundleError: It is not trusted, hostile, incomplete or changed; what is in ``target`` is to be removed.
        OSError: The target can't be written.
    """
    with _opened(source) as files:
        words = _small(files, DESCRIPTION, _MOST_WORDS, source)
        signed = _small(files, SIGNATURE, _SIGNATURE_BYTES, source) if files.has(SIGNATURE) else b""
        vouch(words, signed, source)
        description = described(words, source / DESCRIPTION)
        _write(target / DESCRIPTION, iter([words]))
        if signed:
            _write(target / SIGNATURE, iter([signed]))
        left = MOST_BYTES
        for name, sha256 in description.files.items():
            if not _stays_inside(name):
                raise BundleError(f"{source}: names {name!r}, which leads outside the bundle; {_REFUSE}")
            left -= _copy(files, name, sha256, target, left, source)
    return description


@contextmanager
def _opened(source: Path) -> Iterator[_Source]:
    if source.is_dir():
        yield _Folder(source)
        return
    try:
        with zipfile.ZipFile(source) as archive:
            yield _Zip(archive, source)
    except FileNotFoundError as error:
        raise BundleError(f"{source}: is not there; give the bundle's folder or zip") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise BundleError(f"{source}: is no zip that can be read ({error}); get it again from its maker") from error


def _harmless(entry: zipfile.ZipInfo, path: Path) -> None:
    mode = entry.external_attr >> 16
    if not _stays_inside(entry.filename.rstrip("/")):
        raise BundleError(f"{path}: the path {entry.filename!r} leads outside the bundle; {_REFUSE}")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BundleError(f"{path}: {entry.filename!r} is a link or a device, not a file; {_REFUSE}")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(
            f"{path}: {entry.filename!r} is packed in a way that isn't unpacked here; pack it with zip -r"
        )
    if entry.flag_bits & 1:
        raise BundleError(f"{path}: {entry.filename!r} is encrypted; unpack it and install the folder")


def _stays_inside(name: str) -> bool:
    parts = name.split("/")
    return bool(name) and "\\" not in name and "\0" not in name and ":" not in name and not set(parts) & {"", ".", ".."}


def _small(files: _Source, name: str, most: int, source: Path) -> bytes:
    try:
        with files.open(name) as file:
            data = file.read(most + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{source}: has no {name}; a bundle is a folder, or a zip of one, with {name}") from error
    if len(data) > most:
        raise BundleError(f"{source}: {name} is longer than {most} bytes; {_REFUSE}")
    return data


def _copy(files: _Source, name: str, sha256: str, target: Path, left: int, source: Path) -> int:
    """Write a file and check its hash; its length in bytes."""
    digest, length = hashlib.sha256(), 0
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)

    def blocks() -> Iterator[bytes]:
        nonlocal length
        with files.open(name) as file:
            while block := file.read(_BLOCK):
                length += len(block)
                if length > left:
                    raise BundleError(f"{source}: unpacks to more than {MOST_BYTES >> 20} MB; {_REFUSE}")
                digest.update(block)
                yield block

    try:
        _write(path, blocks())
    except FileNotFoundError as error:
        raise BundleError(
            f"{source}: {name} is named in {DESCRIPTION} but is not there; get the bundle again"
        ) from error
    if digest.hexdigest() != sha256:
        raise BundleError(
            f"{source}: {name} has sha256 {digest.hexdigest()[:12]}…, {DESCRIPTION} says {sha256[:12]}…; "
            "it was changed or damaged, get the bundle again"
        )
    return length


def _write(path: Path, blocks: Iterator[bytes]) -> None:
    with path.open("xb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
