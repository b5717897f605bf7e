"""Claims about who may do what at the hub: every route tried as everybody, guesses throttled, sessions that lock."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re

import argon2
import pytest
from sqlalchemy import select
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from typer.testing import CliRunner

from hub import tables, users
from hub.cli import app as commands
from hub.database import Database
from hub.people import FREE_GUESSES, People, Role, Throttled
from hub.sessions import IDLE_MS, LIFE_MS
from hub.web.access import allowed_of, checked
from hub.web.app import make_app
from hub.web.ways_in import inside
from tests.unit.test_hub_web import MINUTE, Hub
from tests.wire import result

PASSWORD = "correct horse battery"  # noqa: S105
PEOPLE = {"vera": {Role.VIEWER}, "rita": {Role.READER}, "adam": {Role.ADMINISTRATOR}}


def quick() -> users.Passwords:
    return users.Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path, signs_in=True)
    for name, roles in PEOPLE.items():
        hub.people.add(name, roles, PASSWORD, "test", hub.now_ms)
    hub.take(result())
    yield hub
    hub.database.close()


def sign_in(hub, name, password=PASSWORD, back="/"):
    hub.client.cookies.clear()
    return hub.client.post("/sign-in", data={"name": name, "password": password, "next": back})


def routes(hub):
    """(method, path with values, who may) of every route that the application has."""
    for route in hub.app.routes:
        if isinstance(route, Mount):
            yield "GET", f"{route.path}/hub.css", allowed_of(route)
            continue
        assert isinstance(route, Route)
        path = route.path.replace("{id}", result().capture.id).replace("{sha256}", "0" * 64)
        path = re.sub(r"{(bundle|version|number)[^}]*}", "1", path)
        for method in sorted(route.methods - {"HEAD"}):
            yield method, path, allowed_of(route)


@pytest.mark.parametrize("name", [None, *PEOPLE])
def test_every_route_answers_those_it_is_for_and_nobody_else(name, hub):
    """Whoever may not gets 401 (nobody) or 403; whoever may gets anything but these."""
    held = PEOPLE[name] if name else set()
    wrong = []
    for method, path, allowed in routes(hub):
        if path in ("/events", "/sign-out", "/lock") and (not allowed or held & allowed):
            continue  # the stream has no end; the others end what is being tried
        if name:
            hub.client.cookies.clear()
            hub.client.cookies.set("hub-session", hub.sessions.open(name, hub.now_ms))
        options = {"json": {}} if path.startswith("/api") and method == "POST" else {}
        status = hub.client.request(method, path, **options).status_code
        may = not allowed or bool(held & allowed)
        refused = status in (401, 403) and path != "/sign-in"
        if refused == may or (not may and status != (403 if held else 401)):
            wrong.append((method, path, status))
    assert wrong == []


def test_a_route_that_does_not_say_whom_it_is_for_is_not_served():
    with pytest.raises(ValueError, match="/secret"):
        checked([Route("/secret", lambda _: None)])


def test_a_browser_that_is_not_signed_in_is_led_to_the_form_and_back_to_where_it_was(hub):
    answer = hub.client.get("/?shown=reviewed", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2F%3Fshown%3Dreviewed")
    answer = sign_in(hub, "rita", back="/?shown=reviewed")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?shown=reviewed")
    assert hub.client.get("/").status_code == 200


@pytest.mark.parametrize("back", ["https://evil.example/", "//evil.example", "/\\evil.example", "evil", "/sign-in", ""])
def test_the_way_back_leads_nowhere_else(back):
    assert inside(back) == "/"


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(hub):
    cookie = sign_in(hub, "rita").headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    with hub.database.read() as connection:
        [row] = connection.execute(select(tables.web_session)).all()
    assert row.id not in cookie


def test_with_tls_the_cookie_goes_nowhere_else_and_the_browser_stays_with_tls(hub):
    site = dataclasses.replace(hub.site, secure=True)
    client = TestClient(make_app(site), base_url="https://127.0.0.1", follow_redirects=False)
    client.headers["Origin"] = "https://127.0.0.1"
    answer = client.post("/sign-in", data={"name": "rita", "password": PASSWORD, "next": "/"})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-hub-session=")
    assert "Secure" in cookie
    assert "Domain" not in cookie
    assert "max-age" in answer.headers["strict-transport-security"]
    assert client.get("/").status_code == 200


def test_a_session_locks_when_nobody_uses_it_and_the_page_that_refreshes_itself_is_no_use(hub):
    sign_in(hub, "rita")
    for _ in range(4):
        hub.now_ms += IDLE_MS // 3
        status = hub.client.get("/?fragment=1").status_code
    assert status == 401
    page = hub.client.get("/", headers={"Accept": "text/html"}, follow_redirects=True).text
    assert "Locked" in page
    assert 'value="rita"' in page
    sign_in(hub, "rita")
    for _ in range(6):
        hub.now_ms += IDLE_MS // 3
        assert hub.client.post("/here").status_code == 204


def test_a_session_ends_after_its_life_and_at_signing_out(hub):
    sign_in(hub, "rita")
    cookie = hub.client.cookies["hub-session"]
    hub.client.post("/sign-out")
    hub.client.cookies.set("hub-session", cookie)
    assert hub.client.get("/").status_code == 401
    text = hub.sessions.open("rita", hub.now_ms)
    assert hub.sessions.find(text, hub.now_ms + LIFE_MS, used=True) is None


def test_a_session_can_be_locked_at_once(hub):
    sign_in(hub, "rita")
    assert hub.client.post("/lock").status_code == 204
    assert hub.client.get("/").status_code == 401


def test_with_a_cookie_even_json_must_come_from_our_own_pages(hub):
    sign_in(hub, "rita")
    del hub.client.headers["Origin"]
    assert hub.review(result()).status_code == 403
    assert hub.outbox() == []


def test_guessing_is_slowed_down_across_a_restart_and_the_right_password_ends_it(hub):
    for _ in range(FREE_GUESSES):
        assert sign_in(hub, "rita", "wrong guess").status_code == 401
    assert sign_in(hub, "rita").status_code == 429
    again = People(hub.database, None, quick())
    with pytest.raises(Throttled) as caught:
        again.check("rita", PASSWORD, "elsewhere", hub.now_ms)
    assert 0 < caught.value.seconds <= 30
    hub.now_ms += 31_000
    assert again.check("rita", PASSWORD, "elsewhere", hub.now_ms) is not None
    assert sign_in(hub, "rita", "wrong guess").status_code == 401


def test_a_name_that_does_not_exist_is_slowed_down_alike(hub):
    answers = [sign_in(hub, "nobody", "wrong guess") for _ in range(FREE_GUESSES + 1)]
    assert [answer.status_code for answer in answers] == [401] * FREE_GUESSES + [429]
    assert "Name or password is wrong" in answers[0].text


def test_who_is_removed_is_out_at_once(hub):
    sign_in(hub, "rita")
    assert hub.client.get("/").status_code == 200
    hub.people.remove("rita", "adam", hub.now_ms)
    assert hub.client.get("/").status_code == 401
    assert sign_in(hub, "rita").status_code == 401


def test_a_changed_role_counts_at_once(hub):
    sign_in(hub, "vera")
    assert hub.client.get("/audit").status_code == 403
    hub.people.set_roles("vera", {Role.ADMINISTRATOR}, "adam", hub.now_ms)
    page = hub.client.get("/audit")
    assert page.status_code == 200
    assert "person:roles" in page.text


def test_an_old_line_of_the_users_file_signs_in_and_its_hash_becomes_argon2id(tmp_path):
    salt = os.urandom(16)
    digest = hashlib.scrypt(PASSWORD.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=32)
    file = tmp_path / "users"
    file.write_text(f"anna:{salt.hex()}:{digest.hex()}\n", encoding="utf-8")
    hub = Hub(tmp_path, users.Users(file))
    assert hub.people.check("anna", PASSWORD, "", hub.now_ms).roles == {Role.READER}
    with hub.database.read() as connection:
        assert connection.execute(select(tables.person.c.hash)).scalar_one().startswith("$argon2id$")
    assert People(hub.database, users.Users(file), quick()).check("anna", PASSWORD, "", hub.now_ms) is not None
    file.write_text("# nobody\n", encoding="utf-8")
    os.utime(file, (1, 1))
    assert hub.people.check("anna", PASSWORD, "", hub.now_ms) is None
    file.unlink()
    assert hub.people.check("anna", PASSWORD, "", hub.now_ms) is None
    hub.database.close()


def test_a_program_looks_by_its_token_and_changes_nothing_until_it_is_revoked(hub):
    token = hub.sessions.make_token("statistics", Role.VIEWER, "adam", hub.now_ms)
    hub.client.headers["Authorization"] = f"Bearer {token}"
    assert hub.client.get("/api/cases").status_code == 200
    assert hub.review(result()).status_code == 403
    [row] = hub.sessions.tokens()
    assert token not in str(row)
    assert hub.sessions.revoke(row.id, "adam", hub.now_ms)
    assert hub.client.get("/api/cases").status_code == 401


def test_nobody_signs_in_by_a_password_that_nobody_chose(tmp_path):
    people = People(Database(f"sqlite:///{tmp_path}/hub.sqlite"), None, quick())
    people._database.migrate()
    assert not people.needed()
    for name in ("admin", "root", "bedside"):
        assert people.check(name, name, "", MINUTE) is None
    for weak in ("short", "aaaaaaaaaaaa", "password-of-anna"[:7]):
        with pytest.raises(users.UsersError):
            people.add("anna", {Role.READER}, weak, "test", 0)


def test_the_commands_add_change_and_remove_people_and_tokens(tmp_path):
    config = tmp_path / "hub.toml"
    config.write_text(f'[storage]\nstate = "{tmp_path}"\n', encoding="utf-8")

    def run(*arguments):
        done = CliRunner().invoke(commands, [*arguments, "--config", str(config)], env={"BEDSIDE_PASSWORD": PASSWORD})
        return done.exit_code, done.output

    assert run("user", "add", "Dr Roe", "--role", "reader")[0] == 0
    code, words = run("user", "add", "Dr Roe", "--role", "reader")
    assert (code, "there already" in words) == (2, True)
    assert run("user", "role", "Dr Roe", "--role", "dragon")[0] == 2
    assert run("user", "role", "Dr Roe", "--role", "reader", "--role", "administrator")[0] == 0
    assert run("user", "list")[1].strip() == "Dr Roe: administrator, reader (database)"
    assert run("user", "remove", "Dr Roe")[0] == 0
    assert "removed" in run("user", "list")[1]
    assert run("token", "add", "x", "--role", "reader")[0] == 2
    assert run("token", "add", "statistics")[1].startswith("hubt_")
    assert run("token", "revoke", run("token", "list")[1].split()[0])[0] == 0
