"""The worklist both ways: dcmtk's server asked by the box, dcmtk's findscu asking the box, and peers that misbehave."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE, evt

from appliance.capture.mpps import PERFORMED_STEP
from appliance.capture.worklist import WORKLIST_FIND, WorklistClient, WorklistError, query
from appliance.config import DicomConfig, WorklistConfig
from appliance.records import Moment, Patient
from appliance.store.store import Store
from appliance.store.worklist import ScheduledStep, age_s
from tests.boxes import now, open_store
from tests.dicom_box import association, box
from tests.servers import free_port


def tool(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"{name} is not installed (apt-get install dcmtk)")


def entry(number: str, name: str, charset: str = "", **step: str) -> Dataset:
    ds, item = Dataset(), Dataset()
    if charset:
        ds.SpecificCharacterSet = charset
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = number, name, "19800101", "F"
    ds.AccessionNumber, ds.StudyInstanceUID = f"A{number}", f"1.2.{number[1:]}"
    ds.RequestedProcedureID, ds.RequestedProcedureDescription = "R1", "Chest PA"
    ds.ReferringPhysicianName = ds.MedicalAlerts = ds.Allergies = ""
    item.Modality, item.ScheduledStationAETitle, item.ScheduledStationName = "DX", "XRAY", "Room 1"
    item.ScheduledProcedureStepStartDate, item.ScheduledProcedureStepStartTime = "20260715", "0930"
    item.ScheduledProcedureStepDescription, item.ScheduledProcedureStepID = "Chest", "S1"
    item.ScheduledPerformingPhysicianName = ""
    for keyword, value in step.items():
        setattr(item, keyword, value)
    ds.ScheduledProcedureStepSequence = [item]
    return ds


@contextlib.contextmanager
def wlmscpfs(folder: Path, entries: list[Dataset]) -> Iterator[int]:
    """dcmtk's worklist server over these entries; its port."""
    program = tool("wlmscpfs")
    area = folder / "CLINIC"
    area.mkdir(parents=True)
    (area / "lockfile").touch()
    for number, ds in enumerate(entries):
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            "1.2.276.0.7230010.3.1.0.1",
            "1.2",
        )
        pydicom.dcmwrite(area / f"{number}.wl", ds, enforce_file_format=True)
    port = free_port()
    with subprocess.Popen([program, "-dfp", str(folder), str(port)], stdout=-3, stderr=-3) as process:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                threading.Event().wait(0.05)
            yield port
        finally:
            process.terminate()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(tmp_path / "state")
    yield opened
    opened.close()


def client(store: Store, port: int, **settings: object) -> WorklistClient:
    config = WorklistConfig(enabled=True, host="127.0.0.1", port=port, ae_title="CLINIC", **settings)
    return WorklistClient(config, DicomConfig(), store)


# The box asks


def test_dcmtks_worklist_is_kept_and_serves_when_the_server_is_gone(store, tmp_path):
    names = ["Okoro^Ada", "Bello^Musa"]
    entries = [entry(f"P{index}", name) for index, name in enumerate(names)]
    entries.append(entry("P7", "Müller^Jürgen", "ISO_IR 100", ScheduledProcedureStepStartTime="0800"))
    with wlmscpfs(tmp_path / "wl", entries) as port:
        asking = client(store, port)
        assert asking.ask() == 3
    with pytest.raises(WorklistError, match="can't be reached"):
        asking.ask()
    answer = store.worklist.answer()
    assert [step.patient.name for step in answer.steps] == ["Müller^Jürgen", "Bello^Musa", "Okoro^Ada"]
    assert answer.steps[2] == ScheduledStep(
        patient=Patient(id="P0", name="Okoro^Ada", birth_date="19800101", sex="F"),
        accession_number="AP0",
        procedure="Chest PA",
        procedure_id="R1",
        study_uid="1.2.0",
        step="Chest",
        step_id="S1",
        modality="DX",
        station_ae_title="XRAY",
        station="Room 1",
        date="20260715",
        time="0930",
    )
    assert answer.taken == now()
    assert "can't be reached" in answer.problem
    kept = b"".join(path.read_bytes() for path in (tmp_path / "state").glob("journal.sqlite*"))
    assert b"Okoro" not in kept


