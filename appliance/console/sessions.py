"""Who is signed in: sessions on the server, ended by idleness, and people found by cookie or token.

What this module keeps true: the cookie is 256 random bits and says nothing; only its SHA-256 is held, in memory: a restart
signs everybody out. A session ends when nobody has touched the screen for a while (what a page fetches by itself is not
touching; watching a live picture or a recording is, for half an hour at most), after ``LONGEST_S`` at the latest, and as soon
as its person is changed. Each sign-in has a session of its own, so that a page shown to one person can't be confirmed by the
next.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from appliance.console.binding import Who
from appliance.records import Moment
from appliance.store.people import People, Role

LONGEST_S = 12 * 3600.0
LOOKING_S = 1800.0
"""With both hands at the patient, somebody who watches keeps the screen open, at most this long after their last touch."""
_MOST = 500
"""Sessions held; beyond, the one that was idle for longest ends."""


class _Session(NamedTuple):
    person: str
    key: str
    began: float
    touched: float
    looked: float


class Sessions:
    """The sessions of a console. ``idle_s``: how long without a touch until the screen locks."""

    def __init__(self, people: People, idle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._people = people
        self._idle = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, _Session] = {}
        self._hashing = threading.BoundedSemaphore(2)  # each check of a PIN takes 64 MiB

    def begin(self, person_id: str, pin: str, now: Moment) -> str | None:
        """Sign a person in: the cookie; ``None`` when it is not their PIN. Raises ``Throttled``."""
        with self._hashing:
            person = self._people.sign_in(person_id, pin, now)
        return None if person is None else self.open_for(person.id)

    def open_for(self, person_id: str) -> str:
        """A session for somebody who has just shown who they are."""
        cookie, present = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            while len(self._held) >= _MOST:
                del self._held[min(self._held, key=lambda one: self._held[one].touched)]
            self._held[_digest(cookie)] = _Session(person_id, secrets.token_hex(8), present, present, present)
        return cookie

    def who(self, cookie: str, *, touch: bool) -> Who | None:
        """The person of a cookie; ``touch``: a person did something, the screen stays open."""
        key, present = _digest(cookie), self._clock()
        with self._lock:
            session = self._held.get(key)
            if session is None:
                return None
            if present - max(session.touched, session.looked) > self._idle or present - session.began > LONGEST_S:
                del self._held[key]
                return None
            if touch:
                self._held[key] = session._replace(touched=present)
        person = self._people.get(session.person)
        if person is None or not person.active:
            self.end(cookie)
            return None
        return Who(id=person.id, name=person.name, role=person.role.value, session=session.key)

    def look(self, cookie: str) -> None:
        """Somebody watches what is live now; a session that has ended stays so."""
        key, present = _digest(cookie), self._clock()
        with self._lock:
            session = self._held.get(key)
            if session is None or present - max(session.touched, session.looked) > self._idle:
                return
            if present - session.touched <= LOOKING_S:
                self._held[key] = session._replace(looked=present)

    def by_token(self, text: str) -> Who | None:
        """The program of a token."""
        token = self._people.by_token(text)
        if token is None:
            return None
        return Who(id=f"token-{token.id}", name=token.label, role=token.role.value, session=f"token-{token.id}")

    def end(self, cookie: str) -> None:
        """Sign out."""
        with self._lock:
            self._held.pop(_digest(cookie), None)

    def end_of(self, person_id: str) -> None:
        """Sign somebody out wherever they are: the PIN or the role is another one."""
        with self._lock:
            for key in [key for key, session in self._held.items() if session.person == person_id]:
                del self._held[key]


EVERYBODY = Who(id="nobody", name="", role=Role.ADMINISTRATOR.value, session="open")
"""Who is at the screen of a console without sign-in."""


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()
