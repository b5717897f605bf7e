"""The pages about patients: who is here, a new one, a visit, and whose a capture is.

What this module keeps true: every page works without scripts; a form carries all that was shown when it was made, so that it
can be sent late, twice or from another tab and still only do what its reader saw; a refusal shows the present and asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, cast

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from appliance.console import binding, study
from appliance.console.bands import BANDS
from appliance.console.binding import Confirmation, Unsure
from appliance.console.forms import Fields, read_form
from appliance.console.gate import Guarded, who_asks
from appliance.console.lines import Level, Line
from appliance.console.phrases import IDENTIFIERS
from appliance.console.reception import Entry, Taken, Unclear
from appliance.console.site import NotHere, Site
from appliance.console.words import N_
from appliance.records import Patient
from appliance.store.patients import Changed, Visit
from appliance.store.people import Role

_WORST: tuple[Level, ...] = ("critical", "urgent", "damaged", "not-read", "reading", "routine")
WAYS: dict[str, str] = {"add": "/add"}
"""Pages that take captures within a confirmed visit: name to path. A page that is added enters itself here."""


class Card(NamedTuple):
    """A visit with its captures; ``worst`` is the one to look at first."""

    visit: Visit
    lines: list[Line]
    worst: Line | None


def routes(site: Site) -> list[Guarded]:
    """The pages' addresses."""
    return [
        _get(site, "/patients", _patients),
        _get(site, "/patients/new", _new),
        _post(site, "/patients", _enter),
        _post(site, "/visits", _open),
        _get(site, "/visits/{visit}", _visit),
        _get(site, "/visits/{visit}/report.pdf", _report),
        _get(site, "/visits/{visit}/patient", _amend_form),
        _post(site, "/visits/{visit}/patient", _amend),
        _post(site, "/visits/{visit}/open", _set_open),
        _get(site, "/visits/{visit}/begin/{way}", _begin_form),
        _post(site, "/visits/{visit}/begin/{way}", _begin),
        _get(site, "/captures/{id}/attach", _choose),
        _get(site, "/captures/{id}/attach/{visit}", _confirm),
        _post(site, "/captures/{id}/attach/{visit}", _attach),
        _post(site, "/captures/{id}/detach", _detach),
    ]


def card(site: Site, visit: Visit) -> Card:
    """A visit as it is listed."""
    lines = site.lines_of(site.context.store.attachments.of_visit(visit.id))
    worst = min(lines, key=lambda line: _WORST.index(line.level), default=None)
    return Card(visit, lines, worst)


def visit_of(site: Site, request: Request) -> Visit:
    """The visit that an address names; raises ``NotHere``."""
    found = site.context.store.patients.visit(request.path_params["visit"])
    if found is None:
        raise NotHere
    return found


def _patients(site: Site, request: Request) -> Response:
    cards = [card(site, visit) for visit in site.context.store.patients.open_visits()]
    cards.sort(key=lambda one: _WORST.index(one.worst.level) if one.worst else len(_WORST))
    planned = [one for one in site.reception.planned() if not one.visit]
    waiting = site.lines_of(site.context.store.attachments.waiting())
    answer = site.context.store.worklist.answer()
    return site.page(request, "patients.html", cards=cards, planned=planned, waiting=waiting, worklist=answer)


def _new(site: Site, request: Request) -> Response:
    return _form(site, request, Patient(), capture=request.query_params.get("capture", ""))


def _form(
    site: Site,
    request: Request,
    patient: Patient,
    notice: str = "",
    taken: Taken | None = None,
    status: int = 200,
    *,
    capture: str = "",
    visit: Visit | None = None,
) -> Response:
    said = site.whole(capture).entry.capture.patient if capture else Patient()
    band = next((name for name, one in BANDS.items() if (one.low, one.high) == _range(patient)), "")
    return site.page(
        request,
        "patient.html",
        status,
        patient=patient,
        said=said if said.sex and said.age_years is not None and (said.id or said.name) else None,
        bands=BANDS,
        band=band,
        notice_text=notice,
        taken=() if taken is None else taken.known,
        capture=capture,
        visit=visit,
    )


