"""Signing in, out and up: the pages by which people say who they are, and an administrator says who may.

What this module keeps true: no PIN, code or token is ever shown again or logged; each sign-in, refusal and change stands in the
audit log by the person's id; nobody is the first administrator without the code that only the box's own operator can read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from appliance.console.forms import Fields, read_form
from appliance.console.gate import ANYBODY, COOKIE, Guarded, who_asks
from appliance.console.sessions import Sessions
from appliance.console.site import NotHere, Site
from appliance.console.visits import see
from appliance.console.words import N_
from appliance.store import setup_code
from appliance.store.errors import StoreError
from appliance.store.people import Role, Throttled, count_guess, forgive

ROLES: dict[Role, str] = {
    Role.NURSE: N_("Nurse"),
    Role.CLINICIAN: N_("Clinician"),
    Role.ADMINISTRATOR: N_("Administrator"),
}
_CODE = "setup-code"

# What the store says, for the catalogue.
N_("a PIN has 6 to 12 digits")
N_("this PIN is among the first that anybody tries; choose another one")
N_("somebody has this name already; add a letter to tell the two apart")
N_("a name is needed, so that people find themselves on the screen")
N_("somebody must stay who may change this: keep one active administrator")
N_("somebody attached or moved this capture meanwhile; look again")
N_("somebody changed this patient meanwhile; look again")


def routes(site: Site, sessions: Sessions) -> list[Guarded]:
    """The pages' addresses."""

    def get(path: str, page: Callable[[Site, Request], Response], role: Role | str) -> Guarded:
        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(page, site, request)

        return Guarded(path, endpoint, role=role)

    def post(path: str, act: Callable[[Site, Sessions, Request, Fields], Response], role: Role | str) -> Guarded:
        return Guarded(path, partial(_act, site, sessions, act), role=role, method="POST")

    return [
        get("/sign-in", _sign_in_page, ANYBODY),
        post("/sign-in", _sign_in, ANYBODY),
        post("/sign-out", _sign_out, ANYBODY),
        get("/setup", _setup_page, ANYBODY),
        post("/setup", _setup, ANYBODY),
        get("/pin", _pin_page, Role.NURSE),
        post("/pin", _pin, Role.NURSE),
        get("/people", _people_page, Role.ADMINISTRATOR),
        post("/people", _add, Role.ADMINISTRATOR),
        post("/people/{person}", _change, Role.ADMINISTRATOR),
        post("/tokens", _make_token, Role.ADMINISTRATOR),
        post("/tokens/{token}/revoke", _revoke, Role.ADMINISTRATOR),
    ]


def _sign_in_page(site: Site, request: Request, notice: str = "", status: int = 200, chosen: str = "") -> Response:
    people = [one for one in site.context.store.people.all() if one.active]
    if not people:
        return see("/setup")
    back = local(request.query_params.get("back", ""))
    return site.page(request, "sign-in.html", status, people=people, notice_text=notice, back=back, chosen=chosen)


def _sign_in(site: Site, sessions: Sessions, request: Request, form: Fields) -> Response:
    person, now = form.text("person"), site.context.store.now()
    try:
        cookie = sessions.begin(person, form.text("pin"), now)
    except Throttled as error:
        site.context.store.note("sign-in-throttled", person)
        said = site.words(request)
        notice = said(N_("Too many wrong tries. Wait {time}, then try again."), time=said.duration(error.seconds + 1))
        return _sign_in_page(site, request, notice, 429, person)
    if cookie is None:
        known = site.context.store.people.get(person) is not None
        site.context.store.note("sign-in-failed", person if known else "unknown")
        return _sign_in_page(site, request, N_("This is not the PIN of this person."), 403, person)
    site.context.store.note("signed-in", person)
    return _with_cookie(request, local(form.text("back")), cookie)


def _sign_out(site: Site, sessions: Sessions, request: Request, form: Fields) -> Response:
    who = who_asks(request)
    if who.session:
        sessions.end(request.cookies.get(COOKIE, ""))
        site.context.store.note("signed-out", who.id)
    response = see(f"/sign-in?back={local(form.text('back'))}")
    response.delete_cookie(COOKIE)
    return response


def _setup_page(site: Site, request: Request, notice: str = "", status: int = 200) -> Response:
    is_open = setup_code.read(site.context.store.folder) is not None
    return site.page(request, "setup.html", status, notice_text=notice, is_open=is_open)


