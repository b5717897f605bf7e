"""Recordings that are still going on: every piece is on the disk before the next one is asked for.

What this module keeps true: ``append`` returns when the piece is durable, encrypted under a key of its own; after a power cut
at any instant all pieces whose ``append`` had returned are read back, in order, and at most the last one is missing. A piece
that was changed on the disk ends what is read back; it is never given out. After a piece that failed none is taken: no nonce is
used twice.

Format, integers big-endian: 8 bytes magic, 60 bytes wrapped key; then pieces: 4 bytes length of what follows, AES-256-GCM of
the piece with its number (12 bytes) as nonce, the header authenticated with each.
"""

from __future__ import annotations

import contextlib
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.store.errors import Damaged
from appliance.store.files import Files, RealFiles
from appliance.store.keys import BoxKey

MAGIC = b"BEDSPOOL"
LONGEST = 1 << 24
_HEADER = len(MAGIC) + 60
_SUFFIX = ".spool"


class SpoolWriter:
    """One recording being written."""

    def __init__(self, spool: Spool, path: Path) -> None:
        key = os.urandom(32)
        self.path = path
        self._cipher = AESGCM(key)
        self._header = MAGIC + spool.key.wrap(key)
        self._pieces = 0
        self._torn: OSError | None = None
        self._file = spool.files.create(path)
        self._file.write(self._header)

    @property
    def name(self) -> str:
        """32 hexadecimal digits."""
        return self.path.stem

    def append(self, piece: bytes) -> None:
        """Add a piece (at most ``LONGEST`` bytes); durable on return. ``OSError`` as the kernel gave it, and from then on."""
        if len(piece) > LONGEST:
            raise ValueError(f"a piece of {len(piece)} bytes; at most {LONGEST} fit")
        if self._torn is not None:  # behind half a piece nothing is read back, and its nonce was used
            raise OSError(self._torn.errno, self._torn.strerror)
        sealed = self._cipher.encrypt(_nonce(self._pieces), piece, self._header)
        try:
            self._file.write(struct.pack(">I", len(sealed)) + sealed)
            self._file.sync()
        except OSError as error:
            self._torn = error
            raise
        self._pieces += 1

    def close(self) -> None:
        """Let the file go; it stays. More than once is allowed."""
        self._file.close()


class Spool:
    """A folder of recordings that have not been through the door yet."""

    def __init__(self, folder: Path, key: BoxKey, files: Files | None = None) -> None:
        self.folder = folder
        self.key = key
        self.files: Files = files or RealFiles()
        self.files.make_folder(folder)

    def begin(self, first: bytes) -> SpoolWriter:
        """A new recording whose first piece is ``first``; both durable on return. ``OSError`` leaves nothing."""
        path = self.folder / f"{uuid.uuid4().hex}{_SUFFIX}"
        writer = SpoolWriter(self, path)
        try:
            writer.append(first)
            self.files.sync_folder(self.folder)
        except OSError:
            writer.close()
            with contextlib.suppress(OSError):
                self.files.remove(path)
            raise
        return writer

    def names(self) -> list[str]:
        """The recordings that are there, in no order."""
        return [path.stem for path in self.folder.glob(f"*{_SUFFIX}")]

    def pieces(self, name: str) -> Iterator[bytes]:
        """The pieces of a recording, as far as they are whole; raises ``Damaged`` when not even the key can be read."""
        with self._path(name).open("rb") as file:
            header = file.read(_HEADER)
            if len(header) < _HEADER or not header.startswith(MAGIC):
                raise Damaged(f"recording {name[:12]}…: its beginning is not on the disk; it can't be read back")
            cipher = AESGCM(self.key.unwrap(header[len(MAGIC) :]))
            number = 0
            while len(head := file.read(4)) == 4:
                size = int.from_bytes(head, "big")
                sealed = file.read(size) if size <= LONGEST + 16 else b""
                try:
                    piece = cipher.decrypt(_nonce(number), sealed, header)
                except (InvalidTag, ValueError):
                    return  # cut off by a power cut, or changed: nothing after it can be trusted
                yield piece
                number += 1

    def remove(self, name: str) -> None:
        """The recording is in the vault, or was thrown away."""
        self.files.remove(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"


def _nonce(number: int) -> bytes:
    return struct.pack(">IQ", 0, number)
