"""A file system for the store that loses power, or runs full, at the n-th operation.

What survives a power cut is what a POSIX disk owes: bytes written before their ``sync``, names that the folder held at its
last ``sync_folder``. Everything younger is dropped (the harshest reading: nothing unsynced survives).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from appliance.store.files import OpenFile, RealFiles


class PowerCut(BaseException):
    """The power is gone: nothing after this line happens."""


class _Unsynced:
    """A real file whose unsynced tail is cut off by a power cut."""

    def __init__(self, files: CrashingFiles, path: Path) -> None:
        self.files, self.path = files, path
        self.inner: OpenFile = files.real.create(path)
        self.written = self.synced = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.files.operation()
        self.inner.write(data)
        self.written += len(data)

    def sync(self) -> None:
        self.files.operation()
        self.synced = self.written

    def close(self) -> None:
        if not self.files.dead:
            self.inner.close()


class CrashingFiles:
    """``RealFiles`` with a fuse: the ``at``-th operation fails with ``error`` or, without one, cuts the power."""

    def __init__(self, at: int, error: int | None = None) -> None:
        self.real = RealFiles()
        self.at, self.error = at, error
        self.count = 0
        self.dead = False
        self._opened: dict[Path, _Unsynced] = {}
        self._renamed: list[tuple[Path, Path, bytes | None]] = []
        self._removed: list[tuple[Path, bytes]] = []

    def operation(self) -> None:
        self.count += 1
        if self.count == self.at:
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            self._cut()

    def create(self, path: Path) -> OpenFile:
        self.operation()
        file = _Unsynced(self, path)
        self._opened[path] = file
        return file

    def replace(self, source: Path, target: Path) -> None:
        self.operation()
        before = target.read_bytes() if target.exists() else None
        self._renamed.append((source, target, before))
        self.real.replace(source, target)
        if source in self._opened:
            self._opened[target] = self._opened.pop(source)
            self._opened[target].path = target

    def sync_folder(self, path: Path) -> None:
        self.operation()
        self._renamed = [entry for entry in self._renamed if entry[1].parent != path]
        self._removed = [entry for entry in self._removed if entry[0].parent != path]

    def remove(self, path: Path) -> None:
        self.operation()
        if path.exists():
            self._removed.append((path, path.read_bytes()))
        self.real.remove(path)

    def make_folder(self, path: Path) -> None:
        self.operation()
        self.real.make_folder(path)

    def make_folders(self, parent: Path, names: Iterable[str]) -> None:
        self.operation()
        self.real.make_folders(parent, names)

    def free(self, path: Path) -> int:
        return self.real.free(path)

    def _cut(self) -> None:
        self.dead = True
        for source, target, before in reversed(self._renamed):
            if before is None:
                target.rename(source)
            else:
                target.write_bytes(before)
            if target in self._opened:
                self._opened[source] = self._opened.pop(target)
                self._opened[source].path = source
        for path, content in self._removed:
            path.write_bytes(content)
        for file in self._opened.values():
            if file.path.exists():
                os.truncate(file.path, file.synced)
        raise PowerCut