def _range(patient: Patient) -> tuple[float | None, float | None]:
    return patient.age_years, patient.age_until


def _enter(site: Site, request: Request, form: Fields) -> Response:
    capture_id = form.text("capture")
    entry = _entry(form)
    try:
        visit = site.reception.enter(who_asks(request), entry)
    except Taken as error:
        return _form(site, request, _typed(entry), str(error), error, 409, capture=capture_id)
    except Unclear as error:
        return _form(site, request, _typed(entry), str(error), None, 422, capture=capture_id)
    return _onwards(site, visit, capture_id)


def _open(site: Site, request: Request, form: Fields) -> Response:
    """From the worklist or for a patient who was here before."""
    origin = form.text("origin")
    if origin:
        visit = site.reception.start(who_asks(request), origin)
    else:
        visit = site.reception.open(who_asks(request), form.text("patient"), form.number("revision"))
    return _onwards(site, visit, form.text("capture"))


def _onwards(site: Site, visit: Visit, capture_id: str) -> Response:
    if capture_id:
        return see(f"/captures/{site.whole(capture_id).line.id}/attach/{visit.id}")
    return see(f"/visits/{visit.id}")


def _visit(site: Site, request: Request) -> Response:
    visit = visit_of(site, request)
    past = [one for one in site.context.store.patients.visits_of(visit.known.key) if one.id != visit.id]
    waiting = site.lines_of(site.context.store.attachments.waiting(20))
    shown = card(site, visit)
    missing = study.lacking(site.context.store, site.words(request), [line.id for line in shown.lines])
    return site.page(request, "visit.html", card=shown, past=past, waiting=waiting, ways=WAYS, missing=missing)


def _report(site: Site, request: Request) -> Response:
    """The visit on one page, the most urgent capture first; captures that can't be unsealed are left to the screen."""
    from appliance.console.report import NoFonts, Printed, report

    shown = card(site, visit_of(site, request))
    readable = sorted(
        (line for line in shown.lines if line.level != "damaged"), key=lambda line: _WORST.index(line.level)
    )
    captures = [site.whole(line.id) for line in readable]
    printed = Printed(shown.visit, captures, site.context.store.now(), site.context.device)
    try:
        page = report(printed, site.words(request))
    except NoFonts as error:
        return site.problem(request, 501, str(error), N_("Tell who maintains the box."))
    name = f"visit-{shown.visit.id[:8]}.pdf"
    return Response(page, media_type="application/pdf", headers={"content-disposition": f'inline; filename="{name}"'})


def _amend_form(site: Site, request: Request) -> Response:
    visit = visit_of(site, request)
    return _form(site, request, visit.patient, visit=visit)


def _amend(site: Site, request: Request, form: Fields) -> Response:
    visit, entry = visit_of(site, request), _entry(form)
    try:
        site.reception.amend(who_asks(request), visit.id, form.number("revision"), entry)
    except Taken as error:
        return _form(site, request, _typed(entry), str(error), None, 409, visit=visit)
    except Unclear as error:
        return _form(site, request, _typed(entry), str(error), None, 422, visit=visit)
    return see(f"/visits/{visit.id}")


def _set_open(site: Site, request: Request, form: Fields) -> Response:
    visit = visit_of(site, request)
    if form.text("open") == "yes":
        site.reception.reopen(who_asks(request), visit.id)
        return see(f"/visits/{visit.id}")
    site.reception.close(who_asks(request), visit.id)
    return see("/patients")


def _choose(site: Site, request: Request) -> Response:
    """Which patient: those whom the sender's words fit best stand first; nothing is chosen beforehand."""
    line = site.whole(request.path_params["id"]).line
    who, store = who_asks(request), site.context.store
    offers = [binding.offer(store, who, visit.id, line.id) for visit in store.patients.open_visits()]
    offers.sort(key=lambda one: (len(one.differs), -sum(1 for word in one.compared if word.agrees)))
    return site.page(request, "choose.html", line=line, offers=offers, identifiers=IDENTIFIERS)


