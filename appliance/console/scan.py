"""The page of live ultrasound: the picture, how good it is, freeze, clip, keep or discard.

What this module keeps true: it works without scripts (the script draws the picture faster and sends the forms quietly); a
freeze or clip is of the patient who was confirmed for this very page, or of nobody yet; the picture of a screen whose
picture area is not known is shown to find out why, and goes no further.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import quote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from appliance.capture.intake import IntakeError, StoreFull
from appliance.capture.video import VideoDoor
from appliance.capture.video_multiframe import NoFrames
from appliance.capture.video_scan import NotNow
from appliance.capture.video_takes import Whose
from appliance.console import binding, visits
from appliance.console.forms import Fields, read_form
from appliance.console.gate import Guarded, looked, who_asks
from appliance.console.scan_phrases import said, take_words
from appliance.console.site import NotHere, Problem, Site, as_json
from appliance.console.words import N_
from appliance.records import Patient
from appliance.store.people import Role

_PICTURE_WAIT_S = 2.0
_STATE_WAIT_S = 5.0
_PACE_S = 0.2
_LONGEST_S = 600.0

Act = Callable[[VideoDoor, Request, Fields], Response]


def routes(site: Site) -> list[Guarded]:
    """The page's addresses; none where live ultrasound is not offered."""
    door = site.context.ultrasound
    if door is None:
        visits.WAYS.pop("scan", None)
        return []
    visits.WAYS["scan"] = "/scan"
    acts: dict[str, Act] = {
        "/scan/freeze": lambda door, request, form: _freeze(site, door, request, form),
        "/scan/clip": lambda door, request, form: _clip(site, door, request, form),
        "/scan/end": _end,
        "/scan/takes/{id}/keep": _keep,
        "/scan/takes/{id}/discard": _discard,
        "/scan/area": _area,
    }
    return [
        Guarded("/scan", _in_thread(lambda request: _page(site, door, request)), role=Role.NURSE),
        Guarded("/scan/picture", _in_thread(lambda request: _picture(door, request)), role=Role.NURSE),
        Guarded("/scan/events", _events(site, door), role=Role.NURSE),
        *(Guarded(path, _acting(site, door, act), role=Role.NURSE, method="POST") for path, act in acts.items()),
    ]


