"""Broken DICOM, made from a number: each case ends in a value or a refusal with words, in time, in memory, in the process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tools.fuzz_dicom import Outcome, case, fuzz_files, seeds
from tools.fuzz_dicom_messages import fuzz_messages

KNOWN = 20260715


def first(count: int) -> Callable[[int], bool]:
    return lambda number: number < count


def held(outcome: Outcome) -> None:
    assert [(problem.number, problem.what) for problem in outcome.problems] == []


def test_broken_files_are_kept_read_or_refused():
    outcome = fuzz_files(KNOWN, first(250))
    held(outcome)
    assert outcome.answers["door: refused"] > 50
    assert outcome.answers["door: kept"] > 20


def test_broken_associations_leave_the_door_open():
    outcome = fuzz_messages(KNOWN, first(12))
    held(outcome)
    assert sum(outcome.answers.values()) == 12


def test_a_case_can_be_made_again_from_its_number():
    pool = seeds()
    assert len(pool) > 50
    assert case(1, 17, pool) == case(1, 17, pool) != case(1, 18, pool)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_broken_files_are_kept_read_or_refused():
    held(fuzz_files(KNOWN + 1, first(30_000)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_broken_associations_leave_the_door_open():
    held(fuzz_messages(KNOWN + 1, first(2_000)))
