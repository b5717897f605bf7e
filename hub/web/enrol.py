"""Where a box without a certificate asks for one: the authority for whoever asks, an answer for who has a code.

What this module keeps true: nobody signs in here and nothing is told but what a code proves a right to; no more than
``A_MINUTE`` requests are looked at in a minute, whoever sends them.
"""

from __future__ import annotations

import threading
import time

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from appliance.protocol.enrolment import MAXIMUM, EnrolmentError
from hub.enrolment import Enrolments

A_MINUTE = 30
PATH = "/enrol"


class Door:
    """The routes for one authority."""

    def __init__(self, enrolments: Enrolments, authority: str) -> None:
        """``authority``: its certificate, PEM."""
        self._enrolments = enrolments
        self._authority = authority
        self._lock = threading.Lock()
        self._left, self._at = float(A_MINUTE), time.monotonic()

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route(f"{PATH}/authority", self.authority, methods=["GET"]),
            Route(PATH, self.enrol, methods=["POST"]),
        ]

    async def authority(self, _: Request) -> Response:
        """The authority's certificate."""
        return PlainTextResponse(self._authority)

    async def enrol(self, request: Request) -> Response:
        """The answer to a box's request."""
        if not self._may():
            return PlainTextResponse("too many boxes at once; try again in a minute\n", 429, {"Retry-After": "60"})
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAXIMUM:
                return PlainTextResponse("that is no enrolment\n", 413)
        try:
            answer = await run_in_threadpool(self._enrolments.enrol, bytes(body), time.time_ns() // 1_000_000)
        except EnrolmentError as error:
            return PlainTextResponse(f"{error}\n", 403)
        return Response(answer, media_type="application/json")

    def _may(self) -> bool:
        with self._lock:
            now = time.monotonic()
            self._left = min(A_MINUTE, self._left + (now - self._at) * A_MINUTE / 60)
            self._at = now
            if self._left < 1:
                return False
            self._left -= 1
            return True
