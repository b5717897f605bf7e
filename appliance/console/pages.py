"""The pages of captures: the list, the answer to one, the form to add a file.

What this module keeps true: a page is made in a thread and not sent again while it is what the browser has; what is brought
together on an answer are captures of the same visit where people said so, else of what the senders said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from appliance.console import api, binding, study
from appliance.console.gate import Guarded, who_asks
from appliance.console.lines import Whole, reading_of
from appliance.console.phrases import IDENTIFIERS
from appliance.console.serve import kind
from appliance.console.site import Site, needing_attention
from appliance.console.together import Taken, Together, encounter, together
from appliance.records import Capture, Modality
from appliance.store.attachments import within
from appliance.store.errors import Damaged, StoreError
from appliance.store.people import Role

_SOUNDS = {Modality.HEART_SOUND, Modality.LUNG_SOUND}

Page = Callable[[Site, Request], Response]
Endpoint = Callable[[Request], Awaitable[Response]]


def routes(site: Site) -> list[Guarded]:
    """The pages' addresses."""
    return [
        Guarded("/", _reading(site, _home), role=Role.NURSE),
        Guarded("/add", _reading(site, _add), role=Role.NURSE),
        Guarded("/captures/{id}", _reading(site, _answer), role=Role.NURSE),
    ]


def _home(site: Site, request: Request) -> Response:
    limit = api.count(request.query_params.get("limit", ""))
    lines = site.lines(limit + 1)
    more = min(limit * 2, api.MOST) if len(lines) > limit and limit < api.MOST else 0
    lines = lines[:limit]
    attention = needing_attention(lines)
    unseen = [line for line in lines if line.human == "none" and line.level != "reading"]
    only_unseen = request.query_params.get("shown") == "unseen"
    return site.page(
        request,
        "captures.html",
        lines=unseen if only_unseen else lines,
        attention=attention,
        unseen=len(unseen),
        only_unseen=only_unseen,
        more=0 if only_unseen else more,
    )


def _add(site: Site, request: Request) -> Response:
    ticket = request.query_params.get("ticket", "")
    held = binding.held(site.context.store, who_asks(request), ticket, site.context.store.now)
    return site.page(request, "add.html", held=held, ticket=ticket if held else "", expired=bool(ticket and not held))


def _answer(site: Site, request: Request) -> Response:
    whole = site.whole(request.path_params["id"])
    capture = whole.entry.capture
    return site.page(
        request,
        "answer.html",
        line=whole.line,
        study=study.of_capture(site.context.store, site.words(request), capture.study_uid),
        capture=capture,
        reading=whole.reading,
        reviews=whole.reviews[::-1],
        sound=capture.modality in _SOUNDS or kind(capture.media_type).startswith("audio/"),
        pixels=not whole.entry.removed,
        agreement=site.context.agreement(capture.id),
        has_overlay=whole.reading is not None and bool(whole.reading.overlay),
        labels={finding.id: finding.label for finding in (whole.reading.findings if whole.reading else ())},
        together=_together(site, whole),
        visit=site.context.store.patients.visit(whole.line.visit) if whole.line.visit else None,
        words=site.context.store.attachments.history(capture.id),
        people={one.id: one.name for one in site.context.store.people.all()},
        identifiers=IDENTIFIERS,
    )


def _together(site: Site, whole: Whole) -> Together | None:
    """The encounter of a capture brought together; ``None`` when there is nothing to add, or a record of it is damaged.

    The list shows a damaged capture as such; it must not take this page with it.
    """
    store = site.context.store
    try:
        belong, undated = _belonging(site, whole)
        if len(belong) < 2:
            return None
        taken = []
        for capture in belong:
            reviews = store.inbox.reviews(capture.id)
            reading = reading_of(store, store.captures.get(capture.id))
            taken.append(Taken(capture=capture, reading=reading, review=reviews[-1] if reviews else None))
    except StoreError as error:
        site.counts["damaged" if isinstance(error, Damaged) else "store"] += 1
        return None
    return together(taken, undated)


def _belonging(site: Site, whole: Whole) -> tuple[list[Capture], int]:
    """The captures of the same encounter, and how many could not be dated.

    Where a person said whose the capture is, that alone counts; otherwise the sender's number does, without captures that a
    person gave to somebody.
    """
    store, shown = site.context.store, whole.entry.capture
    if whole.line.visit:
        visit = store.patients.need(whole.line.visit)
        attached = store.attachments.of_visit(visit.id)
        return [within(store.captures.get(one).capture, visit) for one in attached], 0
    if not shown.patient.id:
        return [], 0
    of_patient = [entry.capture for entry in store.captures.of_patient(shown.patient.id, shown.patient.issuer)]
    words = {one.id: store.attachments.current(one.id) for one in of_patient}
    return encounter(shown, [one for one in of_patient if not ((word := words[one.id]) and word.visit)])


def _reading(site: Site, page: Page) -> Endpoint:
    """A page as an endpoint: made in a thread, and not sent again while it is what the browser has."""

    async def endpoint(request: Request) -> Response:
        response = await run_in_threadpool(page, site, request)
        if response.status_code == 200:
            tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers={"etag": tag})
            response.headers["etag"] = tag
        return response

    return endpoint
