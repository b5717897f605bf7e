"""A hub that must not know the patient is told a pseudonym, and gets only files that were cleaned."""

from __future__ import annotations

import io
from concurrent.futures import Future
from pathlib import Path

import msgspec
import numpy as np
import pydicom
import pytest
import soundfile
from typer.testing import CliRunner

from appliance.capture.intake import Facts, Intake
from appliance.cli import app
from appliance.config import DeidentifyConfig, LinkConfig
from appliance.inference.worker import Result
from appliance.interop.outgoing import hidden, options_of, unquoted
from appliance.interop.profile import ProfileError
from appliance.pipeline import Pipeline
from appliance.protocol import messages
from appliance.records import Capture, CaptureState, Modality, Patient, Reading, Refusal, Triage
from appliance.store import audit
from appliance.store.journal import Transaction
from appliance.store.store import Store
from appliance.sync import pseudonymous
from appliance.sync.originals import Originals
from appliance.sync.pseudonymous import CleanSettings
from tests.boxes import DEVICE, open_store
from tests.unit.test_deidentify import an_object, file_of
from tests.unit.test_pipeline import SimulatedReaders

WHO = Patient(id="MRN-778812", name="Okonkwo^Adaeze", birth_date="19310412", sex="F", age_years=95.0)
OPTIONS = options_of(DeidentifyConfig(hub="pseudonymous"))
SECRETS = (b"Okonkwo", b"Adaeze", b"MRN-778812", b"ACC-5521", b"19310412")


class InProcess:
    """The cleaning process without a process."""

    def __init__(self, store: Store, *, dies: bool = False) -> None:
        settings = CleanSettings(vault=str(store.vault.folder), key=str(store.folder), options=OPTIONS)
        self._answer = pseudonymous.serve(msgspec.msgpack.encode(settings))
        self.dies = dies
        self.asked = 0

    def start(self) -> None:
        pass

    def stop(self, grace_s: float = 0.0) -> None:
        pass

    def submit(self, request: bytes, priority: int, timeout_s: float) -> Future[Result]:
        self.asked += 1
        future: Future[Result] = Future()
        future.set_result(Result("died", reason="killed") if self.dies else Result("ok", self._answer(request)))
        return future


def reported(folder: Path, content: bytes, media_type: str, modality: Modality = Modality.CHEST_XRAY) -> Store:
    """A store in which one capture was reported to a hub that must not know the patient."""
    store = open_store(folder)
    with Intake(store, DEVICE).open() as incoming:
        incoming.write(content)
        incoming.keep(
            Facts(
                modality=modality,
                media_type=media_type,
                source="ward 7, Okonkwo",
                patient=WHO,
                study_uid="1.2.826.0.1.77",
                study_date="20261101",
                accession_number="ACC-5521",
                description="chest of Adaeze",
            )
        )
    readers = SimulatedReaders(triage=Triage.URGENT)

    def hide(capture: object) -> object:
        return hidden(capture, store.key.blind, OPTIONS)  # type: ignore[arg-type]

    Pipeline(store, readers, DEVICE, LinkConfig(), 5.0, hide=hide).step()  # type: ignore[arg-type]
    return store


def leaving(store: Store) -> list[bytes]:
    """All bytes that wait for the hub."""
    results = [store.outbox.payload(item.id) for item in store.outbox.waiting()]
    return [*results, *(store.vault.read(item.sha256) for item in store.transfers.waiting())]