def test_the_same_answer_again_writes_no_entry_and_a_new_one_replaces_the_old(store, tmp_path):
    first, second = ScheduledStep(patient=Patient(id="P1")), ScheduledStep(patient=Patient(id="P2"))
    write = store.journal.write
    assert write(lambda tx: store.worklist.replace(tx, [first, second], now())) == 2
    assert write(lambda tx: store.worklist.replace(tx, [second, first], now())) == 0
    assert write(lambda tx: store.worklist.replace(tx, [second], now())) == 1
    assert store.worklist.answer().steps == (second,)


def test_the_age_of_an_answer_is_known_or_said_not_to_be():
    taken = Moment(boot_id="a", monotonic_ns=10**9, wall="2026-01-01T00:00:00.000Z", uncertainty_s=1.0)
    assert age_s(taken, Moment(boot_id="a", monotonic_ns=61 * 10**9, wall="1970-01-01T00:00:00.000Z")) == 60.0
    later = Moment(boot_id="b", monotonic_ns=1, wall="2026-01-01T01:00:00.000Z", uncertainty_s=2.0)
    assert age_s(taken, later) == 3603.0
    assert age_s(taken, Moment(boot_id="b", monotonic_ns=1, wall="2026-01-01T01:00:00.000Z")) is None


def test_without_a_trusted_clock_all_days_are_asked_for():
    moment = Moment(boot_id="a", monotonic_ns=1, wall="2026-07-15T12:00:00.000Z", uncertainty_s=1.0)
    step = query(WorklistConfig(modality="DX"), moment).ScheduledProcedureStepSequence[0]
    since, until = step.ScheduledProcedureStepStartDate.split("-")
    assert (len(since), int(until) - int(since)) == (8, 1)
    assert step.Modality == "DX"
    asked = query(WorklistConfig(), Moment(boot_id="a", monotonic_ns=1, wall="1970-01-01T00:00:00.000Z"))
    assert asked.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate == ""


@contextlib.contextmanager
def odd_server(answers: Callable[[object], Iterator[object]]) -> Iterator[int]:
    ae = AE("CLINIC")
    ae.add_supported_context(WORKLIST_FIND)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, answers)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_odd_entries_are_taken_as_far_as_they_can_be_read(store):
    nameless, bare, wrong = Dataset(), Dataset(), entry("P3", "X")
    bare.PatientID = "P1"
    nameless.AccessionNumber = "A"
    wrong.SpecificCharacterSet = "NOT_REAL"
    wrong.PatientName = b"Okor\xf3^Ada"
    wrong.add_new(0x00401001, "UN", b"\xff" * 3000)
    wrong.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate = "2026.07.15"
    wrong.StudyInstanceUID = "not a uid"

    def answers(_event: object) -> Iterator[object]:
        for ds in (nameless, bare, wrong):
            yield 0xFF00, ds

    with odd_server(answers) as port:
        assert client(store, port).ask() == 2
    bare_step, wrong_step = store.worklist.answer().steps
    assert bare_step == ScheduledStep(patient=Patient(id="P1"))
    assert (wrong_step.patient.id, wrong_step.date, wrong_step.study_uid) == ("P3", "20260715", "")
    assert wrong_step.patient.name.startswith("Okor")
    assert len(wrong_step.procedure_id) <= 256


def test_an_answer_without_end_is_cut_and_said_to_be(store):
    def answers(_event: object) -> Iterator[object]:
        for number in range(100_000):
            yield 0xFF00, entry(f"P{number}", "Without^End")

    with odd_server(answers) as port:
        assert client(store, port, most=50).ask() == 50
    assert "more than 50" in store.worklist.answer().problem


def test_an_entry_without_end_ends_the_question_and_leaves_the_old_answer(store, monkeypatch):
    monkeypatch.setattr("appliance.capture.worklist.BYTES_MOST", 200_000)
    store.journal.write(lambda tx: store.worklist.replace(tx, [ScheduledStep(patient=Patient(id="P1"))], now()))
    huge = entry("P2", "Huge")
    huge.add_new(0x00091001, "OB", bytes(1_000_000))

    def answers(_event: object) -> Iterator[object]:
        yield 0xFF00, huge

    with odd_server(answers) as port, pytest.raises(WorklistError, match="broke off"):
        client(store, port).ask()
    assert [step.patient.id for step in store.worklist.answer().steps] == ["P1"]


