"""The JSON API about patients: who is here, and whose a capture is. The same acts and the same checks as the pages.

What this module keeps true: a program attaches a capture as a person does: it asks for the offer, shows it, and sends back the
seal with what was confirmed; there is no way around.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from appliance.console import binding
from appliance.console.api import NURSE, ApiRoute
from appliance.console.binding import Confirmation, Offer
from appliance.console.gate import who_asks
from appliance.console.lines import Line
from appliance.console.reception import Entry, Planned, Unclear
from appliance.console.site import NotHere, Site, as_json
from appliance.console.words import N_
from appliance.records import Record
from appliance.store.attachments import Attachment
from appliance.store.patients import Known, Visit

_T = TypeVar("_T")


class VisitList(Record, frozen=True, kw_only=True, omit_defaults=False):
    """Who is here, newest first, what is planned, and the captures that wait to be confirmed."""

    visits: tuple[Visit, ...]
    planned: tuple[Planned, ...]
    waiting: tuple[Line, ...]


class VisitDetail(Record, frozen=True, kw_only=True, omit_defaults=False):
    """A visit with its captures, in the order they came."""

    visit: Visit
    captures: tuple[Line, ...]


class Opening(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose visit to open: an entry of the worklist, or a patient who was here before as ``revision`` showed them."""

    origin: str = ""
    patient: str = ""
    revision: int = 0


class Amendment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is right of a visit's patient; ``revision``: what was seen."""

    revision: int
    entry: Entry


class Opened(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the patient is here."""

    is_open: bool


class Detached(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which word on the capture was seen."""

    seen: int


class Ticket(Record, frozen=True, kw_only=True):
    """For the captures that are taken now: it goes with them, as long as the person is signed in."""

    ticket: str


def visits(site: Site, _request: Request) -> Response:
    """Who is here."""
    store = site.context.store
    return as_json(
        VisitList(
            visits=tuple(store.patients.open_visits()),
            planned=tuple(site.reception.planned()),
            waiting=tuple(site.lines_of(store.attachments.waiting())),
        )
    )


def visit(site: Site, request: Request) -> Response:
    """One visit."""
    return as_json(_detail(site, request.path_params["id"]))


async def enter(site: Site, request: Request) -> Response:
    """A new patient."""
    entry = await _body(request, Entry)
    return as_json(await run_in_threadpool(site.reception.enter, who_asks(request), entry), 201)


async def open_visit(site: Site, request: Request) -> Response:
    """A visit from the worklist, or of a patient who was here before."""
    said, who = await _body(request, Opening), who_asks(request)
    if said.origin:
        return as_json(await run_in_threadpool(site.reception.start, who, said.origin))
    return as_json(await run_in_threadpool(site.reception.open, who, said.patient, said.revision))


async def amend(site: Site, request: Request) -> Response:
    """Correct a patient."""
    said, visit_id = await _body(request, Amendment), _known_visit(site, request)
    known = await run_in_threadpool(site.reception.amend, who_asks(request), visit_id, said.revision, said.entry)
    return as_json(known)


async def set_open(site: Site, request: Request) -> Response:
    """The patient has left, or is here after all."""
    said, visit_id = await _body(request, Opened), _known_visit(site, request)
    act = site.reception.reopen if said.is_open else site.reception.close
    await run_in_threadpool(act, who_asks(request), visit_id)
    return as_json(await run_in_threadpool(_detail, site, visit_id))


async def ticket(site: Site, request: Request) -> Response:
    """Confirm the patient of captures to come."""
    said = await _body(request, Confirmation)
    if said.visit != _known_visit(site, request):
        raise Unclear(N_("The visit of the address is not the one that was confirmed."))
    made = await run_in_threadpool(binding.ticket, site.context.store, who_asks(request), said)
    return as_json(Ticket(ticket=made), 201)


def offer(site: Site, request: Request) -> Response:
    """What to show before a capture is attached, or (without one) before captures are taken."""
    capture_id = request.query_params.get("capture", "")
    visit_id = _known_visit(site, request)
    if capture_id:
        capture_id = site.whole(capture_id).line.id
    return as_json(binding.offer(site.context.store, who_asks(request), visit_id, capture_id))


async def attach(site: Site, request: Request) -> Response:
    """Attach a capture to what was confirmed."""
    said = await _body(request, Confirmation)
    capture_id = (await run_in_threadpool(site.whole, request.path_params["id"])).line.id
    return as_json(await run_in_threadpool(site.reception.attach, who_asks(request), capture_id, said))


async def detach(site: Site, request: Request) -> Response:
    """Take a capture away from its visit."""
    said = await _body(request, Detached)
    capture_id = (await run_in_threadpool(site.whole, request.path_params["id"])).line.id
    return as_json(await run_in_threadpool(site.reception.detach, who_asks(request), capture_id, said.seen))


_CAPTURE = (("capture", {"type": "string"}, "The capture to attach; empty for captures to come"),)

ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("/api/visits", "GET", "Who is here, what is planned, what waits", VisitList, visits, role=NURSE),
    ApiRoute("/api/visits", "POST", "Open a visit", Visit, open_visit, 200, Opening, role=NURSE),
    ApiRoute("/api/patients", "POST", "Enter a patient and open the visit", Visit, enter, 201, Entry, role=NURSE),
    ApiRoute("/api/visits/{id}", "GET", "One visit with its captures", VisitDetail, visit, role=NURSE),
    ApiRoute("/api/visits/{id}/patient", "POST", "Correct the patient", Known, amend, 200, Amendment, role=NURSE),
    ApiRoute("/api/visits/{id}/open", "POST", "Open or close a visit", VisitDetail, set_open, 200, Opened, role=NURSE),
    ApiRoute("/api/visits/{id}/offer", "GET", "What to show and confirm", Offer, offer, query=_CAPTURE, role=NURSE),
    ApiRoute(
        "/api/visits/{id}/ticket", "POST", "Confirm for captures to come", Ticket, ticket, 201, Confirmation, role=NURSE
    ),
    ApiRoute(
        "/api/captures/{id}/attach", "POST", "Attach a capture", Attachment, attach, 200, Confirmation, role=NURSE
    ),
    ApiRoute("/api/captures/{id}/detach", "POST", "Take it away again", Attachment, detach, 200, Detached, role=NURSE),
)


def _detail(site: Site, visit_id: str) -> VisitDetail:
    store = site.context.store
    found = store.patients.visit(visit_id)
    if found is None:
        raise NotHere
    return VisitDetail(visit=found, captures=tuple(site.lines_of(store.attachments.of_visit(visit_id))))


def _known_visit(site: Site, request: Request) -> str:
    visit_id: str = request.path_params["id"]
    if site.context.store.patients.visit(visit_id) is None:
        raise NotHere
    return visit_id


async def _body(request: Request, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.DecodeError as error:
        raise Unclear(N_("What was sent is not what this address takes; see /api/openapi.json.")) from error
