"""PINs and tokens: hashed, sealed, and guessed slowly, also across restarts and changed clocks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from argon2 import PasswordHasher, extract_parameters

from appliance.records import Moment
from appliance.store import setup_code
from appliance.store.errors import StoreError
from appliance.store.files import RealFiles
from appliance.store.people import FIRST_PAUSE, FREE_GUESSES, LONGEST, People, Role, Throttled, WeakPin
from appliance.store.store import Store
from tests.boxes import open_store

PIN = "480615"
QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def at(seconds: float, boot: str = "boot-1", wall: str = "1970-01-01T00:00:00Z") -> Moment:
    return Moment(boot_id=boot, monotonic_ns=int(seconds * 1e9), wall=wall)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path)
    opened.people = People(opened.journal, opened.key, QUICK)
    yield opened
    opened.close()


def test_the_right_pin_signs_in_and_no_other(store: Store) -> None:
    amina = store.people.enter("Amina", Role.NURSE, PIN)
    juma = store.people.enter("Juma", Role.ADMINISTRATOR, "739204")
    assert store.people.sign_in(amina.id, PIN, at(1)) == amina
    assert store.people.sign_in(amina.id, "739204", at(1)) is None
    assert store.people.sign_in(juma.id, PIN, at(1)) is None
    assert store.people.sign_in("nobody", PIN, at(1)) is None
    assert [one.name for one in store.people.all()] == ["Amina", "Juma"]


def test_the_product_hashes_as_rfc_9106_recommends(store: Store) -> None:
    people = People(store.journal, store.key)
    parameters = extract_parameters(people._hasher.hash("x"))
    assert (parameters.type.name, parameters.time_cost, parameters.memory_cost) == ("ID", 3, 65536)


def test_a_pin_lies_nowhere_on_the_disk_and_its_hash_is_sealed(store: Store, tmp_path: Path) -> None:
    store.people.enter("Amina Otieno", Role.NURSE, PIN)
    token, secret = store.people.make_token("ward screen", Role.NURSE, "juma", at(1))
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file() and path.name != "reserve")
    for text in (PIN, "Amina", "$argon2", secret, "ward screen"):
        assert text.encode() not in raw, text
    assert store.people.by_token(secret) == token


@pytest.mark.parametrize(
    "pin", ["", "12345", "1234567890123", "abcdef", "111111", "121212", "123456", "987654", "1 2 3 4"]
)
def test_a_pin_that_is_tried_first_is_refused(store: Store, pin: str) -> None:
    with pytest.raises(WeakPin):
        store.people.enter("Amina", Role.NURSE, pin)
    assert store.people.all() == []


def test_wrong_guesses_cost_pauses_that_double_and_end(store: Store) -> None:
    amina = store.people.enter("Amina", Role.NURSE, PIN)
    for _ in range(FREE_GUESSES):
        assert store.people.sign_in(amina.id, "000000", at(100)) is None
    with pytest.raises(Throttled) as told:
        store.people.sign_in(amina.id, PIN, at(100))
    assert told.value.seconds == FIRST_PAUSE
    assert store.people.sign_in(amina.id, "000000", at(100 + FIRST_PAUSE)) is None
    with pytest.raises(Throttled) as told:
        store.people.sign_in(amina.id, PIN, at(100 + FIRST_PAUSE))
    assert told.value.seconds == 2 * FIRST_PAUSE
    time = 1000.0
    for _ in range(12):
        assert store.people.sign_in(amina.id, "000000", at(time)) is None
        time += LONGEST
    assert store.people.sign_in(amina.id, PIN, at(time)) == amina
    for _ in range(FREE_GUESSES - 1):
        assert store.people.sign_in(amina.id, "000000", at(time)) is None
    assert store.people.sign_in(amina.id, PIN, at(time)) == amina, "the right one cleared the count"


def test_a_pause_survives_a_restart_and_no_clock_ends_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.people = People(store.journal, store.key, QUICK)
    amina = store.people.enter("Amina", Role.NURSE, PIN)
    for _ in range(FREE_GUESSES):
        store.people.sign_in(amina.id, "000000", at(500))
    store.close()
    again = open_store(tmp_path)
    again.people = People(again.journal, again.key, QUICK)
    try:
        with pytest.raises(Throttled):
            again.people.sign_in(amina.id, PIN, at(501))
        with pytest.raises(Throttled):
            again.people.sign_in(amina.id, PIN, at(5, boot="boot-2", wall="2040-01-01T00:00:00Z"))
        assert again.people.sign_in(amina.id, PIN, at(FIRST_PAUSE, boot="boot-2")) == amina
    finally:
        again.close()


def test_guessing_in_parallel_wins_no_guess(store: Store) -> None:
    amina = store.people.enter("Amina", Role.NURSE, PIN)

    def guess(number: int) -> bool:
        try:
            store.people.sign_in(amina.id, f"{number:06}", at(1))
        except Throttled:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(guess, range(100))) == FREE_GUESSES


def test_one_administrator_stays_and_a_name_is_one_person_s(store: Store) -> None:
    juma = store.people.enter("Juma", Role.ADMINISTRATOR, PIN)
    for change in ({"role": Role.NURSE}, {"active": False}):
        changed = type(juma)(**{**{f: getattr(juma, f) for f in juma.__struct_fields__}, **change})
        with pytest.raises(StoreError, match="administrator"):
            store.journal.write(lambda tx, changed=changed: store.people.change(tx, changed))
    assert store.people.get(juma.id) == juma
    for name in ("juma ", ""):
        with pytest.raises(StoreError, match="name"):
            store.people.enter(name, Role.NURSE, PIN)


def test_who_is_inactive_can_t_sign_in(store: Store) -> None:
    store.people.enter("Juma", Role.ADMINISTRATOR, PIN)
    amina = store.people.enter("Amina", Role.NURSE, PIN)
    gone = type(amina)(id=amina.id, name=amina.name, role=amina.role, active=False)
    store.journal.write(lambda tx: store.people.change(tx, gone))
    assert store.people.sign_in(amina.id, PIN, at(1)) is None


def test_a_revoked_token_is_no_token(store: Store) -> None:
    token, secret = store.people.make_token("screen", Role.NURSE, "juma", at(1))
    assert store.people.tokens() == [token]
    assert store.people.revoke(token.id)
    assert store.people.by_token(secret) is None
    assert not store.people.revoke(token.id)


def test_the_setup_code_works_once_however_it_is_typed(tmp_path: Path) -> None:
    assert not setup_code.matches(tmp_path, "")
    code = setup_code.make(tmp_path, RealFiles())
    assert (tmp_path / "setup.code").stat().st_mode & 0o777 == 0o600
    assert setup_code.matches(tmp_path, code.lower().replace("-", " "))
    assert not setup_code.matches(tmp_path, code[:-1] + ("2" if code[-1] != "2" else "3"))
    setup_code.spend(tmp_path, RealFiles())
    assert not setup_code.matches(tmp_path, code)