def test_a_refusal_keeps_the_old_answer_and_says_the_status(store):
    store.journal.write(lambda tx: store.worklist.replace(tx, [ScheduledStep(patient=Patient(id="P1"))], now()))

    def answers(_event: object) -> Iterator[object]:
        yield 0xA700, None

    with odd_server(answers) as port, pytest.raises(WorklistError, match="A700"):
        client(store, port).ask()
    answer = store.worklist.answer()
    assert len(answer.steps) == 1
    assert "A700" in answer.problem


def test_a_server_without_worklist_is_told_apart_from_none_at_all(store):
    ae = AE("CLINIC")
    ae.add_supported_context("1.2.840.10008.1.1")
    server = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        with pytest.raises(WorklistError, match="offers no worklist"):
            client(store, server.server_address[1]).ask()
    finally:
        server.shutdown()


# A portable unit asks the box


def fill(store: Store) -> None:
    steps = [
        ScheduledStep(patient=Patient(id="P1", name="Okoro^Ada", sex="F"), modality="DX", accession_number="A1"),
        ScheduledStep(patient=Patient(id="P2", name="Bello^Musa", sex="M"), modality="US", accession_number="A2"),
    ]
    store.journal.write(lambda tx: store.worklist.replace(tx, steps, now()))

    def visit(tx: object) -> None:
        known = store.patients.enter(tx, Patient(id="P3", name="Müller^Eva", birth_date="20010203"), "box")
        store.patients.open_visit(tx, known, now(), accession_number="A3", procedure="Chest")
        again = store.patients.enter(tx, Patient(id="P1", name="Okoro^Ada"), "box")
        store.patients.open_visit(tx, again, now(), accession_number="A1")

    store.journal.write(visit)


def test_dcmtks_findscu_gets_the_kept_list_and_the_visits_of_the_box(tmp_path):
    findscu = tool("findscu")
    with box(tmp_path / "state") as (door, store):
        fill(store)
        out = tmp_path / "out"
        out.mkdir()
        wanted = ["PatientName", "PatientID", "AccessionNumber", "StudyInstanceUID", "PatientBirthDate"]
        keys = [part for key in wanted for part in ("-k", key)]
        step = ["-k", "ScheduledProcedureStepSequence[0].Modality", "-k", "(0008,0005)=ISO_IR 100"]
        command = [findscu, "-W", "-X", "-od", str(out), "-aec", "BEDSIDE", *keys, *step, "127.0.0.1", str(door.port)]
        subprocess.run(command, check=True, timeout=30, capture_output=True)
        found = sorted((pydicom.dcmread(path, force=True) for path in out.glob("*.dcm")), key=lambda ds: ds.PatientID)
        assert [ds.PatientID for ds in found] == ["P1", "P2", "P3"]
        assert [str(ds.PatientName) for ds in found] == ["Okoro^Ada", "Bello^Musa", "Müller^Eva"]
        assert found[2].SpecificCharacterSet == "ISO_IR 100"
        assert found[2].PatientBirthDate == "20010203"
        assert found[2].StudyInstanceUID.startswith("2.25.")
        assert found[1].ScheduledProcedureStepSequence[0].Modality == "US"
        assert "PatientSex" not in found[0]


@pytest.mark.parametrize(
    ("key", "numbers"),
    [
        ("PatientName=okoro*", ["P1"]),
        ("PatientID=P2", ["P2"]),
        ("ScheduledProcedureStepSequence[0].Modality=US", ["P2"]),
        ("ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate=20260101-20261231", ["P1", "P2", "P3"]),
        ("PatientID=nobody", []),
    ],
)
def test_findscus_keys_choose(tmp_path, key, numbers):
    findscu = tool("findscu")
    with box(tmp_path / "state") as (door, store):
        fill(store)
        out = tmp_path / "out"
        out.mkdir()
        command = [findscu, "-W", "-X", "-od", str(out), "-aec", "BEDSIDE", "-k", "PatientID", "-k", key]
        subprocess.run([*command, "127.0.0.1", str(door.port)], check=True, timeout=30, capture_output=True)
        found = [pydicom.dcmread(path, force=True).PatientID for path in out.glob("*.dcm")]
        # A visit has no modality: it answers only units that don't ask for one.
        assert sorted(found) == numbers


