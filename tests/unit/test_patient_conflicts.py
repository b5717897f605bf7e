"""A patient's number that stands for two people, or a study of two patients, is found and named, and nothing is merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.capture.intake import Facts, Intake
from appliance.records import Modality, Patient
from appliance.store.captures import Kept
from appliance.store.identity import REASONS
from appliance.store.store import Store
from tests.boxes import DEVICE, open_store
from tests.console_world import World

ADA = Patient(id="P1", name="Okoro^Ada", birth_date="19800101", sex="F")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


def keep(store: Store, content: bytes, patient: Patient, study: str = "", instance: str = "") -> Kept:
    with Intake(store, DEVICE).open() as incoming:
        incoming.write(content)
        return incoming.keep(
            Facts(
                modality=Modality.CHEST_XRAY,
                media_type="application/dicom",
                source="dicom:XRAY",
                patient=patient,
                study_uid=study,
                instance_uid=instance,
            )
        )


@pytest.mark.parametrize(
    ("patient", "reasons"),
    [
        (Patient(id="P1", name="Bello^Ada", birth_date="19800101", sex="F"), ("patient-name",)),
        (Patient(id="P1", name="Okoro^Ada", birth_date="19990101", sex="F"), ("patient-birth-date",)),
        (Patient(id="P1", name="Okoro^Ada", birth_date="19800101", sex="M"), ("patient-sex",)),
        (Patient(id="P1", name="B^C", birth_date="20000101"), ("patient-name", "patient-birth-date")),
    ],
)
def test_the_same_number_with_another_person_is_kept_and_flagged_with_its_reasons(store, patient, reasons):
    first = keep(store, b"1", ADA)
    second = keep(store, b"2", patient)
    assert (second.duplicate, second.conflict, second.reasons) == (False, False, reasons)
    entry = store.captures.get(second.capture_id)
    assert (entry.reasons, entry.conflicts_with) == (reasons, first.capture_id)
    assert entry.capture.patient == patient
    assert store.captures.get(first.capture_id).capture.patient == ADA
    assert store.captures.counts()["conflicts"] == 1


@pytest.mark.parametrize(
    "patient",
    [
        ADA,
        Patient(id="P1"),
        Patient(id="P1", name="OKORO^ADA^^Dr.", sex="F"),
        Patient(id="P1", name="Okoro^Ada=山田^太郎", birth_date="19800101"),
        Patient(id="P1", issuer="another clinic", name="Someone^Else", sex="M"),
        Patient(id="", name="Someone^Else"),
        Patient(id="P2", name="Okoro^Ada", birth_date="19800101", sex="M"),
    ],
    ids=["same", "empty", "spelling", "scripts", "other issuer", "no number", "other number"],
)
def test_what_does_not_contradict_is_not_flagged(store, patient):
    keep(store, b"1", ADA)
    assert keep(store, b"2", patient).reasons == ()


def test_a_later_capture_of_either_person_under_a_shared_number_is_flagged_too(store):
    keep(store, b"1", ADA)
    other = Patient(id="P1", name="Bello^Musa", sex="M")
    assert keep(store, b"2", other).reasons
    assert keep(store, b"3", other).reasons
    assert keep(store, b"4", ADA).reasons


def test_one_study_with_two_patients_is_flagged(store):
    first = keep(store, b"1", ADA, study="1.2")
    kept = keep(store, b"2", Patient(id="P2", name="Bello^Musa"), study="1.2")
    assert kept.reasons == ("study-patient",)
    assert store.captures.get(kept.capture_id).conflicts_with == first.capture_id


def test_other_bytes_of_an_instance_are_flagged_first(store):
    keep(store, b"1", ADA, study="1.2", instance="1.2.3")
    kept = keep(store, b"2", Patient(id="P2"), study="1.2", instance="1.2.3")
    assert kept.conflict
    assert kept.reasons == ("instance", "study-patient")
    assert set(kept.reasons) <= set(REASONS)


def test_the_log_of_what_was_kept_names_the_reasons_and_no_patient(store):
    keep(store, b"1", ADA)
    keep(store, b"2", Patient(id="P1", name="Bello^Musa"))
    details = [row["detail"] for row in store.journal.all("SELECT detail FROM audit WHERE event = 'kept'")]
    assert details[1].endswith("patient-name")
    assert not any("Bello" in detail or "Okoro" in detail for detail in details)


def test_the_report_to_the_hub_names_what_contradicts_and_what_is_missing(store):
    from appliance.sync.report import cautions

    first = keep(store, b"1", ADA, study="1.2")
    second = keep(store, b"2", Patient(id="P1", name="Bello^Musa"), study="1.2")
    Intake(store, DEVICE).association_ended({"1.2"}, in_order=False)
    store.journal.write(lambda tx: None)
    told = cautions(store, store.captures.get(second.capture_id).capture)
    assert told[0] == "Check whose this is: there is the same patient number with another name."
    assert "not complete" in told[1]
    assert len(cautions(store, store.captures.get(first.capture_id).capture)) == 1


def test_the_console_says_what_contradicts_and_not_something_else(tmp_path):
    world = World(tmp_path)
    try:
        patients = [ADA, Patient(id="P1", name="Bello^Musa")]
        ids = [world.keep(bytes([number]), patient=patient) for number, patient in enumerate(patients)]
        page = world.client.get(f"/captures/{ids[1]}").text
        assert "An earlier capture has the same patient number and another name:" in page
        assert "same instance number" not in page
        assert "Contradicts an earlier capture" in world.client.get("/captures").text + world.client.get("/").text
    finally:
        world.close()