def test_nothing_that_waits_for_the_hub_names_the_patient(tmp_path: Path) -> None:
    pixels = (np.add.outer(np.arange(300), np.arange(200)) % 4096).astype("<u2")
    film = file_of(an_object(rows=300, columns=200, PixelData=pixels.tobytes()))
    assert any(secret in film for secret in SECRETS)
    store = reported(tmp_path, film, "application/dicom")
    assert not store.transfers.waiting(), "before it is cleaned, no picture waits"
    assert Originals(store, InProcess(store), clean=True).step()
    preview, original = sorted(store.transfers.waiting(), key=lambda item: item.priority)
    assert (preview.kind, preview.media_type) == ("preview", "image/jpeg")
    assert (original.kind, original.media_type, original.encoding) == ("original", "application/dicom", "")
    for out in leaving(store):
        assert not [secret for secret in SECRETS if secret in out]
    sent = pydicom.dcmread(io.BytesIO(store.vault.read(original.sha256)))
    assert np.array_equal(sent.pixel_array, pixels)
    assert original.size < 0.3 * len(film), "and it is compressed without loss"
    (item,) = store.outbox.waiting()
    told = messages.decode(store.outbox.payload(item.id), messages.Result).capture
    assert told.patient.id == str(sent.PatientID)
    assert (told.patient.name, told.patient.sex, told.patient.age_years) == ("", "F", 90.0)
    assert store.captures.get(told.id).capture.patient == WHO, "the box itself knows the patient"
    store.close()


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("This is not a chest X-ray (the file says OKONKWO).", "This is not a chest X-ray."),
        (
            "The DICOM header can't be parsed (ValueError: 'Okonkwo^Adaeze (f)').",
            "The DICOM header can't be parsed.",
        ),
        (
            "The file names a body part that is not known here: ADAEZE O.",
            "The file names a body part that is not known here.",
        ),
        ("The transfer syntax 'MRN-778812' is not supported.", "The transfer syntax."),
        ("The model was not made for this age (97 years).", "The model was not made for this age."),
        ("The film is blurred.", "The film is blurred."),
    ],
)
def test_reasons_and_warnings_leave_without_what_they_quote_from_the_file(said: str, left: str) -> None:
    refusal = Refusal(code="x", reason=said, advice="Take it again.")
    one = Reading(
        capture_id="c",
        modality=Modality.CHEST_XRAY,
        status="not_read",
        triage=Triage.URGENT,
        advice="",
        refusal=refusal,
        warnings=(said,),
    )
    after = unquoted(one)
    assert after.refusal is not None
    assert (after.refusal.reason, after.warnings) == (left, (left,))


