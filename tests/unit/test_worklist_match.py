"""Worklist keys match as PS3.4, C.2.2.2 and K say, whatever is in them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from appliance.capture.worklist_match import matches, wildcard
from appliance.capture.worklist_scp import entry_of
from appliance.records import Patient
from appliance.store.worklist import ScheduledStep

ADA = ScheduledStep(
    patient=Patient(id="P1", name="Okoro^Ada=山田^太郎", birth_date="19800101", sex="F"),
    accession_number="A17",
    modality="DX",
    station_ae_title="XRAY",
    date="20260715",
    time="143000",
    study_uid="1.2.3",
)


def keys(step: dict[str, str] | None = None, **top: str) -> Dataset:
    found, item = Dataset(), Dataset()
    for keyword, value in top.items():
        setattr(found, keyword, value)
    for keyword, value in (step or {}).items():
        setattr(item, keyword, value)
    found.ScheduledProcedureStepSequence = [item]
    return found


def on(date: str = "", time: str = "") -> Dataset:
    return keys({"ScheduledProcedureStepStartDate": date, "ScheduledProcedureStepStartTime": time})


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (Dataset(), True),
        (keys(), True),
        (keys(PatientName=""), True),
        (keys(PatientName="*"), True),
        (keys(PatientName="okoro^ada"), True),
        (keys(PatientName="OKORO*"), True),
        (keys(PatientName="Okoro"), False),
        (keys(PatientName="O?oro^*"), True),
        (keys(PatientName="山田*"), True),
        (keys(PatientID="P1"), True),
        (keys(PatientID="p1"), False),
        (keys(PatientID="P*"), True),
        (keys(PatientID="P?"), True),
        (keys(PatientID="P??"), False),
        (keys(PatientBirthDate="19800101"), True),
        (keys(PatientBirthDate="19800102"), False),
        (keys(PatientSex="M"), False),
        (keys(StudyInstanceUID=["1.2.2", "1.2.3"]), True),
        (keys(StudyInstanceUID="1.2.*"), False),
        (keys(AccessionNumber="A18"), False),
        (keys({"Modality": "DX"}), True),
        (keys({"Modality": "US"}), False),
        (keys({"Modality": ["US", "DX"]}), True),
        (keys({"ScheduledStationAETitle": "XRAY"}), True),
        (keys({"ScheduledStationAETitle": "OTHER"}), False),
        (on("20260715"), True),
        (on("20260716"), False),
        (on("20260701-20260731"), True),
        (on("-20260731"), True),
        (on("20260716-"), False),
        (on(time="1400-1500"), True),
        (on(time="1500-1600"), False),
        (on("20260714-20260716", "1800-0900"), True),  # one range from the 14th, 18 h, to the 16th, 9 h
        (on("20260715-20260716", "1800-0900"), False),
        (on("20260715-20260715", "1400-1430"), True),
    ],
)
def test_each_kind_of_key_matches_as_the_standard_says(asked, answer):
    assert matches(entry_of(ADA), asked) is answer


def test_who_is_here_now_without_a_date_is_in_every_range():
    here = entry_of(ScheduledStep(patient=Patient(id="P9"), source="console"))
    for asked in (on("20260715"), on("20260701-20260731", "0000-2359"), on(time="1200")):
        assert matches(here, asked)


def test_an_empty_value_does_not_match_a_key_that_is_not_universal():
    nameless = entry_of(ScheduledStep(patient=Patient(id="P9")))
    assert not matches(nameless, keys(PatientName="Okoro*"))
    assert matches(nameless, keys(PatientName="**"))


@given(st.text(alphabet="ab*?", max_size=12), st.text(alphabet="ab", max_size=12))
def test_wildcards_agree_with_the_regular_expression_they_mean(pattern, text):
    import re

    meant = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
    assert wildcard(pattern, text) == bool(re.fullmatch(meant, text))


def test_a_pattern_made_to_take_long_does_not():
    start = time.perf_counter()
    assert not wildcard("*a" * 2000 + "b", "a" * 4000)
    assert time.perf_counter() - start < 5
