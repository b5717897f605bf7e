"""Who may use this box: people with a PIN and a role, programs with a token, and how long a wrong guess must wait.

Rules:

1. A PIN is kept as an argon2id hash (RFC 9106), sealed with the box key: who steals the journal alone can't even guess. A token
   is 256 random bits, kept as its SHA-256, shown once.
2. A guess is counted, durably, *before* it is checked: stopping the program in between, or guessing in parallel, wins none.
   From the fifth wrong one on each costs a pause that doubles up to ``LONGEST``; the right one clears the count. Nobody is
   ever locked out for good: a patient may be waiting.
3. Pauses are counted by the monotonic clock. In a new run of the box a pause begins again: no clock can be set to end it.
4. A person is never removed, only made inactive: what they did stays theirs. Nothing has a PIN that nobody chose.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import secrets

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from appliance.records import Moment, Record
from appliance.store.errors import StoreError
from appliance.store.journal import Journal, Reader, Row, Transaction
from appliance.store.keys import BoxKey

FREE_GUESSES = 5
FIRST_PAUSE, LONGEST = 30.0, 900.0
"""Seconds to wait after the last free guess, and at most."""
_PIN = re.compile(r"[0-9]{6,12}")
_STEPS = "01234567890123456789 98765432109876543210"
_TOKEN = "bt_"  # noqa: S105 - by which a token is recognised where it should not stand


class Role(str, enum.Enum):
    """What a person may do; each may do what those before it may."""

    NURSE = "nurse"
    CLINICIAN = "clinician"
    ADMINISTRATOR = "administrator"

    def may(self, needed: Role) -> bool:
        """Whether this role suffices where ``needed`` is asked for."""
        order = tuple(Role)
        return order.index(self) >= order.index(needed)


class Person(Record, frozen=True, kw_only=True):
    """Somebody who may sign in. ``id`` stands in the audit log; the name does not."""

    id: str
    name: str
    role: Role
    active: bool = True


class Token(Record, frozen=True, kw_only=True):
    """A program that may ask; the secret itself is not kept."""

    id: str
    label: str
    role: Role
    by: str
    wall: str


class WeakPin(StoreError):  # noqa: N818 - the condition's name
    """The PIN can be guessed; the message says what to choose."""


class Throttled(StoreError):  # noqa: N818 - the condition's name
    """Too many wrong guesses. ``seconds``: how long to wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong tries; wait {seconds:.0f} s")
        self.seconds = seconds


class _Secret(Record, frozen=True, kw_only=True):
    name: str
    hash: str


