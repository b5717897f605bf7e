"""What a program did to a folder, system call by system call, and what a power cut at any of them would have left.

``record`` runs a program under ``strace``; ``Disk`` replays its operations. Of what was not synced (``fsync`` or
``fdatasync`` of the file; of the folder, for names) a power cut may leave all, nothing, or any sectors: see ``Cut``. The
shared-memory index of SQLite is left out: it is rebuilt from the WAL, nothing is ever recovered from it.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

SECTOR = 512
_CALLS = "openat,write,pwrite64,fsync,fdatasync,ftruncate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,close"
_IGNORED = ("-shm", "/lock", "/reserve")

Kind = Literal["create", "write", "truncate", "begin", "sync", "folder", "rename", "unlink", "mkdir", "said"]
Cut = Literal["all", "synced", "torn", "scattered"]


class Operation(NamedTuple):
    """One change; ``path`` is relative to the recorded folder. ``number``: an offset, a length or which sync it was."""

    kind: Kind
    path: str
    data: bytes = b""
    number: int = 0
    other: str = ""


def strace_runs() -> bool:
    """Whether programs can be recorded here (``strace`` is there and the kernel allows it)."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


def record(module: str, folder: Path, log: Path) -> list[Operation]:
    """Run ``python -m module FOLDER/box FOLDER/said`` and list what it did to ``FOLDER/box`` and what it said."""
    command = ["strace", "-f", "-y", "-xx", "-s", "16777216", "-e", f"trace={_CALLS}", "-o", str(log)]
    run = [*command, sys.executable, "-m", module, str(folder / "box"), str(folder / "said")]
    subprocess.run(run, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    with log.open(encoding="ascii") as lines:
        return list(_operations(lines, f"{folder}/box", f"{folder}/said"))


_UNFINISHED, _RESUMED = re.compile(r"(.*) <unfinished \.\.\.>$"), re.compile(r"<\.\.\. \w+ resumed>(.*)")
_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)(?:<([^>]*)>)?.*$")
_FD = re.compile(r"(\d+)<([^>]*)>")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def _operations(lines: Iterator[str], folder: str, said: str) -> Iterator[Operation]:
    pending: dict[str, tuple[str, int]] = {}
    positions: dict[str, int] = {}
    known: set[str] = set()
    for number, line in enumerate(lines):
        thread, _, call = line.rstrip("\n").partition(" ")
        call = call.lstrip()
        begun = number
        if (match := _UNFINISHED.match(call)) is not None:
            pending[thread] = match[1], number
            yield from _begin(match[1], number, folder)
            continue
        if (match := _RESUMED.match(call)) is not None:
            first, begun = pending.pop(thread)
            call = first + match[1]
        elif call.startswith(("fsync", "fdatasync")):
            yield from _begin(call, number, folder)
        if (match := _CALL.match(call)) is None or int(match[3]) < 0:
            continue
        for operation in _operation(match[1], match[2], int(match[3]), _plain(match[4] or ""), positions, begun):
            if operation.path == said and operation.kind == "write":
                yield operation._replace(kind="said", path="")
            inside = operation.path.startswith(folder + "/") or operation.path == folder
            if not inside or operation.path.endswith(_IGNORED):
                continue
            if operation.kind == "create" and (operation.path in known or operation.path == folder):
                continue
            known.add(operation.path)
            if operation.kind in ("unlink", "rename"):
                known.discard(operation.path)
                known.add(operation.other)
            yield operation._replace(path=_relative(operation.path, folder), other=_relative(operation.other, folder))


def _begin(call: str, number: int, folder: str) -> Iterator[Operation]:
    match = _FD.search(call)
    if call.startswith(("fsync", "fdatasync")) and match is not None and _plain(match[2]).startswith(folder + "/"):
        yield Operation("begin", _relative(_plain(match[2]), folder), number=number)


def _operation(
    name: str, arguments: str, result: int, opened: str, positions: dict[str, int], begun: int
) -> Iterator[Operation]:
    strings = [_plain_bytes(one) for one in _STRING.findall(arguments)]
    descriptor = _FD.search(arguments)
    path = _plain(descriptor[2]) if descriptor else ""
    if name == "openat":
        positions[opened] = 0
        if "O_CREAT" in arguments:
            yield Operation("create", opened)
        if "O_TRUNC" in arguments:
            yield Operation("truncate", opened)
    elif name == "write":
        yield Operation("write", path, strings[0][:result], positions.get(path, 0))
        positions[path] = positions.get(path, 0) + result
    elif name == "pwrite64":
        yield Operation("write", path, strings[0][:result], int(arguments.rsplit(", ", 1)[1]))
    elif name == "ftruncate":
        yield Operation("truncate", path, number=int(arguments.rsplit(", ", 1)[1]))
    elif name in ("fsync", "fdatasync"):
        yield Operation("sync", path, number=begun)
    elif name.startswith("rename"):
        yield Operation("rename", strings[0].decode(), other=strings[1].decode())
    elif name.startswith("unlink"):
        yield Operation("unlink", strings[0].decode())
    elif name.startswith("mkdir"):
        yield Operation("mkdir", strings[0].decode())


def _plain_bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _plain(escaped: str) -> str:
    return _plain_bytes(escaped).decode() if escaped.startswith("\\x") else escaped


def _relative(path: str, folder: str) -> str:
    return path[len(folder) + 1 :] if path.startswith(folder + "/") else ""


