"""The pages about the service: boxes, people, the audit log."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response

from hub import cases, tables
from hub.web.access import ADMINISTER, VIEW, route
from hub.web.rendering import page
from hub.web.site import site


def devices(request: Request) -> Response:
    """``/devices``."""
    of = site(request)
    with of.database.read() as connection:
        found = cases.devices(connection)
    return page(request, "devices.html", devices=found)


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
    route("/people", people, ADMINISTER),
    route("/audit", audit, ADMINISTER),
]
