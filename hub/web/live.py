"""Server-sent events: pages learn that the worklist has changed, however many are open.

What this module keeps true: the database is asked once a second for all listeners together, and not at all when nobody
listens; a listener that goes away is forgotten, and the hub's end is not held up by any.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog
from sqlalchemy import exc
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from hub import cases
from hub.web.site import Site, site

_LOG = structlog.get_logger("hub.web")
_EVERY_S = 1.0
_KEEP_ALIVE_S = 15.0


class Live:
    """The last change, and those who wait for the next one."""

    def __init__(self, of: Site) -> None:
        self._site = of
        self._state = ""
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def stream(self) -> AsyncIterator[bytes]:
        """``change`` events, a comment now and then to keep the connection."""
        self._listeners += 1
        if self._task is None or self._task.done():
            self._state = await run_in_threadpool(self._read)
            self._task = asyncio.create_task(self._watch())
        try:
            seen = self._state
            yield f"retry: 2000\nevent: hello\ndata: {seen}\n\n".encode()
            quiet = 0
            while not self._site.closing.is_set():
                try:
                    await asyncio.wait_for(self._changed.wait(), _EVERY_S)
                except asyncio.TimeoutError:
                    quiet += 1
                if self._state != seen:
                    seen, quiet = self._state, 0
                    yield f"event: change\ndata: {seen}\n\n".encode()
                elif quiet >= _KEEP_ALIVE_S / _EVERY_S:
                    quiet = 0
                    yield b": still here\n\n"
        finally:
            self._listeners -= 1

    async def _watch(self) -> None:
        while self._listeners:
            await asyncio.sleep(_EVERY_S)
            try:
                state = await run_in_threadpool(self._read)
            except exc.SQLAlchemyError:
                _LOG.warning("the worklist can't be watched: the database is away")
                continue
            if state != self._state:
                self._state = state
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()

    def _read(self) -> str:
        with self._site.database.read() as connection:
            return cases.last_change(connection)


async def events(request: Request) -> StreamingResponse:
    """``/events``."""
    live = request.app.state.live
    if live is None:
        live = request.app.state.live = Live(site(request))
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(live.stream(), media_type="text/event-stream", headers=headers)
