"""Who may sign in: a file with a line for each person, ``name:salt:hash``, made by ``bedside-hub password NAME``.

What this module keeps true: passwords are never kept, only their scrypt hash (N = 2^14, r = 8, p = 1, as RFC 7914 and
OWASP advise for sign-in); comparing takes the same time for a wrong name as for a wrong password.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

_N, _R, _P = 1 << 14, 8, 1


class UsersError(Exception):
    """The file can't be used; the message names the line and the remedy."""


def line(name: str, password: str) -> str:
    """The line for the users file; raises ``UsersError`` for a name or password that can't stand."""
    if not name or ":" in name or not name.isprintable() or len(name) > 64:
        raise UsersError("a user's name has 1 to 64 printable characters and no colon")
    if len(password) < 8:
        raise UsersError("a password has at least 8 characters")
    salt = os.urandom(16)
    return f"{name}:{salt.hex()}:{_hash(password, salt).hex()}"


class Users:
    """The people of one file; read anew when the file changes."""

    def __init__(self, path: Path) -> None:
        """Reads the file; raises ``UsersError``."""
        self._path = path
        self._key = secrets.token_bytes(32)
        self._known: set[bytes] = set()
        self._stamp = 0
        self._people: dict[str, tuple[bytes, bytes]] = {}
        self._read()

    def check(self, name: str, password: str) -> bool:
        """Whether this is one of them. A pair that was right is remembered (as a keyed hash) for the next request."""
        if self._path.stat().st_mtime_ns != self._stamp:
            self._read()
        proof = hmac.digest(self._key, f"{name}\0{password}".encode(), "sha256")
        if proof in self._known:
            return True
        salt, expected = self._people.get(name, (b"\0" * 16, b"\0" * 32))
        right = hmac.compare_digest(_hash(password, salt), expected) and name in self._people
        if right:
            self._known.add(proof)
        return right

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
                try:
                    name, salt, digest = text.strip().split(":")
                    people[name] = (bytes.fromhex(salt), bytes.fromhex(digest))
                except ValueError as error:
                    raise UsersError(
                        f"{self._path}, line {number}: not name:salt:hash; make it anew with: bedside-hub password NAME"
                    ) from error
        self._people, self._known = people, set()


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, dklen=32)
