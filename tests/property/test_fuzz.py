"""Broken input, made from a number: each case ends in a value or a refusal with words, in time, in memory, in the process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tools.fuzz.cases import Outcome, case, fuzz
from tools.fuzz.messages import fuzz_messages
from tools.fuzz.seeds import POOLS

KNOWN = 20260715


def first(count: int) -> Callable[[int], bool]:
    return lambda number: number < count


def held(outcome: Outcome) -> None:
    assert [(problem.number, problem.what) for problem in outcome.problems] == []


@pytest.mark.parametrize(
    ("kind", "cases", "both"),
    [
        ("files", 250, ("door: taken", "door: refused")),
        ("sounds", 400, ("decode: taken", "decode: refused damaged")),
        ("config", 400, ("box: taken", "box: refused")),
    ],
)
def test_broken_input_is_taken_or_refused_with_words(kind: str, cases: int, both: tuple[str, str]) -> None:
    outcome = fuzz(kind, KNOWN, POOLS[kind](), first(cases))
    held(outcome)
    assert outcome.cases == cases
    for answer in both:
        assert outcome.answers[answer] > 5, outcome.answers


def test_broken_associations_leave_the_door_open() -> None:
    outcome = fuzz_messages(KNOWN, first(12))
    held(outcome)
    assert sum(outcome.answers.values()) == 12


def test_a_case_can_be_made_again_from_its_number() -> None:
    pool = POOLS["files"]()
    assert len(pool) > 50
    assert case(1, 17, pool) == case(1, 17, pool) != case(1, 18, pool)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [*POOLS])
def test_much_broken_input_is_taken_or_refused_with_words(kind: str) -> None:
    held(fuzz(kind, KNOWN + 1, POOLS[kind](), first(30_000)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_broken_associations_leave_the_door_open() -> None:
    held(fuzz_messages(KNOWN + 1, first(2_000)))