def _confirm(site: Site, request: Request, notice: str = "", status: int = 200) -> Response:
    line = site.whole(request.path_params["id"]).line
    return _shown(site, request, line, notice, status)


def _begin_form(site: Site, request: Request, notice: str = "", status: int = 200) -> Response:
    if request.path_params["way"] not in WAYS:
        raise NotHere
    return _shown(site, request, None, notice, status)


def _shown(site: Site, request: Request, line: Line | None, notice: str, status: int) -> Response:
    visit = visit_of(site, request)
    offer = binding.offer(site.context.store, who_asks(request), visit.id, line.id if line else "")
    return site.page(
        request, "confirm.html", status, line=line, offer=offer, identifiers=IDENTIFIERS, notice_text=notice
    )


def _attach(site: Site, request: Request, form: Fields) -> Response:
    line, visit = site.whole(request.path_params["id"]).line, visit_of(site, request)
    try:
        site.reception.attach(who_asks(request), line.id, _confirmation(form, visit))
    except Changed as error:
        if _is_done(site, request, line, visit):
            return see(f"/captures/{line.id}")
        return _confirm(site, request, str(error), 409)
    except Unsure as error:
        return _confirm(site, request, str(error), 422)
    return see(f"/captures/{line.id}")


def _is_done(site: Site, request: Request, line: Line, visit: Visit) -> bool:
    """Whether this is the second click of somebody whose first one did it."""
    word = site.context.store.attachments.current(line.id)
    return word is not None and word.visit == visit.id and word.by == who_asks(request).id


def _begin(site: Site, request: Request, form: Fields) -> Response:
    way = WAYS.get(request.path_params["way"])
    if way is None:
        raise NotHere
    visit = visit_of(site, request)
    try:
        ticket = binding.ticket(site.context.store, who_asks(request), _confirmation(form, visit))
    except Changed as error:
        return _begin_form(site, request, str(error), 409)
    except Unsure as error:
        return _begin_form(site, request, str(error), 422)
    return see(f"{way}?ticket={ticket}")


def _detach(site: Site, request: Request, form: Fields) -> Response:
    line = site.whole(request.path_params["id"]).line
    site.reception.detach(who_asks(request), line.id, form.number("seen"))
    return see(f"/captures/{line.id}")


def _confirmation(form: Fields, visit: Visit) -> Confirmation:
    return Confirmation(
        visit=visit.id, seal=form.text("seal"), confirmed=form.all("confirmed"), although=form.all("although")
    )


def _entry(form: Fields) -> Entry:
    sex = form.text("sex")
    if sex not in {"F", "M", "O"}:
        raise Unclear(N_("Choose the sex from the list."))
    return Entry(
        sex=cast('Literal["F", "M", "O"]', sex),
        number=form.text("number"),
        name=form.text("name"),
        band=form.text("band") if not form.text("age") else "",
        age_years=form.decimal("age"),
        birth_date=form.text("birth_date").replace("-", ""),
    )


def _typed(entry: Entry) -> Patient:
    """What was typed, to show it again."""
    band = BANDS.get(entry.band)
    low, high = (band.low, band.high) if band else (entry.age_years, None)
    return Patient(
        id=entry.number, name=entry.name, sex=entry.sex, birth_date=entry.birth_date, age_years=low, age_until=high
    )


def see(path: str) -> RedirectResponse:
    """Go on to a page after a form was sent."""
    return RedirectResponse(path, status_code=303)


def _get(site: Site, path: str, page: Callable[[Site, Request], Response]) -> Guarded:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(page, site, request)

    return Guarded(path, endpoint, role=Role.NURSE)


def _post(site: Site, path: str, act: Callable[[Site, Request, Fields], Response]) -> Guarded:
    return Guarded(path, partial(_act, site, act), role=Role.NURSE, method="POST")


async def _act(site: Site, act: Callable[[Site, Request, Fields], Response], request: Request) -> Response:
    return await run_in_threadpool(act, site, request, await read_form(request))
