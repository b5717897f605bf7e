"""The end of a box: its keys are destroyed, and with them everything that they sealed.

What this module keeps true: keys go first, before anything is deleted, so that being cut off at any point leaves nothing that
can be read: blobs and patients are sealed with keys that the box's key alone can unwrap. Where the disk keeps old copies of a
block (flash does), what was there before can't be overwritten by name: such a disk is encrypted as a whole, and its key is
destroyed too (``docs/identity.md``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from appliance.store import token
from appliance.store.credentials import FOLDER
from appliance.store.errors import StoreError
from appliance.store.files import RealFiles
from appliance.store.keys import key_file
from appliance.store.store import lock_of

_KEYS = ("box.key", token.FILE, "parcel.key")
_STAYS = ("lock",)


def erase(state: Path) -> int:
    """Destroy the keys in a state folder, then remove what they sealed; how many files went. Raises ``StoreError``."""
    if not (state / "journal.sqlite").exists() and not key_file(state).exists():
        raise StoreError(f"{state}: no box was ever here; name the daemon's configuration with --config")
    lock = lock_of(state)
    try:
        for path in _keys(state):
            _destroy(path)
        return _remove(state)
    finally:
        os.close(lock)


def seal_to_token(state: Path, *, module: str, label: str, pin_file: Path) -> None:
    """Seal the box key to a token and destroy the file that held it; raises ``StoreError``. The daemon must be stopped."""
    lock = lock_of(state)
    try:
        path = state / "box.key"
        if key_file(state) != path or not path.exists():
            raise StoreError(f"{path}: not there; a key that is sealed already is not sealed again")
        token.seal(state, path.read_bytes(), module=module, token=label, pin_file=pin_file)
        _destroy(path)
    finally:
        os.close(lock)


def _keys(state: Path) -> Iterator[Path]:
    yield from (state / name for name in _KEYS if (state / name).exists())
    folder = state / FOLDER
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_file())


def _destroy(path: Path) -> None:
    """Overwrite in place, durably, then remove."""
    size = path.stat().st_size
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for filling in (os.urandom(size), bytes(size)):
            os.pwrite(descriptor, filling, 0)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    path.unlink()
    RealFiles().sync_folder(path.parent)


def _remove(state: Path) -> int:
    count = 0
    for path in sorted(state.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif path.parent != state or path.name not in _STAYS:
            path.unlink()
            count += 1
    RealFiles().sync_folder(state)
    return count
