"""A recording as a DICOM object: the same samples, read back by the box's own door and reader."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import soundfile

from appliance.capture.facts import facts_of
from appliance.capture.stethoscope_flac import flac_of
from appliance.capture.stethoscope_positions import PLACES
from appliance.interop.waveform import NotASound, general_audio
from appliance.reading.decode import decode
from appliance.reading.prepared import Sound
from appliance.records import Capture, Modality, Moment, Patient
from tests.simulated_stethoscope import int32
from tools.simulate import sounds

HEART = int32(sounds.heart(3.0, 4000)[0])


def capture(position: str = "mitral", **rest: object) -> Capture:
    given = {
        "id": "0" * 32,
        "sha256": "0" * 64,
        "size": 1,
        "modality": PLACES[position].modality,
        "media_type": "audio/flac",
        "source": "stethoscope",
        "patient": Patient(id="17", name="Otieno^Amina", sex="F", age_years=34.0, birth_date="1992-02-03"),
        "received": Moment(boot_id="b", monotonic_ns=1, wall="2026-03-01T10:20:30.000Z"),
        "position": position,
        **rest,
    }
    return Capture(**given)  # type: ignore[arg-type]


def test_the_samples_of_a_16_bit_recording_are_the_very_same() -> None:
    made = general_audio(capture(), flac_of(HEART, 4000, "c"))
    found = decode(made)
    assert isinstance(found, Sound)
    assert found.rate_hz == 4000
    assert np.array_equal(np.rint(found.samples * 32768).astype(np.int32), HEART >> 16)
    dataset = pydicom.dcmread(io.BytesIO(made))
    assert dataset.WaveformSequence[0].WaveformOriginality == "ORIGINAL"
    assert dataset.WaveformSequence[0].ChannelDefinitionSequence[0].ChannelSourceSequence[0].CodeValue == "109114"


def test_the_door_takes_it_as_what_it_is() -> None:
    for position, modality in (("mitral", Modality.HEART_SOUND), ("lung-back-lower-left", Modality.LUNG_SOUND)):
        facts = facts_of(general_audio(capture(position), flac_of(HEART, 4000, "c")), "test")
        assert (facts.modality, facts.position, facts.patient.id) == (modality, position, "17")


def test_24_bits_at_48_khz_are_brought_within_the_iod_and_called_derived() -> None:
    fine = (sounds.heart(2.0, 48000)[0] * 2**30).astype(np.int32) & ~0xFF
    dataset = pydicom.dcmread(io.BytesIO(general_audio(capture(), flac_of(fine, 48000, "c"))))
    group = dataset.WaveformSequence[0]
    assert (group.SamplingFrequency, group.WaveformOriginality, group.WaveformBitsAllocated) == (24000, "DERIVED", 16)
    found = decode(general_audio(capture(), flac_of(fine, 48000, "c")))
    assert isinstance(found, Sound)
    every_second = fine[::2] / 2**31
    assert np.max(np.abs(found.samples - every_second)) < 0.01


def test_it_is_the_same_object_whenever_it_is_made() -> None:
    flac = flac_of(HEART, 4000, "c")
    assert general_audio(capture(), flac) == general_audio(capture(), flac)
    one, other = (pydicom.dcmread(io.BytesIO(general_audio(capture(id=id_ * 32), flac))) for id_ in "12")
    assert one.SOPInstanceUID != other.SOPInstanceUID


@pytest.mark.parametrize("position", list(PLACES))
def test_where_the_stethoscope_was_stands_coded(position: str) -> None:
    dataset = pydicom.dcmread(io.BytesIO(general_audio(capture(position), flac_of(HEART, 4000, "c"))))
    context = {
        one.ConceptNameCodeSequence[0].CodeMeaning: one.ConceptCodeSequence[0].CodeValue
        for one in dataset.AcquisitionContextSequence
    }
    assert context["Finding Site"] == PLACES[position].code.value
    assert ("Laterality" in context) == position.startswith("lung")
    assert "Topographical modifier" in context


def test_what_is_no_recording_is_said() -> None:
    with pytest.raises(NotASound, match="can't be decoded"):
        general_audio(capture(), b"fLaC" + bytes(50))


def test_a_wav_handed_in_becomes_an_object_too() -> None:
    out = io.BytesIO()
    soundfile.write(out, np.stack([HEART >> 18, HEART >> 16], axis=1).astype(np.int16), 4000, format="WAV")
    found = decode(general_audio(capture(), out.getvalue()))
    assert isinstance(found, Sound)
    assert np.array_equal(np.rint(found.samples * 32768).astype(np.int32), HEART >> 16), "the louder channel"


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_a_validator_finds_no_error_in_its_modules(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(io.BytesIO(general_audio(capture("lung-back-upper-left"), flac_of(HEART, 8000, "c"))))
    # It does not know General Audio Waveform; Basic Voice Audio has the same modules (PS3.3 A.34.2 and A.34.10).
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.9.4.1"
    path = tmp_path / "sound.dcm"
    dataset.save_as(path)
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
    assert "BasicVoice" in said
    assert "Error" not in said, said
