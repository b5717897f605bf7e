"""Performed procedure steps: a state machine kept on the disk, and what tells whether a study is complete."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset

from appliance.capture.mpps import PERFORMED_STEP
from tests.boxes import open_store
from tests.contract.test_dicom_door import CR, image
from tests.dicom_box import association, box

STUDY = "1.2.3"


def begun(**more: object) -> Dataset:
    ds, scheduled = Dataset(), Dataset()
    scheduled.StudyInstanceUID, scheduled.AccessionNumber = STUDY, "A1"
    ds.ScheduledStepAttributesSequence = [scheduled]
    ds.PatientName, ds.PatientID, ds.PatientSex = "Okoro^Ada", "P1", "F"
    ds.PerformedProcedureStepID, ds.PerformedStationAETitle, ds.Modality = "S1", "XRAY", "DX"
    ds.PerformedProcedureStepStartDate, ds.PerformedProcedureStepStartTime = "20260715", "101500"
    ds.PerformedProcedureStepStatus = "IN PROGRESS"
    ds.PerformedSeriesSequence = []
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    return ds


def ended(*instances: str, state: str = "COMPLETED") -> Dataset:
    ds, series = Dataset(), Dataset()
    ds.PerformedProcedureStepStatus = state
    ds.PerformedProcedureStepEndDate, ds.PerformedProcedureStepEndTime = "20260715", "102000"
    series.SeriesInstanceUID = "1.2.3.1"
    series.ReferencedImageSequence = []
    for instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CR, instance
        series.ReferencedImageSequence.append(item)
    ds.PerformedSeriesSequence = [series]
    return ds


def create(link: Any, ds: Dataset, uid: str | None = "1.9") -> Dataset:
    return link.send_n_create(ds, PERFORMED_STEP, uid)[0]


def update(link: Any, ds: Dataset, uid: str = "1.9") -> Dataset:
    return link.send_n_set(ds, PERFORMED_STEP, uid)[0]


def test_a_study_is_complete_when_all_that_its_step_names_is_here(tmp_path):
    with box(tmp_path) as (door, store), association(door.port, PERFORMED_STEP, CR) as link:
        assert create(link, begun()).Status == 0x0000
        assert link.send_c_store(image("5.1", StudyInstanceUID=STUDY)).Status == 0x0000
        assert store.studies.completeness(STUDY).state == "in-progress"
        assert update(link, ended("5.1", "5.2")).Status == 0x0000
        assert store.studies.completeness(STUDY) == ("incomplete", "performed-step", 1, 2)
        assert link.send_c_store(image("5.2", StudyInstanceUID=STUDY)).Status == 0x0000
        assert store.studies.completeness(STUDY) == ("complete", "performed-step", 2, 2)
        [step] = store.studies.steps_of(STUDY)
        assert (step.state, step.sender, step.modality, step.station) == ("COMPLETED", "XRAY", "DX", "XRAY")
        assert (step.started, step.ended) == ("20260715101500", "20260715102000")
        assert (step.patient.id, step.patient.name, step.accession_numbers) == ("P1", "Okoro^Ada", ("A1",))


def test_an_ended_step_is_not_changed_any_more_and_the_reason_is_the_standards(tmp_path):
    with box(tmp_path) as (door, store), association(door.port, PERFORMED_STEP) as link:
        assert create(link, begun()).Status == 0x0000
        assert update(link, ended(state="DISCONTINUED")).Status == 0x0000
        answer = update(link, ended("5.1"))
        assert (answer.Status, answer.ErrorID) == (0x0110, 0xA710)
        assert store.studies.step("1.9").state == "DISCONTINUED"
        assert store.studies.completeness(STUDY) == ("complete", "performed-step", 0, 0)


@pytest.mark.parametrize(
    ("ds", "status"),
    [
        (begun(PerformedProcedureStepStatus="COMPLETED"), 0x0106),
        (begun(PerformedProcedureStepStatus="NONSENSE"), 0x0106),
        (begun(PerformedProcedureStepStatus=""), 0x0120),
    ],
)
def test_a_step_begins_in_progress_or_not_at_all(tmp_path, ds, status):
    with box(tmp_path) as (door, store), association(door.port, PERFORMED_STEP) as link:
        assert create(link, ds).Status == status
        assert store.studies.step("1.9") is None


def test_the_same_step_twice_an_unknown_one_and_a_wrong_status_are_refused(tmp_path):
    with box(tmp_path) as (door, store), association(door.port, PERFORMED_STEP) as link:
        assert update(link, ended()).Status == 0x0112
        assert create(link, begun()).Status == 0x0000
        assert create(link, begun()).Status == 0x0111
        assert update(link, ended(state="NONSENSE")).Status == 0x0106
        assert store.studies.step("1.9").state == "IN PROGRESS"


def test_a_step_of_ten_thousand_studies_and_instances_is_refused_before_it_fills_the_memory(tmp_path):
    scheduled = []
    for number in range(10_000):
        item = Dataset()
        item.StudyInstanceUID = f"1.2.{number}"
        scheduled.append(item)
    with box(tmp_path) as (door, store), association(door.port, PERFORMED_STEP) as link:
        assert create(link, begun(ScheduledStepAttributesSequence=scheduled)).Status == 0x0000
        assert update(link, ended(*(f"1.3.{number}" for number in range(10_000)))).Status == 0x0110
        assert store.studies.step("1.9").state == "IN PROGRESS"
        assert update(link, ended("1.3.1", "1.3.2")).Status == 0x0000


def test_a_step_without_a_uid_gets_one(tmp_path):
    with box(tmp_path) as (door, store), association(door.port, PERFORMED_STEP) as link:
        assert create(link, begun(), None).Status == 0x0000
        [step] = store.studies.steps_of(STUDY)
        assert step.uid.startswith("2.25.")


def test_a_step_begun_before_a_restart_ends_after_it_with_all_that_was_said(tmp_path):
    with box(tmp_path) as (door, _), association(door.port, PERFORMED_STEP) as link:
        assert create(link, begun(OperatorsName="Nurse^A")).Status == 0x0000
    with box(tmp_path) as (door, _), association(door.port, PERFORMED_STEP) as link:
        assert update(link, ended("5.1")).Status == 0x0000
    store = open_store(tmp_path)
    step = store.studies.step("1.9")
    assert step.state == "COMPLETED"
    assert step.instances == ((STUDY, "5.1"),)
    assert b"Nurse^A" in step.attributes
    store.close()


def test_how_an_association_ended_is_known_of_its_studies(tmp_path):
    with box(tmp_path) as (door, store):
        with association(door.port, CR) as link:
            assert link.send_c_store(image("5.1", StudyInstanceUID="7.1")).Status == 0x0000
            assert store.studies.completeness("7.1").state == "in-progress"
        with association(door.port, CR) as link:
            assert link.send_c_store(image("5.2", StudyInstanceUID="7.2")).Status == 0x0000
            link.abort()
        door.stop()
        assert store.studies.completeness("7.1") == ("ended", "association", 1, None)
        assert store.studies.completeness("7.2") == ("incomplete", "association", 1, None)


def test_the_count_that_an_object_gives_is_believed(tmp_path):
    with box(tmp_path) as (door, store), association(door.port, CR) as link:
        for number in (1, 2):
            ds = image(f"5.{number}", StudyInstanceUID="7.1", NumberOfStudyRelatedInstances=2)
            assert link.send_c_store(ds).Status == 0x0000
            state = store.studies.completeness("7.1").state
            assert state == ("incomplete" if number == 1 else "complete")
