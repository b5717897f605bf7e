"""Who may do what at the hub: people with roles, kept in the database, and how long a wrong guess must wait.

What this module keeps true:

1. There is no password that nobody chose. A person is never removed, only made inactive: what they did stays theirs.
2. A guess is counted, durably, *before* it is checked: starting the hub again, or guessing in parallel, wins none. From the
   fifth wrong one of a name (the thirtieth of an address) on each costs a pause that doubles up to ``LONGEST_MS``; nobody is
   locked out for good. The right one clears the count of its name.
3. People of ``web.users_file`` may sign in as long as their line stands there, as readers unless told otherwise. An old hash
   is replaced, in the database, when its person signs in.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import structlog
from sqlalchemy import Connection, select

from hub import audit, tables
from hub.database import Database
from hub.users import Passwords, Users, UsersError

_LOG = structlog.get_logger("hub.people")
FREE_GUESSES, FREE_OF_ADDRESS = 5, 30
FIRST_PAUSE_MS, LONGEST_MS = 30_000, 900_000
_KEEP_COUNT_MS = 86_400_000
_person, _throttle = tables.person.c, tables.throttle.c


class Role(str, enum.Enum):
    """What somebody may do. A person may have several."""

    VIEWER = "viewer"
    READER = "reader"
    ADMINISTRATOR = "administrator"


EVERY_ROLE = frozenset(Role)


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may sign in, or (``machine``) a program with a token."""

    name: str
    roles: frozenset[Role]
    active: bool = True
    machine: bool = False
    source: str = ""


