"""How a page is made: the templates, the words for numbers, and what every page knows.

What this module keeps true: every value passes Jinja2's escaping; a value that a template expects and does not get is an error.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from appliance.protocol.messages import FindingPart
from hub.people import Role
from hub.web.site import person, roles, site

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
MODALITIES = {
    "chest-xray": "Chest X-ray",
    "lung-ultrasound": "Lung ultrasound",
    "heart-sound": "Heart sound",
    "lung-sound": "Lung sound",
    "other": "Other",
}


def waiting(seconds: float) -> str:
    """A time span for people: ``8 min``, ``2 h 05 min``, ``3 days``."""
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // (24 * 60)} days"


def size(count: float) -> str:
    """A number of bytes for people."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def seen(finding: FindingPart) -> str:
    """A finding's answer in words."""
    return "likely present" if finding.positive else "not seen"


def moment(at: str | int | None) -> str:
    """A time for people, in UTC: ``2026-11-23 08:05``; from RFC 3339 or milliseconds. What is neither stays as it is."""
    try:
        if isinstance(at, int):
            return f"{dt.datetime.fromtimestamp(at / 1000, dt.timezone.utc):%Y-%m-%d %H:%M}"
        return f"{dt.datetime.fromisoformat(str(at).replace('Z', '+00:00')):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return str(at or "")


def stamp(at_ms: int) -> str:
    """Milliseconds as RFC 3339, for ``datetime`` attributes."""
    return f"{dt.datetime.fromtimestamp(at_ms / 1000, dt.timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


_ENVIRONMENT.filters.update(
    waiting=waiting,
    size=size,
    seen=seen,
    moment=moment,
    stamp=stamp,
    modality=lambda m: MODALITIES.get(str(m), str(m)),
)


def page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """The template with ``values`` and what every page knows: who asks, what they may do, where they are."""
    held = roles(request)
    values.update(
        person=person(request),
        signs_in=site(request).signs_in,
        may_read=Role.READER in held,
        may_administer=Role.ADMINISTRATOR in held,
        inside=bool(held),
        idle_s=int(getattr(request.state, "idle_s", 0)),
        path=request.url.path,
    )
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(values), status_code=status)
