"""The stethoscope's page: choose a place on the body, listen along, keep or throw away.

What this module keeps true: the page works without scripts (it shows how it stands whenever it is opened); what is heard comes
from the box's own stethoscope, never from the browser; a form names the recording that was seen, so that an old page can
neither keep nor throw away another one; whose it is was confirmed before (a ticket), or it waits to be confirmed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import quote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from appliance.capture.intake import IntakeError, StoreFull
from appliance.capture.stethoscope import Busy, Live, Stethoscope
from appliance.capture.stethoscope_positions import HEART, LUNG, PLACES, Place, following
from appliance.capture.video_takes import Whose
from appliance.console import binding, visits
from appliance.console.binding import Held
from appliance.console.forms import Fields, read_form
from appliance.console.gate import Guarded, looked, who_asks
from appliance.console.listen_words import GUIDANCE, TROUBLE, WHY
from appliance.console.listen_words import PLACES as SAID
from appliance.console.site import NotHere, Site
from appliance.console.words import N_, Words
from appliance.interop.waveform import NotASound, general_audio
from appliance.records import Record
from appliance.store.attachments import within
from appliance.store.people import Role

visits.WAYS["listen"] = "/listen"
_EVERY_S, _IDLE_S, _ALIVE_S = 0.2, 0.5, 10.0
_LONGEST_S = 120.0
"""After so long the browser asks again, so that who may no longer listen is not told for ever."""

Endpoint = Callable[[Request], Awaitable[Response]]
Do = Callable[[Site, Request, Fields, Stethoscope], str]
"""Does what a form asks for and says where to go."""


class Shown(Record, frozen=True, kw_only=True, omit_defaults=False):
    """What the page's script is told: numbers to draw, and words in the visitor's language."""

    phase: str
    recording: str
    time: str
    tone: str
    icon: str
    text: str
    clean: float
    needed: float
    count: str
    rate: str
    quality: float
    lost: str
    level: float
    graded: str
    preview: str
    wave: tuple[int, ...]
    wave_end: int


def routes(site: Site) -> list[Guarded]:
    """The page's addresses."""
    return [
        Guarded("/listen", _in_thread(site, _page), role=Role.NURSE),
        Guarded("/listen/events", _events(site), role=Role.NURSE),
        Guarded("/listen/begin", _posted(site, _begin), role=Role.NURSE, method="POST"),
        Guarded("/listen/end", _posted(site, _end), role=Role.NURSE, method="POST"),
        Guarded("/listen/keep", _posted(site, _keep), role=Role.NURSE, method="POST"),
        Guarded("/listen/discard", _posted(site, _discard), role=Role.NURSE, method="POST"),
        Guarded("/captures/{id}/dicom", _in_thread(site, _object), role=Role.NURSE),
    ]


def shown(live: Live, words: Words) -> Shown:
    """How a recording stands, for the script and for the page as it is first sent."""
    _ = words
    heard = live.heard
    guidance = GUIDANCE[heard.guidance if heard.guidance in GUIDANCE else "listening"]
    done, needed = _.number(min(heard.clean, 99), 0), _.number(heard.needed)
    beats = heard.unit == "beats"
    count = (
        _("{done} of {needed} clean beats", done=done, needed=needed)
        if beats
        else _("{done} of {needed} clean breaths", done=done, needed=needed)
    )
    rate = "" if heard.rate_per_minute is None else _("about {rate} a minute", rate=_.number(heard.rate_per_minute))
    lost = bool(live.overflows or live.lost_s)
    return Shown(
        phase=live.phase,
        recording=live.recording,
        time=_.duration(live.seconds),
        tone=guidance.tone,
        icon=guidance.icon,
        text=_(guidance.text),
        clean=heard.clean,
        needed=heard.needed,
        count=count,
        rate=rate,
        quality=heard.quality,
        lost=_("Some sound was lost on the way; the record says so.") if lost else "",
        level=max(-80.0, heard.level_db),
        graded=_("Signal quality {percent}", percent=_.percent(heard.quality)) if heard.quality else "",
        preview=_preview(live, _),
        wave=live.wave,
        wave_end=live.wave_end,
    )


def _preview(live: Live, words: Words) -> str:
    """What the models say so far, as something that is not the answer yet; empty while they say nothing."""
    _ = words
    if live.preview is None or live.preview.status != "read" or not live.preview.findings:
        return ""
    found = max(live.preview.findings, key=lambda finding: finding.probability)
    said = _("{finding} {percent}", finding=found.label, percent=_.percent(found.probability))
    return _("So far, not the answer yet: {said}", said=said)


def _stethoscope(site: Site) -> Stethoscope:
    stethoscope = site.context.stethoscope
    if stethoscope is None:
        raise NotHere
    return stethoscope


