"""The vault: encrypted blobs named by the SHA-256 of their content.

What this module keeps true: a blob is in the vault only whole and durable, and reading it gives the very bytes that were
written or ``Damaged``, never something else. Plain bytes never touch the disk: they are encrypted frame by frame as they
arrive.

Format, all integers big-endian: 8 bytes magic, 4 bytes frame size, 60 bytes wrapped key; then frames of AES-256-GCM, each
``frame size`` plain bytes (the last may be shorter, and is the only one when the blob is empty) and 16 bytes tag. The nonce
is the frame's number (8 bytes) and 1 for the last frame else 0 (4 bytes): the STREAM construction (Hoang, Reyhanitabar,
Rogaway, Vizár 2015), so that frames can't be reordered, dropped or cut off; the header is authenticated with each.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.store.errors import Damaged, StoreError
from appliance.store.files import Files, RealFiles
from appliance.store.keys import BoxKey

MAGIC = b"BEDSIDE1"
FRAME = 1 << 20
SPARES = 4
WRITERS = 4
"""Threads at most that seal and write frames while the next ones come."""
_TAG = 16
_HEADER = len(MAGIC) + 4 + 60
_SUFFIX = ".blob"
_PART = ".part"


class Blob(NamedTuple):
    """What was kept: SHA-256 (hex) and size in bytes of the plain content."""

    sha256: str
    size: int


class BlobWriter:
    """Takes bytes as they come; ``finish`` makes them a blob, ``abort`` leaves nothing.

    A full frame is sealed and written by one of the vault's threads while the next one is taken and hashed: one at a time, in
    order. What fits into one frame is the work of the caller's thread alone.
    """

    def __init__(self, vault: Vault, temporary: Path) -> None:
        self._vault = vault
        self._temporary = temporary
        key = os.urandom(32)
        self._cipher = AESGCM(key)
        self._header = MAGIC + struct.pack(">I", FRAME) + vault.key.wrap(key)
        self._hash = hashlib.sha256()
        self._buffers: list[bytearray] = []
        self._plain = memoryview(b"")  # of the frame being taken, ``_filled`` bytes so far
        self._next = memoryview(b"")  # the other one, being written while ``_under_way``
        self._sealed = memoryview(b"")
        self._filled = 0
        self._under_way: Future[None] | None = None
        self._frames = 0
        self._size = 0
        self._file = vault.files.create(temporary)
        self._file.write(self._header)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Add ``data``; returns its length. ``OSError`` (a full disk) leaves the writer to be aborted."""
        self._hash.update(data)  # here and not with the frame: it is done while the sender sends on
        with memoryview(data) as view:
            taken, size = 0, len(view)
            while taken < size:
                if self._filled == len(self._plain):  # no sooner: the last frame is marked, so one is always held back
                    self._turn_over()
                step = min(FRAME - self._filled, size - taken)
                self._plain[self._filled : self._filled + step] = view[taken : taken + step]
                self._filled += step
                taken += step
        self._size += size
        return size

    @property
    def size(self) -> int:
        """Plain bytes taken so far."""
        return self._size

    def finish(self) -> Blob:
        """Make everything written durable under its final name."""
        self._settle()
        self._put(self._plain[: self._filled], last=True)
        blob = Blob(self._hash.hexdigest(), self._size)
        target = self._vault.path(blob.sha256)
        self._give_back()
        self._file.sync()
        self._file.close()
        self._vault.files.make_folder(target.parent)
        self._vault.files.replace(self._temporary, target)
        self._vault.files.sync_folder(target.parent)
        self._vault.written += len(self._header) + self._size + self._frames * _TAG
        return blob

    def abort(self) -> None:
        """Leave nothing behind."""
        if self._under_way is not None:
            wait((self._under_way,))
        self._give_back()
        self._file.close()
        with contextlib.suppress(OSError):  # what can't be removed now is removed by the repair at start
            self._vault.files.remove(self._temporary)

    def _turn_over(self) -> None:
        """Have the full frame written, if there is one, and begin the next."""
        self._settle()
        if not self._next:
            self._next = self._buffer(FRAME)
        full, self._plain, self._next = self._plain, self._next, self._plain
        self._filled = 0
        if full:
            self._under_way = self._vault.workers.submit(self._put, full, last=False)

    def _settle(self) -> None:
        """Wait until the frame that is being written is; raises what was raised there."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _put(self, plain: memoryview, *, last: bool) -> None:
        if not self._sealed:
            self._sealed = self._buffer(FRAME + _TAG)
        sealed = self._sealed[: len(plain) + _TAG]
        self._cipher.encrypt_into(_nonce(self._frames, last=last), plain, self._header, sealed)
        self._file.write(sealed)
        self._frames += 1

    def _buffer(self, size: int) -> memoryview:
        self._buffers.append(self._vault.spare())
        return memoryview(self._buffers[-1])[:size]

    def _give_back(self) -> None:
        self._plain = self._next = self._sealed = memoryview(b"")
        self._vault.spares += self._buffers
        del self._vault.spares[SPARES:]
        self._buffers = []


class Vault:
    """A folder of blobs: ``ab/abcdef….blob``. ``written``: bytes of the blobs that this program has put there."""

    def __init__(self, folder: Path, key: BoxKey, files: Files | None = None) -> None:
        self.folder = folder
        self.key = key
        self.files: Files = files or RealFiles()
        self._serial = itertools.count()
        self.written = 0
        self.spares: list[bytearray] = []
        self.workers = ThreadPoolExecutor(WRITERS, "vault")  # it starts them when they are wanted
        self.files.make_folder(folder)

    def prepare(self) -> None:
        """Make the folders that blobs will lie in, all at once: else each of the first blobs waits once more for the disk."""
        self.files.make_folders(self.folder, (f"{number:02x}" for number in range(256)))

    def spare(self) -> bytearray:
        """A buffer for a frame, of those that writers gave back: a new one costs as much as encrypting half a frame."""
        try:
            return self.spares.pop()
        except IndexError:
            return bytearray(FRAME + _TAG)

    def writer(self) -> BlobWriter:
        """Begin a blob."""
        name = f"{os.getpid()}-{next(self._serial)}-{os.urandom(4).hex()}{_PART}"
        return BlobWriter(self, self.folder / name)

    def put(self, data: bytes) -> Blob:
        """Keep ``data`` as a blob; durable on return."""
        writer = self.writer()
        try:
            writer.write(data)
            return writer.finish()
        except BaseException:
            writer.abort()
            raise

    def path(self, sha256: str) -> Path:
        """Where the blob lies."""
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise StoreError(f"not a SHA-256 in hex: {sha256[:70]!r}")
        return self.folder / sha256[:2] / f"{sha256}{_SUFFIX}"

    def has(self, sha256: str) -> bool:
        """Whether the blob is there."""
        return self.path(sha256).exists()

    def size(self, sha256: str) -> int:
        """Plain bytes of the blob, from its file's length."""
        return _plain_size(self.path(sha256))

    def frames(self, sha256: str, start: int = 0) -> Iterator[bytes]:
        """The blob's frames, decrypted, beginning with the one that holds byte ``start`` (frames are ``FRAME`` bytes)."""
        path = self.path(sha256)
        size = _plain_size(path)
        with path.open("rb") as file:
            header = file.read(_HEADER)
            cipher = AESGCM(self.key.unwrap(header[-60:]))
            number, final = start // FRAME, max(0, size - 1) // FRAME
            file.seek(_HEADER + number * (FRAME + _TAG))
            for index in range(number, final + 1):
                try:
                    yield cipher.decrypt(_nonce(index, last=index == final), file.read(FRAME + _TAG), header)
                except (InvalidTag, ValueError) as error:
                    raise _damaged(sha256, index) from error

    def read(self, sha256: str) -> bytes:
        """All of the blob; raises ``Damaged`` if its hash is no longer its name."""
        data = bytes(self.authentic(sha256))
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Damaged(f"blob {sha256[:12]}…: content has another hash; the disk may be failing")
        return data

    def authentic(self, sha256: str) -> bytearray:
        """All of the blob as this box sealed it, without hashing it again: the tags of its frames prove the content."""
        path = self.path(sha256)
        data = bytearray(_plain_size(path))  # one buffer, filled in place: a tenth of the time of joining frames
        plain, sealed = memoryview(data), bytearray(FRAME + _TAG)
        final = max(0, len(data) - 1) // FRAME
        with path.open("rb", buffering=0) as file:
            header = file.read(_HEADER)
            cipher = AESGCM(self.key.unwrap(header[-60:]))
            for index in range(final + 1):
                count = file.readinto(sealed) or 0
                part = plain[index * FRAME : (index + 1) * FRAME]
                try:
                    cipher.decrypt_into(_nonce(index, last=index == final), memoryview(sealed)[:count], header, part)
                except (InvalidTag, ValueError) as error:
                    raise _damaged(sha256, index) from error
        return data

    def read_range(self, sha256: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start`` (fewer at the end); decrypts only the frames that hold them."""
        parts, offset = [], start % FRAME
        remaining = length
        for frame in self.frames(sha256, start):
            part = frame[offset : offset + remaining]
            parts.append(part)
            remaining -= len(part)
            offset = 0
            if remaining <= 0:
                break
        return b"".join(parts)

    def remove(self, sha256: str) -> None:
        """Remove the blob; with its file goes its wrapped key."""
        self.files.remove(self.path(sha256))

    def blobs(self) -> Iterator[str]:
        """The SHA-256 of every blob there is."""
        for path in self.folder.glob(f"??/*{_SUFFIX}"):
            yield path.name.removesuffix(_SUFFIX)

    def unfinished(self) -> Iterator[Path]:
        """Files of writers that never finished."""
        yield from self.folder.glob(f"*{_PART}")


def _nonce(number: int, *, last: bool) -> bytes:
    return struct.pack(">QI", number, int(last))


def _damaged(sha256: str, index: int) -> Damaged:
    return Damaged(f"blob {sha256[:12]}…: frame {index} is damaged; the disk may be failing")


def _plain_size(path: Path) -> int:
    try:
        body = path.stat().st_size - _HEADER
    except FileNotFoundError as error:
        raise Damaged(f"blob {path.stem[:12]}…: its file is gone") from error
    frames = -(-body // (FRAME + _TAG))
    if body < _TAG:
        raise Damaged(f"blob {path.stem[:12]}…: its file is cut off; the disk may be failing")
    return body - frames * _TAG
