"""What was derived on this box, kept by content: CPU forms, ``.ort`` files, TensorRT plans, timing caches.

What this module keeps true: an artefact is found only under the exact facts it was made from (model, versions, device), and
only if its bytes still have the SHA-256 written beside it; anything else is removed and made again. An artefact appears
whole, by rename. The folder never grows beyond its limit: what was used longest ago goes first. Nothing here is precious:
the folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

LIMIT_BYTES = 2 * 1024**3
_FACTS = "facts.json"
_PARTIAL = ".partial-"
_ABANDONED_S = 24 * 3600.0


class Artefact(msgspec.Struct, frozen=True):
    """A file in the cache, its SHA-256 and the facts it was made from."""

    path: Path
    sha256: str
    facts: dict[str, str]


class _Sidecar(msgspec.Struct, frozen=True):
    file: str
    sha256: str
    facts: dict[str, str]


class Cache:
    """A folder of artefacts, one sub-folder each, named after kind and facts."""

    def __init__(self, root: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.root = root
        self._limit = limit_bytes

    def folder(self, facts: Mapping[str, str]) -> Path:
        """Where an artefact made from ``facts`` lies; ``facts["kind"]`` begins its name."""
        text = msgspec.json.encode(sorted(facts.items()))
        return self.root / f"{facts['kind']}-{hashlib.sha256(text).hexdigest()[:24]}"

    def get(self, facts: Mapping[str, str]) -> Artefact | None:
        """The artefact made from exactly these facts, its hash checked; one that is damaged is removed."""
        folder = self.folder(facts)
        try:
            sidecar = msgspec.json.decode((folder / _FACTS).read_bytes(), type=_Sidecar)
            path = folder / sidecar.file
            actual = digest(path)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError):
            self._remove(folder)
            return None
        if sidecar.facts != dict(facts) or actual != sidecar.sha256:
            self._remove(folder)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        return Artefact(path=path, sha256=actual, facts=sidecar.facts)

    def put(self, facts: Mapping[str, str], name: str, write: Callable[[Path], object]) -> Artefact:
        """Make an artefact: ``write`` gets the path of a file ``name`` to create; it is kept when ``write`` returns.

        Raises:
            OSError: The folder can't be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.root))
        try:
            write(partial / name)
            _sync(partial / name)
            sha256 = digest(partial / name)
            sidecar = _Sidecar(file=name, sha256=sha256, facts=dict(facts))
            (partial / _FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(sidecar), indent=1))
            _sync(partial / _FACTS)
            folder = self.folder(facts)
            self._remove(folder)
            partial.rename(folder)
        except BaseException:
            self._remove(partial)
            raise
        self.trim(keep=folder)
        return Artefact(path=folder / name, sha256=sha256, facts=dict(facts))

    def drop(self, artefact: Artefact) -> None:
        """Remove an artefact that was refused, so that it is never loaded again."""
        self._remove(artefact.path.parent)

    def drop_facts(self, facts: Mapping[str, str]) -> None:
        """Remove what was made from ``facts``, whatever it is now."""
        self._remove(self.folder(facts))

    def trim(self, keep: Path | None = None) -> int:
        """Remove what was used longest ago until the folder is within its limit; returns the bytes that remain."""
        folders = []
        for path in self.root.iterdir():
            if not path.is_dir():
                continue
            if not path.name.startswith(_PARTIAL):
                folders.append(path)
            elif time.time() - path.stat().st_mtime > _ABANDONED_S:
                self._remove(path)
        sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in folders}
        total = sum(sizes.values())
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime):
            if total <= self._limit:
                break
            if folder != keep:
                self._remove(folder)
                total -= sizes[folder]
        return total

    @staticmethod
    def _remove(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
