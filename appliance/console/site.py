"""What the pages and the API share: looking a capture up, and answering for what can't be answered.

What this module keeps true: an id that is not one of ours and an id that is unknown get the same answer; an error is told as
what is wrong and what to do, as a page to people and as JSON to programs, in the visitor's language.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from appliance.console.context import Context
from appliance.console.gate import who_asks
from appliance.console.lines import Gatherer, Line, Whole
from appliance.console.phrases import MODALITIES, POSITIONS, Phrases
from appliance.console.reception import Reception
from appliance.console.sound import Player
from appliance.console.words import N_, Words, choose, languages, words
from appliance.records import ADVICE_NOT_DIAGNOSIS, Record
from appliance.store.errors import Damaged, StoreError

HERE = Path(__file__).parent
LANGUAGE_COOKIE = "language"
_ID = re.compile(r"[0-9a-f]{32}")
_ENCODER = msgspec.json.Encoder()

N_("Advice for a health worker, not a diagnosis.")  # ADVICE_NOT_DIAGNOSIS, for the catalogue


class Problem(Record, frozen=True, kw_only=True):
    """Why a request could not be answered, and what to do."""

    error: str
    remedy: str


class NotHere(Exception):  # noqa: N818 - the condition's name
    """No such capture on this box."""


class Site:
    """The context, the templates and the counts of what was refused."""

    def __init__(self, context: Context, *, has_sign_in: bool = False, has_authority: bool = False) -> None:
        self.context = context
        self.has_sign_in = has_sign_in
        self.has_authority = has_authority
        self.reception = Reception(context)
        self.counts: Counter[str] = Counter()
        self.player = Player(self._original)
        self.handing_in = threading.BoundedSemaphore(2)  # each holds a whole file in memory
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def whole(self, capture_id: str) -> Whole:
        """A capture and all about it; raises ``NotHere``, or ``Damaged`` when a record of it can't be read."""
        if not _ID.fullmatch(capture_id):
            raise NotHere
        if not self.context.store.journal.one("SELECT 1 FROM capture WHERE id = ?", capture_id):
            raise NotHere
        return Gatherer(self.context.store).whole(self.context.store.captures.get(capture_id))

    def _original(self, capture_id: str) -> bytes:
        return self.context.store.vault.read(self.whole(capture_id).entry.capture.sha256)

    def lines(self, limit: int) -> list[Line]:
        """The newest captures, newest first."""
        gatherer = Gatherer(self.context.store)
        return [gatherer.line(entry) for entry in self.context.store.captures.latest(limit)]

    def lines_of(self, ids: Iterable[str]) -> list[Line]:
        """The lines of captures, in this order."""
        gatherer = Gatherer(self.context.store)
        return [gatherer.line(self.context.store.captures.get(one)) for one in ids]

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page in the visitor's language, with the status bar."""
        said = self.words(request)
        view = self.context.status()
        if not who_asks(request).session:  # who has not signed in learns nothing about hosts, folders and faults
            view = msgspec.structs.replace(view, problems=(), link_problem="", model_problems=(), doors=())
        phrases = Phrases(said, view.wall)
        html = self._templates.get_template(template).render(
            _=said,
            ngettext=said.ngettext,
            say=phrases,
            status=view,
            tiles=phrases.tiles(view),
            languages=languages(),
            modalities=MODALITIES,
            positions=POSITIONS,
            advice_not_diagnosis=said(ADVICE_NOT_DIAGNOSIS),
            path=request.url.path,
            who=who_asks(request),
            has_sign_in=self.has_sign_in,
            has_authority=self.has_authority,
            has_scan=self.context.ultrasound is not None,
            **values,
        )
        return HTMLResponse(html, status_code=status)

    def words(self, request: Request) -> Words:
        """The visitor's language."""
        asked = request.cookies.get(LANGUAGE_COOKIE, "")
        return words(choose(asked, request.headers.get("accept-language", "")))

    def problem(self, request: Request, status: int, what: str, remedy: str) -> Response:
        """The answer to a request that can't be answered: JSON below ``/api``, else a page."""
        said = self.words(request)
        what, remedy = said(what), said(remedy)
        if request.url.path.startswith("/api/"):
            return as_json(Problem(error=what, remedy=remedy), status)
        try:
            return self.page(request, "problem.html", status, what=what, remedy=remedy)
        except StoreError:  # the page itself needs the store for its status bar
            return Response(f"{what}\n{remedy}\n", status, media_type="text/plain; charset=utf-8")

    def changed(self, request: Request, error: Exception) -> Response:
        """What the person saw is no longer so."""
        return self.problem(request, 409, str(error), N_("Nothing was changed. Go back and look again."))

    def unclear(self, request: Request, error: Exception) -> Response:
        """What was sent can't be taken."""
        return self.problem(request, 422, str(error), N_("Nothing was changed. Go back and look again."))

    def not_here(self, request: Request, _error: Exception) -> Response:
        """No such page or capture."""
        return self.problem(
            request, 404, N_("There is no such page or capture on this box."), N_("Go back to the list of captures.")
        )

    def store_failed(self, request: Request, error: Exception) -> Response:
        """The store could not give what was asked."""
        self.counts["damaged" if isinstance(error, Damaged) else "store"] += 1
        if isinstance(error, Damaged):
            return self.problem(
                request,
                500,
                N_("The file of this capture is damaged on the disk."),
                N_("Take the capture again if you can, and tell who maintains the box: the disk may be failing."),
            )
        return self.problem(request, 500, str(error), N_("Tell who maintains the box."))


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A record or a list of records as JSON."""
    return Response(_ENCODER.encode(value), status, headers, "application/json")


def needing_attention(lines: Iterable[Line]) -> list[Line]:
    """What somebody should act on now: critical and unseen, or escalated; the order is kept."""
    return [line for line in lines if line.unseen or line.escalated]
