"""What every page and every call of the interface leans on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from hub.blobs import BlobStore
from hub.database import Database
from hub.users import Users


@dataclass(frozen=True)
class Site:
    """The hub's stores as the web sees them.

    ``users``: None where nobody signs in; ``nudge`` is called when something goes down; ``closing``: the program ends.
    """

    database: Database
    blobs: BlobStore
    users: Users | None = None
    nudge: Callable[[], None] = lambda: None
    closing: threading.Event = field(default_factory=threading.Event)
    clock_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)


def site(request: Request) -> Site:
    """The site this request is for."""
    found: Site = request.app.state.site
    return found


def person(request: Request) -> str:
    """Who asks: the signed-in name, or, where nobody signs in, the name this browser was told; may be empty."""
    return str(getattr(request.state, "person", ""))