class Throttled(Exception):  # noqa: N818 - the state of things, told to who asked
    """Too many wrong guesses. ``seconds``: how long to wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong tries; wait {seconds:.0f} s")
        self.seconds = seconds


class _Found(NamedTuple):
    roles: frozenset[Role]
    hash: str
    line: str


class People:
    """The people of a database and, where there is one, of a users file."""

    def __init__(self, database: Database, file: Users | None = None, passwords: Passwords | None = None) -> None:
        self._database = database
        self._file = file
        self._passwords = passwords or Passwords()
        self._key = secrets.token_bytes(32)
        self._right: dict[bytes, str] = {}
        self._needed = file is not None

    def needed(self) -> bool:
        """Whether anybody has to sign in: once there are people, for as long as this program runs."""
        if not self._needed:
            with self._database.read() as connection:
                there = select(_person.name).where(_person.active).limit(1)
                self._needed = connection.execute(there).first() is not None
        return self._needed

    def add(self, name: str, roles: Iterable[Role], password: str, by: str, now_ms: int) -> Person:
        """Somebody new, or somebody again; raises ``UsersError`` for a name that is taken or a weak password."""
        kept = self._passwords.hash(name, password)
        with self._database.write() as connection:
            if self._find(connection, name) is not None:
                raise UsersError(f"{name!r} is there already; see bedside-hub user list")
            self._put(connection, name, frozenset(roles), kept, "", now_ms)
            audit.note(connection, by, "person:added", name, now_ms, _words(roles))
        return Person(name=name, roles=frozenset(roles))

    def set_roles(self, name: str, roles: Iterable[Role], by: str, now_ms: int) -> None:
        """Other roles; raises ``UsersError`` when there is no such person."""
        with self._database.write() as connection:
            found = self._need(connection, name)
            self._put(connection, name, frozenset(roles), found.hash, found.line, now_ms)
            audit.note(connection, by, "person:roles", name, now_ms, _words(roles))

    def set_password(self, name: str, password: str, by: str, now_ms: int) -> None:
        """A new password; every session of theirs ends. Raises ``UsersError``."""
        kept = self._passwords.hash(name, password)
        with self._database.write() as connection:
            found = self._need(connection, name)
            self._put(connection, name, found.roles, kept, found.line, now_ms)
            connection.execute(tables.web_session.delete().where(tables.web_session.c.name == name))
            connection.execute(tables.throttle.delete().where(_throttle.subject == _subject("name", name)))
            audit.note(connection, by, "person:password", name, now_ms)

    def remove(self, name: str, by: str, now_ms: int) -> None:
        """They can't sign in any more and every session of theirs ends; raises ``UsersError``."""
        with self._database.write() as connection:
            found = self._need(connection, name)
            self._put(connection, name, found.roles, "", found.line, now_ms, active=False)
            connection.execute(tables.web_session.delete().where(tables.web_session.c.name == name))
            audit.note(connection, by, "person:removed", name, now_ms)

    def all(self) -> list[Person]:
        """Everybody, by name; ``source``: where they are kept."""
        with self._database.read() as connection:
            rows = {row.name: row for row in connection.execute(select(tables.person))}
            names = sorted({*rows, *self._lines()}, key=str.casefold)
            found = {name: self._find(connection, name) for name in names}
        return [
            Person(
                name=name,
                roles=one.roles if one else _roles(rows[name].roles),
                active=one is not None,
                source="users file" if (name not in rows or rows[name].line) else "database",
            )
            for name, one in found.items()
        ]

    def get(self, connection: Connection, name: str) -> Person | None:
        """Somebody who may sign in."""
        found = self._find(connection, name)
        return None if found is None else Person(name=name, roles=found.roles)

    def check(self, name: str, password: str, address: str, now_ms: int) -> Person | None:
        """The person, if the password is theirs; raises ``Throttled``. Takes a while by intent."""
        with self._database.read() as connection:
            found = self._find(connection, name)
        kept = found.hash if found else ""
        proof = hmac.digest(self._key, f"{name}\0{password}".encode(), "sha256")
        remembered = bool(kept) and self._right.get(proof) == kept
        if not remembered:
            self._count(name, address, now_ms)
            if not self._passwords.right(kept, password) or found is None:
                return None
            self._take(name, password, found, now_ms)
            with self._database.read() as connection:
                self._right[proof] = self._need(connection, name).hash
        return Person(name=name, roles=found.roles) if found else None

    def _take(self, name: str, password: str, found: _Found, now_ms: int) -> None:
        """The guess was right: none counts any more; an old hash is made anew where the password may stand."""
        fresh = ""
        if self._passwords.old(found.hash):
            try:
                fresh = self._passwords.hash(name, password)
            except UsersError:
                fresh = ""  # a short password of an older time stays good until it is changed
        with self._database.write() as connection:
            connection.execute(tables.throttle.delete().where(_throttle.subject == _subject("name", name)))
            if fresh:
                self._put(connection, name, found.roles, fresh, found.line, now_ms)
                audit.note(connection, name, "person:rehashed", name, now_ms)

    def _count(self, name: str, address: str, now_ms: int) -> None:
        free = {_subject("name", name): FREE_GUESSES, _subject("address", address): FREE_OF_ADDRESS}
        with self._database.write() as connection:
            connection.execute(tables.throttle.delete().where(_throttle.changed_ms < now_ms - _KEEP_COUNT_MS))
            query = select(tables.throttle).where(_throttle.subject.in_(list(free))).with_for_update()
            rows = {row.subject: row for row in connection.execute(query)}
            wait = max((min(row.until_ms - now_ms, LONGEST_MS) for row in rows.values()), default=0)
            if wait > 0:
                raise Throttled(wait / 1000)
            for subject, guesses in free.items():
                failures = (rows[subject].failures if subject in rows else 0) + 1
                beyond = failures - guesses
                pause = 0 if beyond < 0 else min(LONGEST_MS, FIRST_PAUSE_MS * 2 ** min(beyond, 20))
                values = {"failures": failures, "until_ms": now_ms + pause, "changed_ms": now_ms}
                insert = self._database.insert(tables.throttle).values(subject=subject, **values)
                connection.execute(insert.on_conflict_do_update(index_elements=["subject"], set_=values))

    def _lines(self) -> dict[str, str]:
        try:
            return self._file.all() if self._file is not None else {}
        except UsersError as error:  # nobody of the file comes in until it can be read again
            _LOG.warning("the users file can't be read", error=str(error))
            return {}

    def _find(self, connection: Connection, name: str) -> _Found | None:
        row = connection.execute(select(tables.person).where(_person.name == name)).one_or_none()
        kept = self._lines().get(name)
        digest = _digest(kept) if kept else ""
        if row is None:
            return _Found(frozenset({Role.READER}), kept, digest) if kept else None
        if not row.active or (row.line and not kept):
            return None
        if row.line and row.line != digest:  # the line is another one now: that counts
            return _Found(_roles(row.roles), kept or "", digest)
        return _Found(_roles(row.roles), row.hash, row.line)

    def _need(self, connection: Connection, name: str) -> _Found:
        found = self._find(connection, name)
        if found is None:
            raise UsersError(f"there is no {name!r}; see bedside-hub user list")
        return found

    def _put(
        self,
        connection: Connection,
        name: str,
        roles: frozenset[Role],
        kept: str,
        line: str,
        now_ms: int,
        *,
        active: bool = True,
    ) -> None:
        values: dict[str, Any] = {"roles": _words(roles), "hash": kept, "line": line, "active": active}
        values["changed_ms"] = now_ms
        insert = self._database.insert(tables.person).values(name=name, created_ms=now_ms, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))


def roles_of(words: Iterable[str]) -> frozenset[Role]:
    """Roles by name; raises ``UsersError``."""
    try:
        found = frozenset(Role(word) for word in words)
    except ValueError as error:
        raise UsersError(f"{error}; roles are: {', '.join(role.value for role in Role)}") from error
    if not found:
        raise UsersError(f"say at least one role: {', '.join(role.value for role in Role)}")
    return found


def _roles(words: str) -> frozenset[Role]:
    return frozenset(Role(word) for word in words.split(",") if word in Role._value2member_map_)


def _words(roles: Iterable[Role]) -> str:
    return ",".join(role.value for role in Role if role in set(roles))


def _digest(kept: str) -> str:
    return hashlib.sha256(kept.encode()).hexdigest()


def _subject(kind: str, of: str) -> str:
    return f"{kind}:{hashlib.sha256(of.encode()).hexdigest()[:40]}"