def _in_thread(call: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(call, request)

    return endpoint


def _page(site: Site, door: VideoDoor, request: Request) -> Response:
    ticket = request.query_params.get("ticket", "").replace(" ", "+")
    held = binding.held(site.context.store, who_asks(request), ticket, site.context.store.now) if ticket else None
    door.present(held.visit.id if held else "")
    scan, words = door.scan(), site.words(request)
    return site.page(
        request,
        "scan.html",
        state=said(scan, words, site.context.live_reading()),
        takes=[
            (take, *take_words(take, words), _whom(site, take.encounter_id))
            for take in scan.takes
            if not take.recording
        ],
        held=held,
        ticket=ticket if held else "",
        expired=bool(ticket and not held),
    )


def _whom(site: Site, encounter_id: str) -> Patient | None:
    visit = site.context.store.patients.visit(encounter_id) if encounter_id else None
    return None if visit is None else visit.patient


def _picture(door: VideoDoor, request: Request) -> Response:
    """The newest picture as JPEG after the one with number ``after``; 204 when none comes in time."""
    after, width = _count(request, "after", -1), _count(request, "width", 640)
    picture = door.picture(after, width, _PICTURE_WAIT_S)
    if picture is None:
        return Response(status_code=204)
    looked(request)
    headers = {"x-number": str(picture.number), "x-whole": "1" if picture.whole else "0"}
    return Response(picture.jpeg, media_type="image/jpeg", headers=headers)


def _count(request: Request, name: str, otherwise: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else otherwise


def _events(site: Site, door: VideoDoor) -> Callable[[Request], Awaitable[Response]]:
    """The state in words as server-sent events, a few a second at most."""

    async def events(request: Request) -> AsyncIterator[bytes]:
        words, serial = site.words(request), -1
        end = asyncio.get_running_loop().time() + _LONGEST_S
        while asyncio.get_running_loop().time() < end and not door.stopping:
            scan = await run_in_threadpool(door.scan, serial, _STATE_WAIT_S)
            if scan.serial == serial:
                yield b": still here\n\n"
                continue
            serial = scan.serial
            yield b"data: " + msgspec.json.encode(said(scan, words, site.context.live_reading())) + b"\n\n"
            await asyncio.sleep(_PACE_S)

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(events(request), media_type="text/event-stream")

    return endpoint


def _acting(site: Site, door: VideoDoor, act: Act) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        form = await read_form(request)
        quiet = bool(form.text("quiet"))
        try:
            return await run_in_threadpool(act, door, request, form)
        except NotNow:
            hint = said(door.scan(), site.words(request)).hint
            return _refused(site, request, quiet, 409, N_("That can't be done just now."), hint)
        except ValueError:
            remedy = N_("The top must lie above the bottom and the left before the right.")
            return _refused(site, request, quiet, 422, N_("That can't be done just now."), remedy)
        except NoFrames:
            remedy = N_("Freeze or record again.")
            return _refused(site, request, quiet, 410, N_("Nothing of it is on the disk."), remedy)
        except (StoreFull, IntakeError) as error:
            status = 507 if isinstance(error, StoreFull) else 422
            return _refused(site, request, quiet, status, N_("It was not kept yet."), str(error))

    return endpoint


def _refused(site: Site, request: Request, quiet: bool, status: int, what: str, remedy: str) -> Response:
    if not quiet:
        return site.problem(request, status, what, remedy)
    words = site.words(request)
    return as_json(Problem(error=words(what), remedy=words(remedy)), status)


def _whose(site: Site, request: Request, form: Fields) -> Whose:
    """Whom the page said that the take is of; nobody when that no longer holds."""
    who, ticket = who_asks(request), form.text("ticket")
    held = binding.held(site.context.store, who, ticket, site.context.store.now) if ticket else None
    if held is None:
        return Whose()
    return Whose(
        patient=held.patient,
        encounter_id=held.visit.id,
        accession_number=held.visit.accession_number,
        ticket=ticket,
        by=who.id,
        session=who.session,
    )


def _freeze(site: Site, door: VideoDoor, request: Request, form: Fields) -> Response:
    door.freeze(_whose(site, request, form), max(0, form.number("number")))
    return _back(form)


def _clip(site: Site, door: VideoDoor, request: Request, form: Fields) -> Response:
    door.record(_whose(site, request, form))
    return _back(form)


def _end(door: VideoDoor, _request: Request, form: Fields) -> Response:
    door.finish()
    return _back(form)


def _keep(door: VideoDoor, request: Request, form: Fields) -> Response:
    kept = door.keep(request.path_params["id"])
    path = f"/captures/{kept.capture_id}"
    return as_json({"go": path}) if form.text("quiet") else visits.see(path)


def _discard(door: VideoDoor, request: Request, form: Fields) -> Response:
    door.discard(request.path_params["id"])
    return _back(form)


def _area(door: VideoDoor, _request: Request, form: Fields) -> Response:
    what = form.text("what")
    if what == "confirm":
        door.confirm_area()
    elif what == "search":
        door.search_area()
    elif what == "set":
        top, left, bottom, right = ((form.decimal(name) or 0.0) / 100 for name in ("top", "left", "bottom", "right"))
        door.confirm_area((top, left, bottom, right))
    else:
        raise NotHere
    return _back(form)


def _back(form: Fields) -> Response:
    if form.text("quiet"):
        return Response(status_code=204)
    ticket = form.text("ticket")
    return visits.see(f"/scan?ticket={quote(ticket)}" if ticket else "/scan")