def _setup(site: Site, sessions: Sessions, request: Request, form: Fields) -> Response:
    store = site.context.store
    now = store.now()
    try:
        store.journal.write(lambda tx: count_guess(tx, _CODE, now))
    except Throttled as error:
        said = site.words(request)
        notice = said(N_("Too many wrong tries. Wait {time}, then try again."), time=said.duration(error.seconds + 1))
        return _setup_page(site, request, notice, 429)
    if not setup_code.matches(store.folder, form.text("code")):
        store.note("setup-failed", "setup")
        return _setup_page(site, request, N_("This is not the code of this box."), 403)
    store.journal.write(lambda tx: forgive(tx, _CODE))
    if form.text("pin") != form.text("again"):
        return _setup_page(site, request, N_("The two PINs differ. Type the same one twice."), 422)
    try:
        person = store.people.enter(form.text("name"), Role.ADMINISTRATOR, form.text("pin"))
    except StoreError as error:
        return _setup_page(site, request, str(error), 422)
    setup_code.spend(store.folder, store.files)
    store.note("administrator-entered", person.id, "by the setup code")
    return _with_cookie(request, "/people", sessions.open_for(person.id))


def _pin_page(site: Site, request: Request, notice: str = "", status: int = 200) -> Response:
    return site.page(request, "pin.html", status, notice_text=notice)


def _pin(site: Site, sessions: Sessions, request: Request, form: Fields) -> Response:
    who, store = who_asks(request), site.context.store
    if form.text("pin") != form.text("again"):
        return _pin_page(site, request, N_("The two PINs differ. Type the same one twice."), 422)
    try:
        if store.people.sign_in(who.id, form.text("present"), store.now()) is None:
            return _pin_page(site, request, N_("This is not the PIN of this person."), 403)
        store.people.set_pin(who.id, form.text("pin"))
    except StoreError as error:
        return _pin_page(site, request, str(error), 429 if isinstance(error, Throttled) else 422)
    store.note("pin-changed", who.id, f"by={who.id}")
    sessions.end_of(who.id)
    return _with_cookie(request, "/", sessions.open_for(who.id))


def _people_page(site: Site, request: Request, notice: str = "", status: int = 200, secret: str = "") -> Response:
    people, tokens = site.context.store.people.all(), site.context.store.people.tokens()
    return site.page(
        request, "people.html", status, people=people, tokens=tokens, roles=ROLES, notice_text=notice, secret=secret
    )


def _add(site: Site, _sessions: Sessions, request: Request, form: Fields) -> Response:
    try:
        person = site.context.store.people.enter(form.text("name"), _role(form), form.text("pin"))
    except StoreError as error:
        return _people_page(site, request, str(error), 422)
    site.context.store.note("person-entered", person.id, f"by={who_asks(request).id} role={person.role.value}")
    return see("/people")


def _change(site: Site, sessions: Sessions, request: Request, form: Fields) -> Response:
    store = site.context.store
    person = store.people.get(request.path_params["person"])
    if person is None:
        raise NotHere
    name, active = form.text("name") or person.name, form.text("active") != "no"
    changed = msgspec.structs.replace(person, name=name, role=_role(form), active=active)
    try:
        store.journal.write(lambda tx: store.people.change(tx, changed))
        if form.text("pin"):
            store.people.set_pin(person.id, form.text("pin"))
    except StoreError as error:
        return _people_page(site, request, str(error), 422)
    detail = f"by={who_asks(request).id} role={changed.role.value} active={active} pin={bool(form.text('pin'))}"
    store.note("person-changed", person.id, detail)
    if changed.role is not person.role or form.text("pin") or not active:
        sessions.end_of(person.id)
    return see("/people")


def _make_token(site: Site, _sessions: Sessions, request: Request, form: Fields) -> Response:
    store, who = site.context.store, who_asks(request)
    if not form.text("label"):
        return _people_page(site, request, N_("Say what the token is for."), 422)
    token, secret = store.people.make_token(form.text("label"), _role(form), who.id, store.now())
    store.note("token-made", token.id, f"by={who.id} role={token.role.value}")
    return _people_page(site, request, secret=secret)


def _revoke(site: Site, _sessions: Sessions, request: Request, _form: Fields) -> Response:
    token_id = request.path_params["token"]
    if not site.context.store.people.revoke(token_id):
        raise NotHere
    site.context.store.note("token-revoked", token_id, f"by={who_asks(request).id}")
    return see("/people")


def local(path: str) -> str:
    """A path of this console to go back to; the first page when it is none."""
    return path if path.startswith("/") and path[1:2] not in {"/", "\\"} and path.isprintable() else "/"


def _role(form: Fields) -> Role:
    text = form.text("role")
    return Role(text) if text in {role.value for role in Role} else Role.NURSE


def _with_cookie(request: Request, path: str, cookie: str) -> Response:
    response = see(path)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", secure=secure, path="/")
    return response


async def _act(
    site: Site, sessions: Sessions, act: Callable[[Site, Sessions, Request, Fields], Response], request: Request
) -> Response:
    return await run_in_threadpool(act, site, sessions, request, await read_form(request))