def test_the_kept_list_serves_after_a_restart_without_the_server(tmp_path):
    with box(tmp_path) as (_, store):
        fill(store)
    with box(tmp_path) as (door, _), association(door.port, WORKLIST_FIND) as link:
        keys = Dataset()
        keys.PatientID = ""
        answers = [ds.PatientID for status, ds in link.send_c_find(keys, WORKLIST_FIND) if status.Status == 0xFF00]
    assert sorted(answers) == ["P1", "P2", "P3"]


def test_a_key_that_the_box_does_not_have_is_said_to_be_unsupported(tmp_path):
    with box(tmp_path) as (door, store), association(door.port, WORKLIST_FIND) as link:
        fill(store)
        keys = Dataset()
        keys.PatientID, keys.EthnicGroup = "P1", ""
        statuses = [status.Status for status, _ in link.send_c_find(keys, WORKLIST_FIND)]
    assert statuses == [0xFF01, 0x0000]


def test_a_name_beyond_the_units_letters_comes_in_unicode(tmp_path):
    with box(tmp_path) as (door, store), association(door.port, WORKLIST_FIND) as link:
        step = ScheduledStep(patient=Patient(id="P1", name="أحمد^علي"))
        store.journal.write(lambda tx: store.worklist.replace(tx, [step], now()))
        keys = Dataset()
        keys.SpecificCharacterSet, keys.PatientName, keys.PatientID = "ISO_IR 100", "", ""
        [(_, found), _] = list(link.send_c_find(keys, WORKLIST_FIND))
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert str(found.PatientName) == "أحمد^علي"


def test_keys_that_can_not_be_read_are_answered_and_the_door_stays(tmp_path):
    with box(tmp_path) as (door, store), association(door.port, WORKLIST_FIND, syntax="1.2.840.10008.1.2") as link:
        fill(store)
        keys = Dataset()
        keys.PatientID = "P1"
        keys.add_new(0x00400100, "OB", b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x05\x00" * 400)
        assert [status.Status for status, _ in link.send_c_find(keys, WORKLIST_FIND)] == [0xC001]
        keys = Dataset()
        keys.PatientID = "P1"
        assert [status.Status for status, _ in link.send_c_find(keys, WORKLIST_FIND)] == [0xFF00, 0x0000]


def test_a_question_of_a_million_values_is_refused_without_comparing_them(tmp_path):
    with box(tmp_path) as (door, store), association(door.port, WORKLIST_FIND) as link:
        fill(store)
        keys = Dataset()
        keys.AccessionNumber = ["*a"] * 100_000
        assert [status.Status for status, _ in link.send_c_find(keys, WORKLIST_FIND)] == [0xC001]
        assert door.counts["worklist-unable"] == 1


@pytest.mark.filterwarnings("ignore")
def test_nothing_of_a_patient_is_logged_whatever_is_wrong_with_it(tmp_path, capfd):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage() + str(record.exc_info or ""))
    logging.getLogger().addHandler(handler)
    try:
        with box(tmp_path) as (door, store), association(door.port, WORKLIST_FIND, PERFORMED_STEP) as link:
            step = ScheduledStep(patient=Patient(id="P1", name="SECRET^NAME" * 9, birth_date="SECRETDATE"))
            store.journal.write(lambda tx: store.worklist.replace(tx, [step], now()))
            lines.clear()
            keys = Dataset()
            keys.PatientName, keys.PatientBirthDate, keys.PatientID = "SECRET*", "", ""
            assert len(list(link.send_c_find(keys, WORKLIST_FIND))) == 2
            odd = Dataset()
            odd.PerformedProcedureStepStatus = "IN PROGRESS"
            odd.PatientName, odd.PatientBirthDate, odd.StudyInstanceUID = "SECRET^NAME" * 9, "SECRETDATE", "SECRETUID"
            assert link.send_n_create(odd, PERFORMED_STEP, "1.2.3")[0].Status == 0x0000
    finally:
        logging.getLogger().removeHandler(handler)
    assert "SECRET" not in "".join(lines)
    assert "SECRET" not in "".join(capfd.readouterr())
