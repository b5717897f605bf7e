"""What every page and every call of the interface leans on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from hub.blobs import BlobStore
from hub.database import Database
from hub.people import EVERY_ROLE, People, Role
from hub.sessions import Sessions


@dataclass(frozen=True)
class Site:
    """The hub's stores as the web sees them.

    ``people``: None where nobody can sign in; ``secure``: browsers come by TLS; ``models``: folder of the bundles' cards;
    ``nudge`` is called when something goes down; ``closing``: the program ends.
    """

    database: Database
    blobs: BlobStore
    people: People | None = None
    nudge: Callable[[], None] = lambda: None
    closing: threading.Event = field(default_factory=threading.Event)
    clock_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)
    sessions: Sessions | None = None
    secure: bool = False
    models: Path | None = None

    @property
    def signs_in(self) -> bool:
        """Whether anybody has to sign in."""
        return self.people is not None and self.people.needed()


def site(request: Request) -> Site:
    """The site this request is for."""
    found: Site = request.app.state.site
    return found


def person(request: Request) -> str:
    """Who asks: the signed-in name, or, where nobody signs in, the name this browser was told; may be empty."""
    return str(getattr(request.state, "person", ""))


def roles(request: Request) -> frozenset[Role]:
    """What who asks may do: everything where nobody signs in, which is on loopback only."""
    found: frozenset[Role] = getattr(request.state, "roles", frozenset() if site(request).signs_in else EVERY_ROLE)
    return found
