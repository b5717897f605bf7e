"""Whether a study is complete is said by somebody, or it is not known."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from appliance.capture.intake import Facts, Intake
from appliance.records import Modality, Patient
from appliance.store.errors import IllegalTransition
from appliance.store.store import Store
from appliance.store.studies import Completeness, PerformedStep
from tests.boxes import DEVICE, open_store

STUDY = "1.2.3"
STEP = PerformedStep(uid="1.9", sender="XRAY", state="IN PROGRESS", patient=Patient(id="P1"), study_uids=(STUDY,))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


def keep(store: Store, instance: str, source: str = "dicom:XRAY", study_instances: int = 0) -> None:
    with Intake(store, DEVICE).open() as incoming:
        incoming.write(instance.encode())
        incoming.keep(
            Facts(
                modality=Modality.CHEST_XRAY,
                media_type="application/dicom",
                source=source,
                study_uid=STUDY,
                instance_uid=instance,
                study_instances=study_instances,
            )
        )


def said(store: Store) -> tuple[str, str, int, int | None]:
    return tuple(store.studies.completeness(STUDY))


def test_without_a_word_it_is_unknown(store):
    assert said(store) == ("unknown", "none", 0, None)
    keep(store, "1", source="folder")
    assert said(store) == ("unknown", "none", 1, None)
    assert store.studies.completeness("") == Completeness("unknown", "none", 0, None)


def test_the_count_in_the_objects_decides_when_there_is_one(store):
    keep(store, "1", study_instances=2)
    assert said(store) == ("incomplete", "count", 1, 2)
    keep(store, "2")
    assert said(store) == ("complete", "count", 2, 2)


def test_an_association_hung_up_in_order_is_ended_and_one_that_broke_is_incomplete(store):
    keep(store, "1")
    assert said(store) == ("in-progress", "association", 1, None)
    Intake(store, DEVICE).association_ended({STUDY}, in_order=False)
    store.journal.write(lambda tx: None)
    assert said(store) == ("incomplete", "association", 1, None)
    keep(store, "2")
    Intake(store, DEVICE).association_ended({STUDY}, in_order=True)
    store.journal.write(lambda tx: None)
    assert said(store) == ("ended", "association", 2, None)


def test_an_association_that_a_restart_cut_off_is_incomplete(tmp_path):
    store = open_store(tmp_path)
    keep(store, "1")
    store.close()
    store = open_store(tmp_path)
    assert said(store) == ("incomplete", "association", 1, None)
    store.close()


def test_the_performed_step_has_the_last_word(store, tmp_path):
    keep(store, "1", study_instances=1)
    store.journal.write(lambda tx: store.studies.begin(tx, STEP, "now"))
    assert said(store) == ("in-progress", "performed-step", 1, None)
    ended = msgspec.structs.replace(STEP, state="COMPLETED", instances=((STUDY, "1"), (STUDY, "2")))
    store.journal.write(lambda tx: store.studies.update(tx, ended))
    assert said(store) == ("incomplete", "performed-step", 1, 2)
    keep(store, "2")
    assert said(store) == ("complete", "performed-step", 2, 2)
    assert store.studies.steps_of(STUDY) == [ended]


@pytest.mark.parametrize("final", ["COMPLETED", "DISCONTINUED"])
def test_a_performed_step_goes_only_forward(store, final):
    write = store.journal.write
    with pytest.raises(IllegalTransition):
        write(lambda tx: store.studies.update(tx, STEP))
    with pytest.raises(IllegalTransition):
        write(lambda tx: store.studies.begin(tx, msgspec.structs.replace(STEP, state=final), "now"))
    write(lambda tx: store.studies.begin(tx, STEP, "now"))
    with pytest.raises(IllegalTransition):
        write(lambda tx: store.studies.begin(tx, STEP, "now"))
    ended = msgspec.structs.replace(STEP, state=final)
    write(lambda tx: store.studies.update(tx, ended))
    for state in ("IN PROGRESS", final):
        with pytest.raises(IllegalTransition):
            write(lambda tx, state=state: store.studies.update(tx, msgspec.structs.replace(STEP, state=state)))
    assert store.studies.step(STEP.uid) == ended


def test_a_performed_step_survives_a_restart_and_lies_sealed(tmp_path):
    store = open_store(tmp_path)
    step = msgspec.structs.replace(STEP, patient=Patient(id="NUMBER-17", name="Okoro^Ada"), attributes=b"all of it")
    store.journal.write(lambda tx: store.studies.begin(tx, step, "now"))
    store.close()
    store = open_store(tmp_path)
    assert store.studies.step(STEP.uid) == step
    store.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("journal.sqlite*"))
    assert b"NUMBER-17" not in kept
    assert b"Okoro" not in kept