def test_a_result_of_a_file_with_a_name_for_its_body_part_names_nobody(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with Intake(store, DEVICE).open() as incoming:
        incoming.write(b"film")
        kept = incoming.keep(
            Facts(modality=Modality.CHEST_XRAY, media_type="application/dicom", source="", patient=WHO)
        )
    entry = store.captures.get(kept.capture_id)
    refusal = Refusal(code="not-chest", reason="This is not a chest X-ray (the file says OKONKWO).", advice="")
    said = Reading(
        capture_id=kept.capture_id,
        modality=Modality.CHEST_XRAY,
        status="not_read",
        triage=Triage.URGENT,
        advice="",
        refusal=refusal,
    )

    def hide(capture: Capture) -> Capture:
        return hidden(capture, store.key.blind, OPTIONS)

    def write(tx: Transaction) -> None:
        store.captures.checked(tx, kept.capture_id)
        store.captures.read(tx, said, "2026-11-23T00:00:00Z")

    store.journal.write(write)
    readers = SimulatedReaders()
    Pipeline(store, readers, DEVICE, LinkConfig(), 5.0, hide=hide).step()
    (out,) = [store.outbox.payload(item.id) for item in store.outbox.waiting()]
    assert b"not a chest X-ray" in out
    assert b"okonkwo" not in out.lower()
    assert entry.capture.patient == WHO
    store.close()


def test_the_name_of_whom_a_person_confirmed_is_looked_for_in_the_file_too(tmp_path: Path) -> None:
    film = file_of(an_object(PatientName="", PatientID="", SeriesDescription="", Manufacturer="for Makena"))
    store = reported(tmp_path, film, "application/dicom")
    (due,) = [store.transfers.next_due()]
    assert due is not None

    def confirm(tx: Transaction) -> None:
        patient = Patient(id="K-1", name="Makena^Njeri", birth_date="1990-01-01")
        visit = store.patients.open_visit(tx, store.patients.enter(tx, patient), store.now())
        store.attachments.attach(
            tx, due.capture_id, visit, seen=0, by="nurse", moment=store.now(), confirmed=("number", "name")
        )

    store.journal.write(confirm)
    assert Originals(store, InProcess(store), clean=True).step()
    assert not [out for out in leaving(store) if b"Makena" in out]
    store.close()


def test_a_picture_that_can_not_be_cleaned_stays_and_its_capture_is_done_without_it(tmp_path: Path) -> None:
    scan = file_of(an_object("US"))
    store = reported(tmp_path, scan, "application/dicom", Modality.LUNG_ULTRASOUND)
    one = Originals(store, InProcess(store), clean=True)
    assert one.step()
    assert one.counts["withheld"] == 1
    assert not store.transfers.waiting()
    (item,) = store.outbox.waiting()
    store.journal.write(lambda tx: store.outbox.close(tx, item.id, item.sha256, "delivered"))
    store.journal.write(lambda tx: store.captures.delivered_if_complete(tx, item.capture_id))
    assert store.captures.get(item.capture_id).state is CaptureState.DELIVERED
    assert [row["event"] for row in store.journal.all("SELECT event FROM audit")].count("withheld") == 1
    assert audit.verify(store.journal) is None
    store.close()


def test_when_the_cleaning_dies_nothing_goes_as_it_is(tmp_path: Path) -> None:
    store = reported(tmp_path, file_of(an_object()), "application/dicom")
    cleaning = InProcess(store, dies=True)
    one = Originals(store, cleaning, clean=True)
    while not one.counts["withheld"]:
        one.step()
    assert cleaning.asked == 3
    assert not store.transfers.waiting()
    store.close()


def test_a_cleaning_that_died_once_costs_the_radiologist_nothing(tmp_path: Path) -> None:
    store = reported(tmp_path, file_of(an_object()), "application/dicom")
    cleaning = InProcess(store, dies=True)
    one = Originals(store, cleaning, clean=True)
    assert not one.step()
    cleaning.dies = False
    assert one.step()
    assert not one.counts["withheld"]
    assert {item.kind for item in store.transfers.waiting()} == {"preview", "original"}
    store.close()


def test_waiting_for_space_to_clean_is_no_stall_that_the_watchdog_would_restart_the_box_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = reported(tmp_path, file_of(an_object()), "application/dicom")
    one = Originals(store, InProcess(store), clean=True)
    with monkeypatch.context() as patch:
        patch.setattr(store, "free", lambda: 10)
        assert not one.step()
        assert not one.working
    assert one.step()
    assert one.counts["encoded"] == 1
    store.close()


def test_a_recording_leaves_without_its_tags(tmp_path: Path) -> None:
    samples = (np.sin(np.arange(8000) / 5) * 9000).astype("int16")
    path = tmp_path / "in.flac"
    with soundfile.SoundFile(path, "w", 4000, 1, "PCM_16", format="FLAC") as file:
        file.title, file.artist = "heart of Adaeze", "Okonkwo"
        file.write(samples)
    assert b"Okonkwo" in path.read_bytes()
    store = reported(tmp_path / "box", path.read_bytes(), "audio/flac", Modality.HEART_SOUND)
    assert Originals(store, InProcess(store), clean=True).step()
    (original,) = [one for one in store.transfers.waiting() if one.kind == "original"]
    data = store.vault.read(original.sha256)
    assert b"Okonkwo" not in data
    assert np.array_equal(soundfile.read(io.BytesIO(data), dtype="int16")[0], samples)
    store.close()


def test_areas_that_are_none_are_refused_at_the_start() -> None:
    with pytest.raises(ProfileError, match="nothing"):
        options_of(DeidentifyConfig(areas=("US:0.5,0,0.2,1",)))


def test_the_command_writes_a_capture_under_the_patient_whom_a_person_confirmed(tmp_path: Path) -> None:
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(4000) / 5), 4000, format="FLAC")
    store = reported(tmp_path / "box", out.getvalue(), "audio/flac", Modality.HEART_SOUND)
    (entry,) = store.captures.latest()
    right = Patient(id="K-1", name="Makena^Njeri", birth_date="19900101")

    def confirm(tx: Transaction) -> None:
        visit = store.patients.open_visit(tx, store.patients.enter(tx, right), store.now())
        store.attachments.attach(
            tx, entry.capture.id, visit, seen=0, by="nurse", moment=store.now(), confirmed=("number", "name")
        )

    store.journal.write(confirm)
    expected = hidden(msgspec.structs.replace(entry.capture, patient=right), store.key.blind, OPTIONS).patient.id
    store.close()
    config = tmp_path / "bedside.toml"
    config.write_text(f'[storage]\nstate = "{tmp_path / "box"}"\n')
    done = CliRunner().invoke(app, ["deidentify", str(tmp_path / "out"), "--config", str(config)])
    assert done.exit_code == 0, done.output
    assert [path.parent.name for path in (tmp_path / "out").rglob("*.flac")] == [expected]


def test_the_command_writes_captures_without_their_patients_and_says_what_it_withheld(tmp_path: Path) -> None:
    store = reported(
        tmp_path / "box", file_of(an_object(rows=40, columns=40, PixelData=bytes(3200))), "application/dicom"
    )
    with Intake(store, DEVICE).open() as incoming:
        incoming.write(file_of(an_object("US")))
        incoming.keep(Facts(modality=Modality.LUNG_ULTRASOUND, media_type="application/dicom", source="", patient=WHO))
    store.close()
    config = tmp_path / "bedside.toml"
    config.write_text(f'[storage]\nstate = "{tmp_path / "box"}"\n')
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["deidentify", str(out), "--config", str(config)])
    assert done.exit_code == 1, "one was withheld"
    assert "1 written" in done.output
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".csv", ".dcm"}
    for path in files:
        assert not [secret for secret in SECRETS if secret in path.read_bytes() or secret.decode() in str(path)]
    again = CliRunner().invoke(app, ["deidentify", str(out), "--config", str(config)])
    assert again.exit_code == 1
    assert "not empty" in again.output