class People:
    """The people and tokens of a journal. ``hasher``: argon2id with the cost that this box can bear."""

    def __init__(self, journal: Journal, key: BoxKey, hasher: PasswordHasher | None = None) -> None:
        self._journal = journal
        self._key = key
        # RFC 9106, 4: the second choice has t=3 and m=64 MiB; one lane, since the cores of a box read captures
        self._hasher = hasher or PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=1)

    def enter(self, name: str, role: Role, pin: str) -> Person:
        """Somebody new, durable on return; raises ``WeakPin``, or ``StoreError`` for a name that is taken or empty."""
        hashed = self._hash(pin)
        person = Person(id=secrets.token_hex(8), name=name.strip(), role=role)

        def write(tx: Transaction) -> None:
            self._free(tx, person)
            tx.insert(
                "INSERT INTO person (id, role, active, sealed) VALUES (?, ?, 1, ?)",
                person.id,
                role.value,
                self._sealed(person.id, _Secret(name=person.name, hash=hashed)),
            )

        self._journal.write(write)
        return person

    def change(self, tx: Transaction, person: Person) -> None:
        """Another name or role, or active or not; raises ``StoreError`` when no active administrator would be left."""
        row = self._need(tx, person.id)
        self._free(tx, person)
        secret = self._secret(row)
        tx.run(
            "UPDATE person SET role = ?, active = ?, sealed = ? WHERE id = ?",
            person.role.value,
            int(person.active),
            self._sealed(person.id, _Secret(name=person.name, hash=secret.hash)),
            person.id,
        )
        if not tx.one("SELECT 1 FROM person WHERE role = 'administrator' AND active = 1"):
            raise StoreError("somebody must stay who may change this: keep one active administrator")

    def set_pin(self, person_id: str, pin: str) -> None:
        """A new PIN, durable on return; raises ``WeakPin``."""
        hashed = self._hash(pin)

        def write(tx: Transaction) -> None:
            secret = self._secret(self._need(tx, person_id))
            sealed = self._sealed(person_id, _Secret(name=secret.name, hash=hashed))
            tx.run("UPDATE person SET sealed = ? WHERE id = ?", sealed, person_id)
            tx.run("DELETE FROM throttle WHERE subject = ?", f"person:{person_id}")

        self._journal.write(write)

    def all(self) -> list[Person]:
        """Everybody, active or not, by name."""
        rows = self._journal.all("SELECT * FROM person")
        return sorted((self._person(row) for row in rows), key=lambda one: one.name.casefold())

    def get(self, person_id: str) -> Person | None:
        """One person."""
        row = self._journal.one("SELECT * FROM person WHERE id = ?", person_id)
        return None if row is None else self._person(row)

    def sign_in(self, person_id: str, pin: str, now: Moment) -> Person | None:
        """The person, if the PIN is theirs and they are active; raises ``Throttled``. Takes a while by intent."""
        row = self._journal.one("SELECT * FROM person WHERE id = ? AND active = 1", person_id)
        if row is None:
            return None
        subject = f"person:{person_id}"
        self._journal.write(lambda tx: count_guess(tx, subject, now))
        secret = self._secret(row)
        try:
            self._hasher.verify(secret.hash, pin)
        except (VerificationError, InvalidHashError):
            return None
        self._journal.write(lambda tx: forgive(tx, subject))
        if self._hasher.check_needs_rehash(secret.hash) and _PIN.fullmatch(pin):
            self.set_pin(person_id, pin)
        return self._person(row)

    def make_token(self, label: str, role: Role, by: str, now: Moment) -> tuple[Token, str]:
        """A token for a program and its secret, which is not kept; durable on return."""
        text = _TOKEN + secrets.token_urlsafe(32)
        token = Token(id=secrets.token_hex(8), label=label.strip(), role=role, by=by, wall=now.wall)
        self._journal.write(
            lambda tx: tx.insert(
                "INSERT INTO token (id, hash, role, by, wall, sealed) VALUES (?, ?, ?, ?, ?, ?)",
                token.id,
                _digest(text),
                role.value,
                by,
                now.wall,
                self._key.seal(msgspec.json.encode(token.label), f"token:{token.id}"),
            )
        )
        return token, text

    def tokens(self) -> list[Token]:
        """The tokens there are, in the order they were made."""
        return [self._token(row) for row in self._journal.all("SELECT * FROM token ORDER BY wall, id")]

    def by_token(self, text: str) -> Token | None:
        """The token with this secret; also that of the box's own commands (``local_secret``)."""
        if hmac.compare_digest(text.encode(), local_secret(self._key).encode()):
            return Token(id="local", label="bedside add", role=Role.NURSE, by="", wall="")
        row = self._journal.one("SELECT * FROM token WHERE hash = ?", _digest(text))
        return None if row is None else self._token(row)

    def revoke(self, token_id: str) -> bool:
        """The token is no more, durably; whether there was one."""
        return bool(self._journal.write(lambda tx: tx.run("DELETE FROM token WHERE id = ?", token_id)))

    def _free(self, tx: Transaction, person: Person) -> None:
        if not person.name:
            raise StoreError("a name is needed, so that people find themselves on the screen")
        for row in tx.all("SELECT * FROM person WHERE id <> ?", person.id):
            if self._secret(row).name.casefold() == person.name.casefold():
                raise StoreError("somebody has this name already; add a letter to tell the two apart")

    def _hash(self, pin: str) -> str:
        if not _PIN.fullmatch(pin):
            raise WeakPin("a PIN has 6 to 12 digits")
        if len(set(pin)) < 3 or pin in _STEPS:
            raise WeakPin("this PIN is among the first that anybody tries; choose another one")
        return self._hasher.hash(pin)

    def _need(self, tx: Transaction, person_id: str) -> Row:
        row = tx.one("SELECT * FROM person WHERE id = ?", person_id)
        if row is None:
            raise StoreError(f"no person {person_id!r} on this box")
        return row

    def _person(self, row: Row) -> Person:
        return Person(id=row["id"], name=self._secret(row).name, role=Role(row["role"]), active=bool(row["active"]))

    def _secret(self, row: Row) -> _Secret:
        return msgspec.json.decode(self._key.unseal(row["sealed"], f"person:{row['id']}"), type=_Secret)

    def _sealed(self, person_id: str, secret: _Secret) -> bytes:
        return self._key.seal(msgspec.json.encode(secret), f"person:{person_id}")

    def _token(self, row: Row) -> Token:
        label = msgspec.json.decode(self._key.unseal(row["sealed"], f"token:{row['id']}"), type=str)
        return Token(id=row["id"], label=label, role=Role(row["role"]), by=row["by"], wall=row["wall"])


def local_secret(key: BoxKey) -> str:
    """The token of the box's own commands beside its daemon: who can read the box key may do what a nurse may anyway."""
    return _TOKEN + key.blind("local program")


def must_wait(reader: Reader | Transaction, subject: str, now: Moment) -> float:
    """Seconds until ``subject`` may be guessed again; 0 for now."""
    row = reader.one("SELECT * FROM throttle WHERE subject = ?", subject)
    if row is None:
        return 0.0
    until: int = (
        row["until_ns"] if row["boot_id"] == now.boot_id else row["pause_ns"]
    )  # of a new run, from its beginning
    return max(0, until - now.monotonic_ns) / 1e9


def count_guess(tx: Transaction, subject: str, now: Moment) -> None:
    """Count a guess before it is checked; raises ``Throttled`` while it has to wait."""
    wait = must_wait(tx, subject, now)
    if wait > 0:
        raise Throttled(wait)
    row = tx.one("SELECT failures FROM throttle WHERE subject = ?", subject)
    failures = (row["failures"] if row else 0) + 1
    beyond = failures - FREE_GUESSES
    pause = 0.0 if beyond < 0 else min(LONGEST, FIRST_PAUSE * 2.0 ** min(beyond, 30))
    pause_ns = int(pause * 1e9)
    tx.run(
        "INSERT OR REPLACE INTO throttle (subject, failures, boot_id, until_ns, pause_ns) VALUES (?, ?, ?, ?, ?)",
        subject,
        failures,
        now.boot_id,
        now.monotonic_ns + pause_ns,
        pause_ns,
    )


def forgive(tx: Transaction, subject: str) -> None:
    """The guess was right: none counts any more."""
    tx.run("DELETE FROM throttle WHERE subject = ?", subject)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
