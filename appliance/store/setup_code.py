"""The code that lets somebody become the first administrator: a file of the state folder, for who may read that.

What this module keeps true: there is no code that nobody asked for (it is made when nobody can sign in yet, or by a command on
the box), it works once, and it stands in no log: only who has the rights of the service on this very box can read it.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from appliance.store.files import Files, durable

_LETTERS = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
_NAME = "setup.code"


def make(folder: Path, files: Files) -> str:
    """A new code, durable (mode 0600); one that was there counts no more. Raises ``OSError``."""
    code = "-".join("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(3))
    with durable(files, folder / _NAME) as file:
        file.write(code.encode())
    return code


def read(folder: Path) -> str | None:
    """The code that works now, ``None`` when there is none. Raises ``OSError`` for who may not read it."""
    try:
        return (folder / _NAME).read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None


def matches(folder: Path, said: str) -> bool:
    """Whether what somebody typed is the code: case, spaces and hyphens don't matter."""
    code = read(folder)
    return code is not None and hmac.compare_digest(_plain(code).encode(), _plain(said).encode())


def spend(folder: Path, files: Files) -> None:
    """The code was used: it is no more."""
    if (folder / _NAME).exists():
        files.remove(folder / _NAME)


def _plain(code: str) -> str:
    return "".join(one for one in code.upper() if one.isalnum())
