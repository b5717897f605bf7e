"""Who is signed in: sessions of browsers, tokens of programs.

What this module keeps true: the secret of a session or token is 256 random bits that only its holder has; the database holds
the SHA-256. A session that nobody used for ``idle_ms`` is locked: the password opens it again, nothing else; after ``life_ms``
it ends. A page that refreshes itself is no use of it. A token has no way to become a person.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import NamedTuple

import msgspec
from sqlalchemy import select, update

from hub import audit, tables
from hub.database import Database
from hub.people import People, Person, Role

IDLE_MS, LIFE_MS = 15 * 60_000, 12 * 3_600_000
_EVERY_MS = 20_000
_TOKEN = "hubt_"  # noqa: S105 - by which a token is recognised where it should not stand
_session, _token = tables.web_session.c, tables.api_token.c


class Visit(NamedTuple):
    """Whose session it is. ``locked``: nobody used it for too long."""

    person: Person
    locked: bool


class TokenPart(msgspec.Struct, frozen=True, kw_only=True):
    """A token as a list shows it; the secret is not kept."""

    id: str
    label: str
    role: Role
    by: str
    created_ms: int
    used_ms: int | None
    ended_ms: int | None


class Sessions:
    """The sessions and tokens of one database."""

    def __init__(self, database: Database, people: People, idle_ms: int = IDLE_MS, life_ms: int = LIFE_MS) -> None:
        self._database = database
        self._people = people
        self.idle_ms = idle_ms
        self._life_ms = life_ms

    def open(self, name: str, now_ms: int) -> str:
        """A new session's secret, durable on return."""
        text = secrets.token_urlsafe(32)
        row = {"id": _digest(text), "name": name, "created_ms": now_ms, "seen_ms": now_ms, "locked": False}
        with self._database.write() as connection:
            connection.execute(tables.web_session.delete().where(_session.created_ms < now_ms - self._life_ms))
            connection.execute(tables.web_session.insert(), row)
            audit.note(connection, name, "signed-in", name, now_ms)
        return text

    def find(self, text: str, now_ms: int, *, used: bool) -> Visit | None:
        """The session with this secret; ``used``: somebody did something, so it stays open."""
        with self._database.read() as connection:
            query = select(tables.web_session).where(_session.id == _digest(text))
            row = connection.execute(query).one_or_none()
            person = self._people.get(connection, row.name) if row is not None else None
        if row is None or person is None or not 0 <= now_ms - row.created_ms < self._life_ms:
            return None
        locked = row.locked or now_ms - row.seen_ms >= self.idle_ms
        if used and not locked and now_ms - row.seen_ms >= min(_EVERY_MS, self.idle_ms // 4):
            with self._database.write() as connection:
                connection.execute(update(tables.web_session).where(_session.id == row.id).values(seen_ms=now_ms))
        return Visit(person, locked)

    def lock(self, text: str) -> None:
        """Only the password opens it again."""
        with self._database.write() as connection:
            connection.execute(update(tables.web_session).where(_session.id == _digest(text)).values(locked=True))

    def close(self, text: str) -> None:
        """The session is no more."""
        with self._database.write() as connection:
            connection.execute(tables.web_session.delete().where(_session.id == _digest(text)))

    def make_token(self, label: str, role: Role, by: str, now_ms: int) -> str:
        """A program's token, shown this once; durable on return."""
        text = _TOKEN + secrets.token_urlsafe(32)
        row = {"id": secrets.token_hex(4), "hash": _digest(text), "label": label.strip()[:64], "role": role.value}
        with self._database.write() as connection:
            connection.execute(tables.api_token.insert(), {**row, "by": by, "created_ms": now_ms})
            audit.note(connection, by, "token:made", row["id"], now_ms, role.value)
        return text

    def by_token(self, text: str, now_ms: int) -> Person | None:
        """The program with this token, under the name ``token:LABEL``."""
        with self._database.read() as connection:
            query = select(tables.api_token).where(_token.hash == _digest(text), _token.ended_ms.is_(None))
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if row.used_ms is None or now_ms - row.used_ms >= 60_000:
            with self._database.write() as connection:
                connection.execute(update(tables.api_token).where(_token.id == row.id).values(used_ms=now_ms))
        return Person(name=f"token:{row.label}", roles=frozenset({Role(row.role)}), machine=True)

    def tokens(self) -> list[TokenPart]:
        """Every token there ever was, in the order they were made."""
        names = TokenPart.__struct_fields__
        with self._database.read() as connection:
            rows = connection.execute(select(tables.api_token).order_by(_token.created_ms, _token.id)).mappings()
            return [msgspec.convert({name: row[name] for name in names}, TokenPart) for row in rows]

    def revoke(self, token_id: str, by: str, now_ms: int) -> bool:
        """The token is good for nothing any more; whether there was one."""
        with self._database.write() as connection:
            change = update(tables.api_token).where(_token.id == token_id, _token.ended_ms.is_(None))
            ended = connection.execute(change.values(ended_ms=now_ms)).rowcount == 1
            if ended:
                audit.note(connection, by, "token:revoked", token_id, now_ms)
        return ended


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
