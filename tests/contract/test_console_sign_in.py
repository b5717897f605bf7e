"""Who may do what at the console: every address tried as nobody, as a nurse and as an administrator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from appliance.console.gate import ANYBODY, COOKIE
from appliance.console.sessions import Sessions
from appliance.store import audit, setup_code
from appliance.store.people import FREE_GUESSES, Role
from tests.console_world import World, png

PIN = {"nurse": "480615", "administrator": "739204"}


class Live(NamedTuple):
    """A picture of a probe."""

    number: int
    jpeg: bytes
    whole: bool


class Signed(World):
    """A box with a nurse and an administrator."""

    def __init__(self, folder: Path, ultrasound: Any = None) -> None:
        super().__init__(folder, ultrasound=ultrasound, sign_in="on", idle_lock=5)
        self.ids = {name: self.store.people.enter(f"The {name}", Role(name), pin).id for name, pin in PIN.items()}

    @contextmanager
    def browser(self, name: str = "") -> Iterator[httpx.Client]:
        """A browser in which somebody is signed in."""
        with httpx.Client(base_url=self.url, headers={"origin": self.url, "accept-language": "en"}) as client:
            if name:
                form = {"person": self.ids[name], "pin": PIN[name], "back": "/patients"}
                answer = client.post("/sign-in", data=form)
                assert (answer.status_code, answer.headers["location"]) == (303, "/patients")
            yield client


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    world = Signed(tmp_path_factory.mktemp("box"))
    yield world
    world.close()


@pytest.fixture
def world(made: Signed) -> Signed:
    made.store.journal.write(lambda tx: tx.run("DELETE FROM throttle"))
    return made


def addresses(world: World) -> list[tuple[str, str, str]]:
    """Each address with a method and its role: what a program of this console could be asked."""
    found = []
    for route in world.server._app.routes:
        methods = getattr(route, "methods", None) or {"GET"}
        path = route.path if methods != {"GET"} or hasattr(route, "endpoint") else f"{route.path}/console.css"
        filled = re.sub(r"{\w+(:path)?}", "0" * 32, path)
        role = getattr(route, "role", "")
        found += [(filled, method, getattr(role, "value", role)) for method in sorted(methods - {"HEAD"})]
    return found


def test_every_route_states_its_role(world: Signed) -> None:
    known = {*(role.value for role in Role), ANYBODY}
    assert not [one for one in addresses(world) if one[2] not in known]
    assert len(addresses(world)) > 30


def test_nobody_gets_nothing_but_the_way_in(world: Signed) -> None:
    with world.browser() as browser:
        for path, method, role in addresses(world):
            answer = browser.request(method, path)
            if role == ANYBODY:
                assert answer.status_code != 401, path
                assert not answer.headers.get("location", "/sign-in").startswith("/visits"), path
            elif path.startswith("/api/"):
                assert answer.status_code == 401, (method, path)
            else:
                assert answer.status_code == 303, (method, path)
                assert answer.headers["location"].startswith("/sign-in"), path
    assert {path for path, _, role in addresses(world) if role == ANYBODY} == {
        *("/sign-in", "/sign-out", "/setup", "/language", "/static/console.css"),
    }


def test_who_has_not_signed_in_learns_nothing_about_the_box_s_faults(world: Signed) -> None:
    before = world.status_view
    world.status_view = msgspec.structs.replace(
        before, problems=("SECRET-1",), link_problem="SECRET-2", model_problems=("SECRET-3",)
    )
    try:
        with world.browser() as browser:
            for path in ("/sign-in", "/setup", "/no/such/page"):
                assert "SECRET" not in browser.get(path).text
        with world.browser("nurse") as browser:
            assert "SECRET-1" in browser.get("/").text
    finally:
        world.status_view = before


@pytest.mark.parametrize("name", ["nurse", "administrator"])
def test_each_address_asks_for_its_role(world: Signed, name: str) -> None:
    with world.browser(name) as browser:
        cookies = dict(browser.cookies)
        for path, method, role in addresses(world):
            if path in {"/sign-out", "/pin", "/sign-in", "/setup"}:
                continue  # these have words of their own for a wrong PIN, and end the session
            may = role == ANYBODY or Role(name).may(Role(role))
            answer = browser.request(method, path)
            said = (method, path, role, answer.status_code)
            assert (answer.status_code == 403) == (not may), said
            assert answer.status_code != 401, said
            browser.cookies.update(cookies)


def test_a_route_that_states_no_role_is_closed_to_everybody(world: Signed) -> None:
    route = Route("/forgotten", lambda _: PlainTextResponse("secret"))
    world.server._app.state.routes.append(route)
    try:
        with world.browser("administrator") as browser:
            assert browser.get("/forgotten").status_code == 403
    finally:
        world.server._app.state.routes.remove(route)


def test_the_cookie_is_for_this_console_alone(world: Signed) -> None:
    before = world.store.patients.open_visits()
    with world.browser() as browser:
        answer = browser.post("/sign-in", data={"person": world.ids["nurse"], "pin": PIN["nurse"]})
        cookie = answer.headers["set-cookie"].lower()
        assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/"))
        assert "max-age" not in cookie
        del browser.headers["origin"]
        assert browser.get("/patients").status_code == 200
        refused = browser.post("/patients", data={"sex": "F", "band": "adult"})
        assert refused.status_code == 403, "a write by cookie says where it comes from"
        assert "not clear where this came from" in refused.text
        foreign = browser.post("/patients", data={"sex": "F"}, headers={"origin": "http://evil.example"})
        assert foreign.status_code == 403
    assert world.store.patients.open_visits() == before


def test_the_screen_locks_when_nobody_touches_it_whatever_the_page_fetches(world: Signed) -> None:
    sessions = world.server._app.state.sessions
    present = [1000.0]
    before, sessions._clock = sessions._clock, lambda: present[0]
    try:
        with world.browser("nurse") as browser:
            for _ in range(4):
                present[0] += 200
                assert browser.get("/patients", headers={"x-refresh": "touched"}).status_code == 200
            for _ in range(2):
                present[0] += 140
                assert browser.get("/patients", headers={"x-refresh": "by itself"}).status_code == 200
            present[0] += 140
            assert browser.get("/patients", headers={"x-refresh": "by itself"}).status_code == 401
            answer = browser.get("/patients")
            assert answer.headers["location"] == "/sign-in?back=/patients"
        with world.browser("nurse") as browser:
            for _ in range(12 * 15):
                present[0] += 240
                browser.get("/api/status")
            present[0] += 240
            assert browser.get("/api/status").status_code == 401, "the longest session has an end"
    finally:
        sessions._clock = before


def test_a_screen_that_shows_a_live_picture_stays_open_for_half_an_hour_and_no_longer(tmp_path: Path) -> None:
    class Probe:
        """A probe that is live while ``on``: the one thing of the ultrasound door that is asked here."""

        on = True

        def picture(self, after: int, width: int, _wait_s: float) -> Live | None:
            return Live(number=after + 1, jpeg=b"jpeg %d" % width, whole=False) if self.on else None

    probe, present = Probe(), [1000.0]
    world = Signed(tmp_path, ultrasound=probe)
    sessions = world.server._app.state.sessions
    sessions._clock = lambda: present[0]

    def watch(browser: httpx.Client) -> int:
        present[0] += 240
        return browser.get("/scan/picture", params={"refresh": "1"}, headers={"x-refresh": "by itself"}).status_code

    try:
        with world.browser("nurse") as browser:
            assert [watch(browser) for _ in range(7)] == [200] * 7, "28 minutes with both hands at the patient"
            assert browser.get("/patients").status_code == 200, "a touch begins the half hour anew"
            assert [watch(browser) for _ in range(8)] == [200] * 8
            assert 401 in [watch(browser) for _ in range(3)], "nobody has been here for too long"
        with world.browser("nurse") as browser:
            probe.on = False
            assert [watch(browser) for _ in range(2)] == [204, 401], "a picture that is not there is not watched"
    finally:
        world.close()


def test_a_screen_stays_open_while_it_records(tmp_path: Path) -> None:
    present, people = [1000.0], Signed(tmp_path)
    try:
        sessions = Sessions(people.store.people, 300.0, lambda: present[0])
        cookie = sessions.open_for(people.ids["nurse"])
        for _ in range(4):
            present[0] += 240
            sessions.look(cookie)
            assert sessions.who(cookie, touch=False) is not None
        present[0] += 301
        sessions.look(cookie)
        assert sessions.who(cookie, touch=False) is None, "watching wakes no session that has ended"
    finally:
        people.close()


def test_locking_ends_the_session_and_a_stolen_cookie_with_it(world: Signed) -> None:
    with world.browser("nurse") as browser:
        cookie = browser.cookies[COOKIE]
        assert browser.post("/sign-out", data={"back": "/patients"}).headers["location"] == "/sign-in?back=/patients"
        browser.cookies.set(COOKIE, cookie)
        assert browser.get("/patients").status_code == 303


def test_a_wrong_pin_is_told_counted_and_slowed(world: Signed) -> None:
    with world.browser() as browser:
        form = {"person": world.ids["nurse"], "pin": "000000"}
        for _ in range(FREE_GUESSES):
            answer = browser.post("/sign-in", data=form)
            assert answer.status_code == 403
            assert "This is not the PIN of this person." in answer.text
        answer = browser.post("/sign-in", data={**form, "pin": PIN["nurse"]})
        assert answer.status_code == 429
        assert "Too many wrong tries. Wait" in answer.text
        assert browser.post("/sign-in", data={"person": "x", "pin": "1"}).status_code == 403
    events = [row["event"] for row in audit.entries(world.store.journal)]
    assert events.count("sign-in-failed") >= FREE_GUESSES
    assert "sign-in-throttled" in events


@pytest.mark.parametrize("back", ["//evil.example", "https://evil.example", "/\\evil.example", "", "x", "/a\r\nb: c"])
def test_signing_in_leads_nowhere_else(world: Signed, back: str) -> None:
    with world.browser() as browser:
        form = {"person": world.ids["nurse"], "pin": PIN["nurse"], "back": back}
        assert browser.post("/sign-in", data=form).headers["location"] in {"/", "/ab:%20c"}


def test_the_first_administrator_needs_the_code_of_the_box(tmp_path: Path) -> None:
    world = World(tmp_path, sign_in="on")
    code = setup_code.read(world.store.folder)
    try:
        assert code
        with httpx.Client(base_url=world.url, headers={"origin": world.url}, follow_redirects=True) as browser:
            assert "bedside console-code" in browser.get("/").text
            form = {"code": code, "name": "Juma", "pin": "739204", "again": "739204"}
            for wrong, status in (
                ({"code": "AAAA-AAAA-AAAA"}, 403),
                ({"again": "739205"}, 422),
                ({"pin": "111111", "again": "111111"}, 422),
                ({"name": ""}, 422),
            ):
                assert browser.post("/setup", data={**form, **wrong}).status_code == status
            assert world.store.people.all() == []
            answer = browser.post("/setup", data=form)
            assert (answer.status_code, answer.url.path) == (200, "/people")
            assert browser.post("/setup", data={**form, "name": "Second"}).status_code == 403, "it works once"
            for _ in range(FREE_GUESSES + 1):
                answer = browser.post("/setup", data={**form, "code": "AAAA"})
            assert answer.status_code == 429
    finally:
        world.close()
    again = World(tmp_path, sign_in="on")
    try:
        assert setup_code.read(again.store.folder) is None, "somebody can sign in: no new code by itself"
    finally:
        again.close()


def test_people_are_entered_changed_and_closed_out(world: Signed) -> None:
    with world.browser("administrator") as browser:
        browser.post("/people", data={"name": "Zawadi", "role": "nurse", "pin": "112358"})
        zawadi = next(one for one in world.store.people.all() if one.name == "Zawadi")
        with httpx.Client(base_url=world.url, headers={"origin": world.url}) as hers:
            assert hers.post("/sign-in", data={"person": zawadi.id, "pin": "112358"}).status_code == 303
            assert hers.get("/patients").status_code == 200
            form = {"name": "Zawadi", "role": "nurse", "active": "no"}
            assert browser.post(f"/people/{zawadi.id}", data=form).status_code == 303
            assert hers.get("/patients").status_code == 303, "signed out at once"
            assert hers.post("/sign-in", data={"person": zawadi.id, "pin": "112358"}).status_code == 403
        me = {"name": "The administrator", "role": "nurse"}
        refused = browser.post(f"/people/{world.ids['administrator']}", data=me)
        assert refused.status_code == 422
        assert "one active administrator" in refused.text


def test_a_pin_is_changed_by_who_knows_it(world: Signed) -> None:
    with world.browser("nurse") as browser:
        form = {"present": PIN["nurse"], "pin": "271828", "again": "271828"}
        assert browser.post("/pin", data={**form, "present": "000000"}).status_code == 403
        assert browser.post("/pin", data={**form, "again": "1"}).status_code == 422
        assert browser.post("/pin", data=form).status_code == 303
        assert browser.get("/patients").status_code == 200
    world.store.people.set_pin(world.ids["nurse"], PIN["nurse"])


def test_a_token_opens_the_interface_for_programs_and_nothing_else(world: Signed) -> None:
    with world.browser("administrator") as browser:
        page = browser.post("/tokens", data={"label": "ward screen", "role": "nurse"}).text
        secret = re.search(r'class="secret">(bt_[\w-]{43})<', page)
        assert secret
        assert secret[1] not in browser.get("/people").text, "shown once"
    headers = {"authorization": f"Bearer {secret[1]}"}
    with httpx.Client(base_url=world.url, headers=headers) as program:
        assert program.get("/api/visits").status_code == 200
        entered = program.post("/api/patients", json={"sex": "F", "band": "adult"})
        assert entered.status_code == 201
        assert program.get("/patients").status_code == 303
        token = world.store.people.tokens()[0]
        world.store.people.revoke(token.id)
        assert program.get("/api/visits").status_code == 401
    assert httpx.get(f"{world.url}/api/visits", headers={"authorization": "Bearer bt_x"}).status_code == 401


def test_no_pin_name_or_token_stands_in_the_audit_log(world: Signed) -> None:
    world.keep(png())
    said = " ".join(f"{row['subject']} {row['detail']}" for row in audit.entries(world.store.journal))
    for secret in (*PIN.values(), "The nurse", "Zawadi", "ward screen", "bt_"):
        assert secret not in said
    assert audit.verify(world.store.journal) is None
