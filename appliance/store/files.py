"""The one place that writes and fsyncs files.

What this module keeps true: a file appears under its final name only whole and durable (write to a temporary name, fsync,
rename, fsync the folder). Everything above talks to the ``Files`` interface, so that a power cut can be tried at every
single operation (``tests/fault``) and no other module needs to know how durability is made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol


class OpenFile(Protocol):
    """A file being written."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of ``data``."""

    def sync(self) -> None:
        """Return once everything written is on the disk."""

    def close(self) -> None:
        """Close; more than once is allowed."""


class Files(Protocol):
    """What the store needs of a file system. Errors are ``OSError`` as the kernel gave them."""

    def create(self, path: Path) -> OpenFile:
        """Open a new file for writing, mode 0600; it must not exist."""

    def replace(self, source: Path, target: Path) -> None:
        """Rename, replacing the target."""

    def sync_folder(self, path: Path) -> None:
        """Return once the folder's entries are on the disk."""

    def remove(self, path: Path) -> None:
        """Remove a file; one that is not there is no error."""

    def make_folder(self, path: Path) -> None:
        """Make a folder (mode 0700) with its parents and make its entry durable."""

    def make_folders(self, parent: Path, names: Iterable[str]) -> None:
        """Make folders (mode 0700) in one that is there, and make all their entries durable at once."""

    def free(self, path: Path) -> int:
        """Bytes that this program may still write on the file system of ``path``."""


_WRITE_BACK = 1 << 20


class _RealFile:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        if len(data) >= _WRITE_BACK:
            # On Linux this starts the write-back and returns; ``sync`` then finds nearly everything done.
            os.posix_fadvise(self._fd, self._size, len(data), os.POSIX_FADV_DONTNEED)
        self._size += len(data)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def sync_folder(path: Path) -> None:
    """Return once the folder's entries are on the disk; for those who write beside the store. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class RealFiles:
    """The operating system's files."""

    def create(self, path: Path) -> OpenFile:
        """See ``Files``."""
        return _RealFile(path)

    def replace(self, source: Path, target: Path) -> None:
        """See ``Files``."""
        source.replace(target)

    def sync_folder(self, path: Path) -> None:
        """See ``Files``."""
        sync_folder(path)

    def remove(self, path: Path) -> None:
        """See ``Files``."""
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """See ``Files``."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        self.sync_folder(path.parent)

    def make_folders(self, parent: Path, names: Iterable[str]) -> None:
        """See ``Files``."""
        there = set(os.listdir(parent))  # noqa: PTH208 - names are all that is wanted of many
        missing = [name for name in names if name not in there]
        for name in missing:
            with contextlib.suppress(FileExistsError):
                (parent / name).mkdir(mode=0o700)
        if missing:
            self.sync_folder(parent)

    def free(self, path: Path) -> int:
        """See ``Files``."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize


@contextlib.contextmanager
def durable(files: Files, target: Path) -> Iterator[OpenFile]:
    """Write ``target`` whole: the name appears, durably, when the block ends without an error; else nothing remains."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    files.remove(temporary)
    file = files.create(temporary)
    try:
        yield file
        file.sync()
        file.close()
        files.replace(temporary, target)
        files.sync_folder(target.parent)
    except BaseException:
        file.close()
        with contextlib.suppress(OSError):
            files.remove(temporary)
        raise
