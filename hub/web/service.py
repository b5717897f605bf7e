"""The pages about the service: boxes, its quality, models, people, the audit log; none of them changes anything."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response

from hub import fleet, quality, tables
from hub.web import cards, plots
from hub.web.access import ADMINISTER, VIEW, route
from hub.web.api import ApiError
from hub.web.rendering import page, stamp
from hub.web.site import site

_SOON_MS = 30 * 86_400_000
"""A certificate that ends sooner is marked: the box should have renewed it by then."""


def devices(request: Request) -> Response:
    """``/devices``."""
    of = site(request)
    with of.database.read() as connection:
        found = fleet.devices(connection)
    return page(request, "devices.html", devices=found, now_ms=of.clock_ms(), soon=stamp(of.clock_ms() + _SOON_MS))


def quality_page(request: Request) -> Response:
    """``/quality?days=90``: time to a human's word, agreement between model and readers; plots and their tables."""
    of = site(request)
    try:
        days = msgspec.convert(request.query_params.get("days", "90"), quality.Days, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError(422, f"days: {error}") from error
    with of.database.read() as connection:
        found = quality.quality(connection, of.clock_ms(), days=days)
    return page(
        *(request, "quality.html"),
        quality=found,
        waits=plots.waits(found.waits),
        agreement=plots.agreement(found.agreement),
    )


def model_card(request: Request) -> Response:
    """``/model/{bundle}/{version}``: the card of a shipped bundle, when it is of this very version."""
    bundle, version = request.path_params["bundle"], request.path_params["version"]
    text = cards.card(site(request).models, bundle, version)
    return page(request, "card.html", 200 if text else 404, bundle=bundle, version=version, card=text)


def people(request: Request) -> Response:
    """``/people``: who may sign in, and which programs have a token."""
    of = site(request)
    return page(
        request,
        "people.html",
        people=of.people.all() if of.people else [],
        tokens=of.sessions.tokens() if of.sessions else [],
    )


def audit(request: Request) -> Response:
    """``/audit``: what was done, newest first; ``?subject=`` for one case or person."""
    event, subject = tables.audit_event.c, request.query_params.get("subject", "").strip()[:128]
    query = select(tables.audit_event).order_by(event.id.desc()).limit(500)
    if subject:
        query = query.where((event.subject == subject) | (event.actor == subject))
    with site(request).database.read() as connection:
        events = connection.execute(query).all()
    return page(request, "audit.html", events=events, subject=subject)


ROUTES: list[Any] = [
    route("/devices", devices, VIEW),
    route("/quality", quality_page, VIEW, name="quality"),
    route("/model/{bundle}/{version}", model_card, VIEW),
    route("/people", people, ADMINISTER),
    route("/audit", audit, ADMINISTER),
]
