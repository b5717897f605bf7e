"""Passwords, and the file of who may sign in: a line for each person, ``name:hash``, made by ``bedside-hub password NAME``.

What this module keeps true: passwords are never kept, only their argon2id hash (RFC 9106, second choice of section 4 with one
lane); the older form of a line, ``name:salt:hash`` with scrypt (RFC 7914; N = 2^14, r = 8, p = 1), is still understood, and
``old`` says so, so that it can be replaced when its person signs in. No more than two hashes are computed at once: each takes
64 MiB.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from pathlib import Path

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

_N, _R, _P = 1 << 14, 8, 1
_AT_ONCE = threading.BoundedSemaphore(2)


class UsersError(Exception):
    """The file, a name or a password can't be used; the message names the remedy."""


class Passwords:
    """Makes and checks hashes. ``hasher``: another cost, for tests."""

    def __init__(self, hasher: argon2.PasswordHasher | None = None) -> None:
        self._hasher = hasher or argon2.PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=1)
        self._nobody = ""

    def hash(self, name: str, password: str) -> str:
        """The hash to keep; raises ``UsersError`` for a name or password that can't stand."""
        if not name or ":" in name or not name.isprintable() or len(name) > 64 or name != name.strip():
            raise UsersError("a user's name has 1 to 64 printable characters and no colon")
        if len(password) < 8:
            raise UsersError("a password has at least 8 characters")
        if len(password) > 1024 or password.casefold() == name.casefold() or len(set(password)) < 4:
            raise UsersError("this password is among the first that anybody tries; choose another one")
        with _AT_ONCE:
            return self._hasher.hash(password)

    def right(self, kept: str, password: str) -> bool:
        """Whether ``password`` belongs to ``kept``; with nothing kept it takes as long, and is wrong."""
        with _AT_ONCE:
            if kept and not kept.startswith("$"):
                salt, _, digest = kept.partition(":")
                return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt)), bytes.fromhex(digest))
            self._nobody = self._nobody or self._hasher.hash("nobody's")
            try:
                return self._hasher.verify(kept or self._nobody, password) and bool(kept)
            except (VerificationError, InvalidHashError):
                return False

    def old(self, kept: str) -> bool:
        """Whether ``kept`` should be made anew: another form, or another cost."""
        return not kept.startswith("$argon2id$") or self._hasher.check_needs_rehash(kept)


def line(name: str, password: str) -> str:
    """The line for the users file; raises ``UsersError`` for a name or password that can't stand."""
    return f"{name}:{Passwords().hash(name, password)}"


class Users:
    """The people of one file; read anew when the file changes."""

    def __init__(self, path: Path) -> None:
        """Reads the file; raises ``UsersError``."""
        self._path = path
        self._stamp = 0
        self._people: dict[str, str] = {}
        self._read()

    def all(self) -> dict[str, str]:
        """Name → hash, as the file says now; raises ``UsersError``."""
        try:
            changed = self._path.stat().st_mtime_ns != self._stamp
        except OSError as error:
            raise UsersError(f"{self._path}: {error.strerror}") from error
        if changed:
            self._read()
        return self._people

    def _read(self) -> None:
        try:
            self._stamp = self._path.stat().st_mtime_ns
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UsersError(
                f"{self._path}: {error.strerror}; make it with: bedside-hub password NAME >> FILE"
            ) from error
        people = {}
        for number, text in enumerate(lines, 1):
            if text.strip() and not text.startswith("#"):
                name, _, kept = text.strip().partition(":")
                if not _is_hash(kept):
                    raise UsersError(
                        f"{self._path}, line {number}: not name:hash; make it anew with: bedside-hub password NAME"
                    )
                people[name] = kept
        self._people = people


def _is_hash(kept: str) -> bool:
    if kept.startswith("$argon2id$"):
        return kept.count("$") == 5
    salt, _, digest = kept.partition(":")
    try:
        return bool(bytes.fromhex(salt)) and len(bytes.fromhex(digest)) == 32
    except ValueError:
        return False


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, dklen=32)
