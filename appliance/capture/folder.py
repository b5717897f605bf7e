"""The folder door: files put into the watched folder, or found on a stick mounted there, are taken.

What this module keeps true: a file is taken only when its size, its identity and its SHA-256 are the same twice, ``settle``
seconds of the monotonic clock apart (names and times of files decide nothing); it is removed only after ``keep`` has
returned; from a medium that can't be written it is only read, and remembered. What is not taken is left where it is, counted,
logged without its name, and listed in ``refused`` with its reason. Pulling the medium at any time loses and keeps nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import structlog
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from appliance.capture.facts import FOLDERS, FileReader, UnknownKind, media_type_of
from appliance.capture.header import NotDicom
from appliance.capture.intake import Intake, IntakeError, StoreFull
from appliance.config import FolderConfig
from appliance.records import Modality

_BLOCK = 1 << 20
_RESCAN = 30.0
_RETRY = 30.0
_UNDER_WAY = (".part", ".partial", ".tmp", ".temp", ".filepart", ".crdownload", ".download", ".swp")
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_ZIP_MEMBERS = 20_000
_ZIP_MEMBER = 1 << 30
_REFUSED_LISTED = 1000
_log = structlog.get_logger(__name__)

Identity = tuple[int, int, int, int]


class NotTaken(NamedTuple):
    """A file that was left in the folder, and why."""

    path: Path
    reason: str


class _Seen(NamedTuple):
    identity: Identity
    digest: bytes
    due: float


class _Changed(Exception):  # noqa: N818 - no error: the file is still being written
    """The file is not what it was when it was first looked at."""


class FolderDoor:
    """Takes files from ``start`` to ``stop``. ``counts`` says what happened, by cause."""

    def __init__(self, config: FolderConfig, intake: Intake) -> None:
        self._folder = Path(config.path)
        self._settle = config.settle
        self._intake = intake
        self._lock = threading.Condition()
        self._counts: Counter[str] = Counter()
        self._seen: dict[Path, _Seen | None] = {}
        self._done: dict[Path, tuple[Identity, str]] = {}
        self._rescan_due = 0.0
        self._stopping = False
        self._watched: tuple[int, int] | None = None
        self._observer = Observer()
        self._thread = threading.Thread(target=self._run, name="folder-door", daemon=True)

    @property
    def counts(self) -> Counter[str]:
        """A copy: ``kept``, ``duplicate``, ``conflict``, ``vanished``, ``errors``, ``refused-…``."""
        with self._lock:
            return self._counts.copy()

    @property
    def refused(self) -> tuple[NotTaken, ...]:
        """The files that were left in the folder, each with its reason (for the console: names may name a patient)."""
        with self._lock:
            listed = [NotTaken(path, reason) for path, (_, reason) in self._done.items() if reason]
        return tuple(listed[:_REFUSED_LISTED])

    def start(self) -> None:
        """Look through the folder and begin to watch it; raises ``OSError`` when it can't be made."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._observer.start()
        self._thread.start()

    def stop(self) -> None:
        """End; a file being read is finished or left."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        self._observer.stop()
        self._observer.join()
        self._thread.join()

    def notice(self, path: Path | None) -> None:
        """Something happened to ``path`` (None: look through everything)."""
        with self._lock:
            if path is None:
                self._rescan_due = 0.0
            else:
                self._seen.setdefault(path, None)
            self._lock.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                due = min((seen.due if seen else 0.0 for seen in self._seen.values()), default=self._rescan_due)
                wait = min(due, self._rescan_due) - time.monotonic()
                if wait > 0 and not self._stopping:
                    self._lock.wait(wait)
                if self._stopping:
                    return
                now = time.monotonic()
                scan = now >= self._rescan_due
                ready = [path for path, seen in self._seen.items() if seen is None or now >= seen.due]
            try:
                if scan:
                    self._rescan_due = now + _RESCAN
                    self._scan()
                for path in ready:
                    self._visit(path)
            except Exception as error:  # noqa: BLE001 - the edge of this thread: one odd file must not close the door
                self._count("errors")
                _log.error("folder door", cause=type(error).__name__)
                with self._lock:
                    self._seen.clear()
                    self._rescan_due = time.monotonic() + _RESCAN

    def _count(self, cause: str) -> None:
        with self._lock:
            self._counts[cause] += 1

    def _scan(self) -> None:
        self._watch()
        found = set(_files(self._folder))
        with self._lock:
            for path in self._done.keys() - found:
                del self._done[path]
            for path in found:
                self._seen.setdefault(path, None)

    def _watch(self) -> None:
        """(Re)place the watch: a stick pulled and put back is another folder under the same name."""
        try:
            now = self._folder.stat()
        except OSError:
            if self._watched is not None:
                _log.warning("the watched folder is gone; waiting for it to come back")
            self._watched = None
            return
        if (now.st_dev, now.st_ino) == self._watched:
            return
        self._observer.unschedule_all()
        try:
            self._observer.schedule(_Handler(self), str(self._folder), recursive=True)
            self._watched = (now.st_dev, now.st_ino)
        except OSError as error:
            _log.warning(
                "the folder can't be watched; it is looked through instead", cause=error.strerror, every=_RESCAN
            )

    def _visit(self, path: Path) -> None:
        """Look at one file: wait for it to settle, then take it."""
        try:
            identity = _identity(path)
        except OSError:
            self._forget(path)
            return
        with self._lock:
            seen, done = self._seen.get(path), self._done.get(path)
        if done is not None and done[0] == identity:
            self._forget(path)
            return
        if path.name.lower().endswith(_UNDER_WAY) or path.name.startswith("."):
            self._leave(path, identity, "junk", "a temporary or hidden name: it may still be under way")
            return
        try:
            if seen is not None and seen.identity == identity and seen.digest:
                self._take(path, seen)
                return
            # A file that keeps growing is not hashed again and again: only once it has stood still for a while.
            still = seen is None or seen.identity == identity
            digest = _digest(path) if still else b""
            self._postpone(path, _Seen(identity, digest, time.monotonic() + self._settle))
        except _Changed:
            self._postpone(path, _Seen(identity, b"", time.monotonic() + self._settle))
        except UnknownKind as error:
            self._leave(path, identity, "junk", str(error))
        except NotDicom as error:
            self._leave(path, identity, "broken", str(error))
        except IntakeError as error:
            self._count("refused-full" if isinstance(error, StoreFull) else "refused-store")
            _log.warning("file not taken now; tried again later", cause=str(error))
            self._postpone(path, _Seen(identity, b"", time.monotonic() + _RETRY))
        except OSError as error:
            self._count("vanished")
            _log.warning("a file could not be read to its end", cause=error.strerror)
            self._forget(path)

    def _postpone(self, path: Path, seen: _Seen) -> None:
        with self._lock:
            self._seen[path] = seen

    def _forget(self, path: Path) -> None:
        with self._lock:
            self._seen.pop(path, None)

    def _leave(self, path: Path, identity: Identity, cause: str, reason: str) -> None:
        self._count(f"refused-{cause}")
        _log.warning("file left in the folder", cause=reason, kind=path.suffix.lower()[:8], size=identity[0])
        with self._lock:
            self._done[path] = (identity, reason)
            self._seen.pop(path, None)

    def _take(self, path: Path, seen: _Seen) -> None:
        self._intake.room(seen.identity[0])
        with _opened(path) as file:
            kind = media_type_of(file.read(256))
            file.seek(0)
            if kind == "application/zip":
                if _hash(file) != seen.digest:
                    raise _Changed
                self._take_zip(file, path.parent)
            else:
                self._keep(file, path, seen.digest)
        try:
            path.unlink()
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            with self._lock:
                self._done[path] = (seen.identity, "")
        self._forget(path)

    def _keep(self, file: IO[bytes], path: Path, digest: bytes | None) -> None:
        """Stream one file into the vault; raises ``_Changed`` when its hash is not ``digest``."""
        reader = FileReader("folder", self._modality(path))
        found = hashlib.sha256()
        with self._intake.open() as incoming:
            while block := file.read(_BLOCK):
                found.update(block)
                reader.feed(block)
                incoming.write(block)
            if digest is not None and found.digest() != digest:
                raise _Changed
            kept = incoming.keep(reader.finish())
        self._count("conflict" if kept.conflict else "duplicate" if kept.duplicate else "kept")

    def _take_zip(self, file: IO[bytes], folder: Path) -> None:
        """Keep every member the box takes; raises ``NotDicom`` if any is broken or there is none."""
        taken = 0
        try:
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                if len(members) > _ZIP_MEMBERS:
                    raise NotDicom(f"the zip file holds more than {_ZIP_MEMBERS} files; unpack it")
                for member in members:
                    if member.file_size > _ZIP_MEMBER:
                        raise NotDicom("the zip file holds a file of more than 1 GB; unpack it")
                    self._intake.room(member.file_size)
                    with archive.open(member) as part, contextlib.suppress(UnknownKind):
                        self._keep(part, folder / member.filename, None)
                        taken += 1
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise NotDicom(f"the zip file can't be unpacked ({error})") from error
        if not taken:
            raise UnknownKind("the zip file holds nothing the box takes")

    def _modality(self, path: Path) -> Modality:
        """From the nearest folder named after a modality; for files that can't say themselves."""
        return next((FOLDERS[part] for part in reversed(path.parts[:-1]) if part in FOLDERS), Modality.OTHER)


class _Handler(FileSystemEventHandler):
    def __init__(self, door: FolderDoor) -> None:
        self._door = door

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Pass on that a file was closed after writing, renamed or linked here."""
        if event.event_type in {"created", "moved", "closed"}:
            path = os.fsdecode(event.dest_path if event.event_type == "moved" else event.src_path)
            self._door.notice(None if event.is_directory else Path(path))


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(where, name)


def _identity(path: Path) -> Identity:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        yield file


def _digest(path: Path) -> bytes:
    with _opened(path) as file:
        return _hash(file)


def _hash(file: IO[bytes]) -> bytes:
    found = hashlib.sha256()
    while block := file.read(_BLOCK):
        found.update(block)
    file.seek(0)
    return found.digest()