def _page(site: Site, request: Request, notice: str = "", status: int = 200) -> Response:
    stethoscope = _stethoscope(site)
    live, said = stethoscope.live(), site.words(request)
    ticket = request.query_params.get("ticket", "")
    held = _held(site, request, ticket)
    done = _done(site, held)
    asked = request.query_params.get("place", "")
    place = PLACES[asked] if asked in PLACES else _first(done)
    kept = live.kept if request.query_params.get("kept") == live.kept else ""
    return site.page(
        request,
        "listen.html",
        status,
        live=live,
        shown=shown(live, said),
        heart=HEART,
        lung=LUNG,
        place=PLACES[live.place] if live.phase != "idle" and live.place else place,
        said_places=SAID,
        done=done,
        held=held,
        ticket=ticket if held else "",
        expired=bool(ticket and not held),
        trouble=TROUBLE.get(live.trouble, ""),
        why=WHY.get(live.why, ""),
        kept=kept,
        guidance=GUIDANCE,
        notice_text=notice,
    )


def _held(site: Site, request: Request, ticket: str) -> Held | None:
    store = site.context.store
    return binding.held(store, who_asks(request), ticket, store.now) if ticket else None


def _done(site: Site, held: Held | None) -> frozenset[str]:
    """The places that the visit has a recording of."""
    if held is None:
        return frozenset()
    return frozenset(line.position for line in site.lines_of(site.context.store.attachments.of_visit(held.visit.id)))


def _first(done: frozenset[str]) -> Place:
    return next((one for one in (*HEART, *LUNG) if one.id not in done), HEART[0])


def _begin(site: Site, request: Request, form: Fields, stethoscope: Stethoscope) -> str:
    place, ticket = form.text("place"), form.text("ticket")
    if place not in PLACES:
        raise Busy(N_("Choose a place first."))
    held, who = _held(site, request, ticket), who_asks(request)
    if ticket and held is None:
        raise Busy(N_("The confirmation has ended. Confirm the patient again, or record and confirm afterwards."))
    whose = Whose()
    if held is not None:
        whose = Whose(patient=held.patient, encounter_id=held.visit.id, ticket=ticket, by=who.id, session=who.session)
    stethoscope.begin(place, whose)
    return _there(ticket, place)


def _end(_site: Site, _request: Request, form: Fields, stethoscope: Stethoscope) -> str:
    stethoscope.end()
    return _there(form.text("ticket"), form.text("place"))


def _keep(site: Site, _request: Request, form: Fields, stethoscope: Stethoscope) -> str:
    place = form.text("place")
    kept = stethoscope.keep(form.text("recording"))
    site.context.wake()
    onwards = following(place) if place in PLACES else None
    return _there(form.text("ticket"), onwards.id if onwards else place) + f"&kept={kept.capture_id}"


def _discard(_site: Site, request: Request, form: Fields, stethoscope: Stethoscope) -> str:
    stethoscope.discard(form.text("recording"), who_asks(request).id)
    return _there(form.text("ticket"), form.text("place"))


def _there(ticket: str, place: str) -> str:
    known = place if place in PLACES else ""
    return f"/listen?place={known}&ticket={quote(ticket, safe='')}"


def _object(site: Site, request: Request) -> Response:
    """A recording as the DICOM object that is derived from it, of whom it was confirmed to be."""
    entry = site.whole(request.path_params["id"]).entry
    if entry.removed or not entry.capture.media_type.startswith("audio/"):
        raise NotHere
    store = site.context.store
    word = store.attachments.current(entry.capture.id)
    visit = store.patients.visit(word.visit) if word is not None and word.visit else None
    try:
        made = general_audio(within(entry.capture, visit, word), store.vault.read(entry.capture.sha256))
    except NotASound:
        return site.problem(
            request, 422, N_("There is no sound of this capture."), N_("The original can be downloaded instead.")
        )
    name = f'attachment; filename="{entry.capture.id}.dcm"'
    return Response(made, media_type="application/dicom", headers={"content-disposition": name})


def _in_thread(site: Site, page: Callable[[Site, Request], Response]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(page, site, request)

    return endpoint


def _posted(site: Site, do: Do) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        form = await read_form(request)
        try:
            return visits.see(await run_in_threadpool(do, site, request, form, _stethoscope(site)))
        except Busy as error:
            return await run_in_threadpool(_page, site, request, str(error), 409)
        except StoreFull as error:
            return site.problem(request, 507, str(error), N_("Nothing was recorded. Free space on the disk."))
        except IntakeError as error:
            return site.problem(request, 500, str(error), N_("The recording stays on the box and is tried again."))

    return endpoint


def _events(site: Site) -> Endpoint:
    """Server-sent events (HTML standard, 9.2): how it stands, several times a second while it records."""

    async def endpoint(request: Request) -> Response:
        stethoscope, said = _stethoscope(site), site.words(request)

        async def stream() -> AsyncIterator[bytes]:
            yield b"retry: 1000\n\n"
            told, at, began = b"", 0.0, time.monotonic()
            while (now := time.monotonic()) - began < _LONGEST_S:
                live = stethoscope.live()
                if live.phase == "recording":
                    looked(request)
                event = msgspec.json.encode(shown(live, said))
                if event != told or now - at > _ALIVE_S:
                    told, at = event, now
                    yield b"data: " + event + b"\n\n"
                await asyncio.sleep(_IDLE_S if live.phase == "idle" else _EVERY_S)

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    return endpoint