class _Inode:
    """A file's bytes now, those that were synced, and what was written since."""

    def __init__(self) -> None:
        self.now = bytearray()
        self.synced = b""
        self.since: list[tuple[int, bytes]] = []
        self.begun: dict[int, tuple[bytes, int]] = {}

    def write(self, offset: int, data: bytes) -> None:
        _write(self.now, offset, data)
        self.since.append((offset, data))

    def sync(self, number: int) -> None:
        """What was there when the sync began is on the disk now."""
        self.synced, count = self.begun.pop(number)
        del self.since[:count]
        self.begun = {one: (content, max(0, before - count)) for one, (content, before) in self.begun.items()}


def _write(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class Disk:
    """The folder as the running program sees it, and as a power cut would leave it."""

    def __init__(self) -> None:
        self.names: dict[str, _Inode | None] = {}
        self.durable: dict[str, _Inode | None] = {}
        self.unsynced: list[tuple[Operation, _Inode | None]] = []
        self.last: Operation | None = None

    def apply(self, operation: Operation) -> None:
        """Do one operation."""
        kind, path = operation.kind, operation.path
        self.last = operation
        if kind in ("create", "mkdir", "rename", "unlink"):
            made = _Inode() if kind == "create" else None
            _rename(self.names, operation, made)
            self.unsynced.append((operation, made))
        elif kind == "sync" and (path == "" or self.names.get(path) is None):
            self._sync_folder(path)
        elif kind != "said" and (inode := self.names.get(path)) is not None:
            if kind == "write":
                inode.write(operation.number, operation.data)
            elif kind == "truncate":
                del inode.now[operation.number :]
                inode.since.append((-1, operation.number.to_bytes(8, "big")))
            elif kind == "begin":
                inode.begun[operation.number] = bytes(inode.now), len(inode.since)
            elif kind == "sync":
                inode.sync(operation.number)

    def _sync_folder(self, path: str) -> None:
        """Names in this folder are as they are now; those of others stay as they were."""
        for name in {*self.names, *self.durable}:
            if name.rpartition("/")[0] == path:
                if name in self.names:
                    self.durable[name] = self.names[name]
                else:
                    self.durable.pop(name, None)
        self.unsynced = [one for one in self.unsynced if one[0].path.rpartition("/")[0] != path]

    def left(self, cut: Cut, chance: random.Random, sectors: int = 0) -> dict[str, bytes | None]:
        """What lies there after a power cut: path → content (``None`` for a folder).

        ``torn``: all of it, but of the last write only the first ``sectors`` sectors (negative: only the last ones).
        """
        if cut in ("all", "torn"):
            names = self.names
        else:
            names = dict(self.durable)
            for operation, made in self.unsynced[: chance.randint(0, len(self.unsynced)) if cut == "scattered" else 0]:
                _rename(names, operation, made)
        found: dict[str, bytes | None] = {}
        for name, inode in names.items():
            folder = name.rpartition("/")[0]
            if folder and folder not in names:
                continue
            if inode is None:
                found[name] = None
            elif cut == "synced":
                found[name] = inode.synced
            elif cut == "scattered":
                found[name] = _scattered(inode, chance)
            elif cut == "torn" and self.last is not None and name == self.last.path:
                found[name] = _torn(inode, self.last, sectors)
            else:
                found[name] = bytes(inode.now)
        return found


def _rename(names: dict[str, _Inode | None], operation: Operation, made: _Inode | None) -> None:
    if operation.kind in ("create", "mkdir"):
        names[operation.path] = made
    elif operation.kind == "unlink":
        names.pop(operation.path, None)
    elif operation.path in names:
        names[operation.other] = names.pop(operation.path)


def _torn(inode: _Inode, last: Operation, sectors: int) -> bytes:
    content = bytearray(inode.synced)
    for offset, data in inode.since[:-1]:
        if offset < 0:
            del content[int.from_bytes(data, "big") :]
        else:
            _write(content, offset, data)
    cut = _boundary(last, sectors)
    part = (last.number, last.data[:cut]) if sectors >= 0 else (last.number + cut, last.data[cut:])
    _write(content, *part)
    return bytes(content)


def _boundary(last: Operation, sectors: int) -> int:
    """Bytes of the write up to its ``sectors``-th sector boundary on the disk, from the front or (negative) the back."""
    first = -last.number % SECTOR or SECTOR
    inner = list(range(first, len(last.data), SECTOR))
    index = sectors if sectors >= 0 else len(inner) + sectors
    return ([0, *inner] if sectors >= 0 else [*inner, len(last.data)])[index] if inner else 0


def boundaries(operation: Operation) -> int:
    """How many sector boundaries lie inside a write."""
    first = -operation.number % SECTOR or SECTOR
    return len(range(first, len(operation.data), SECTOR))


def _scattered(inode: _Inode, chance: random.Random) -> bytes:
    """Any sectors of what was written since the last sync."""
    content = bytearray(inode.synced)
    for offset, data in inode.since:
        if offset < 0:
            if chance.random() < 0.5:
                del content[int.from_bytes(data, "big") :]
            continue
        at = 0
        while at < len(data):
            size = min(SECTOR - (offset + at) % SECTOR, len(data) - at)
            if chance.random() < 0.5:
                _write(content, offset + at, data[at : at + size])
            at += size
    return bytes(content)


def lay(found: dict[str, bytes | None], folder: Path) -> None:
    """Write what is left into a fresh folder."""
    folder.mkdir()
    for name in sorted(found):
        content = found[name]
        if content is None:
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(content)
