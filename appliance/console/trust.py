"""How a tablet comes to trust this box: the authority's certificate, and its fingerprint on the box's own screen.

What this module keeps true: the fingerprint is shown only over the loopback interface. Whoever stands between a tablet and
the box could change both a certificate and a fingerprint that come the same way; people compare with the screen that they
stand before.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from appliance.console.certificate import fingerprint
from appliance.console.gate import ANYBODY, Guarded
from appliance.console.listener import AUTHORITY_PATH, authority_response, is_from_here
from appliance.console.site import Site


def routes(site: Site, authority: Callable[[], bytes | None]) -> list[Guarded]:
    """The page and the file; for anybody, since who doesn't trust the box yet can't safely sign in."""

    async def page(request: Request) -> Response:
        pem = await run_in_threadpool(authority)
        shown = fingerprint(pem) if pem is not None and is_from_here(request.scope) else ""
        return site.page(request, "certificate.html", fingerprint=shown, path_of_file=AUTHORITY_PATH)

    async def file(_request: Request) -> Response:
        return authority_response(await run_in_threadpool(authority))

    return [
        Guarded("/certificate", page, role=ANYBODY),
        Guarded(AUTHORITY_PATH, file, role=ANYBODY),
    ]
