"""A recording as a DICOM General Audio Waveform object (PS3.3 A.34.10), for archives that take nothing else.

What this module keeps true: the object is *derived* from the original (FLAC or WAV as it was recorded) and can be made
again at any time, the same but for nothing: identifiers come from the capture, times from its record. One channel, 16 bits,
at most 44.1 kHz, as the IOD allows; when bits or rate had to be given up, Waveform Originality says DERIVED. Where the
stethoscope was stands coded in the Acquisition Context (Finding Site, Laterality, Topographical Modifier) and in words.
"""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

from appliance import __version__
from appliance.capture.stethoscope_positions import LEFT, PLACES, RIGHT
from appliance.records import Capture, Code, Modality

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.9.4.2"
HIGHEST_HZ = 44100
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_PHONOCARDIOGRAM = Code(scheme="DCM", value="109114", meaning="Phonocardiogram")
_PHYSIOLOGICAL = Code(scheme="DCM", value="109115", meaning="Physiological audio signal")
_SITE = Code(scheme="SCT", value="363698007", meaning="Finding Site")
_LATERALITY = Code(scheme="SCT", value="272741003", meaning="Laterality")
_TOPOGRAPHY = Code(scheme="SCT", value="106233006", meaning="Topographical modifier")


class NotASound(Exception):  # noqa: N818 - the condition's name
    """The original can't be read as a recording."""


def general_audio(capture: Capture, original: bytes) -> bytes:
    """The DICOM file (Part 10) for a recording; raises ``NotASound``. ``original``: FLAC or WAV."""
    import pydicom
    from pydicom.dataset import FileMetaDataset

    samples, rate, kept = _samples(original)
    made = pydicom.Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    _whose(made, capture)
    _study(made, capture)
    made.Manufacturer = "Bedside"
    made.SoftwareVersions = __version__
    made.AcquisitionContextSequence = _context(capture.position)
    made.WaveformSequence = [_waveform(samples, rate, capture.modality, kept=kept)]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SOP_CLASS
    meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    meta.TransferSyntaxUID = _EXPLICIT_LITTLE_ENDIAN
    made.file_meta = meta
    out = io.BytesIO()
    pydicom.dcmwrite(out, made, enforce_file_format=True)
    return out.getvalue()


def _samples(original: bytes) -> tuple[npt.NDArray[np.int16], int, bool]:
    """The recording as 16 bits at a rate that the IOD allows, and whether these are the very samples recorded."""
    import numpy as np

    from appliance.interop.samples import SoundError, samples_of

    try:
        raw, rate, _ = samples_of(original)
    except SoundError as error:
        raise NotASound(f"the recording can't be written as DICOM: {error}") from error
    if not len(raw):
        raise NotASound("the recording holds no samples")
    wave = raw[:, int(np.argmax(raw.astype(np.float64).var(axis=0)))]
    kept = rate <= HIGHEST_HZ and not np.any(wave & 0xFFFF)
    if rate > HIGHEST_HZ:
        import soxr

        lower = rate // (-(-rate // HIGHEST_HZ))  # by a whole number: 24 kHz for 48 kHz
        floats = soxr.resample(wave / np.float64(1 << 31), rate, lower, quality="HQ")
        return np.rint(np.clip(floats, -1.0, 1.0 - 2.0**-15) * 32768.0).astype("<i2"), lower, False
    rounded = np.clip(np.rint(wave / 65536.0), -32768, 32767)
    return rounded.astype("<i2"), rate, kept


def _whose(made: Any, capture: Capture) -> None:
    patient = capture.patient
    made.PatientName = patient.name
    made.PatientID = patient.id
    if patient.issuer:
        made.IssuerOfPatientID = patient.issuer
    made.PatientBirthDate = patient.birth_date.replace("-", "")
    made.PatientSex = patient.sex
    if patient.age_years is not None:
        years = int(patient.age_years)
        made.PatientAge = f"{years:03d}Y" if years >= 2 else f"{int(patient.age_years * 12):03d}M"


def _study(made: Any, capture: Capture) -> None:
    date, time = capture.received.wall[:10].replace("-", ""), capture.received.wall[11:19].replace(":", "")
    made.StudyInstanceUID = capture.study_uid or _uid("study", capture.encounter_id or capture.id)
    made.SeriesInstanceUID = capture.series_uid or _uid("series", capture.encounter_id or capture.id)
    made.SOPInstanceUID = capture.instance_uid or _uid("instance", capture.id)
    made.SOPClassUID = SOP_CLASS
    made.Modality = "AU"
    made.StudyDate = made.ContentDate = made.SeriesDate = date
    made.StudyTime = made.ContentTime = made.SeriesTime = time
    made.AcquisitionDateTime = date + time
    made.TimezoneOffsetFromUTC = "+0000"
    made.ReferringPhysicianName = made.StudyID = ""
    made.AccessionNumber = capture.accession_number
    made.SeriesNumber = made.InstanceNumber = 1
    organ = "heart" if capture.modality is Modality.HEART_SOUND else "lungs"
    made.SeriesDescription = f"Auscultation {organ} {capture.position}".strip()


def _waveform(samples: npt.NDArray[np.int16], rate: int, modality: Modality, *, kept: bool) -> Any:
    from pydicom.dataset import Dataset

    channel = Dataset()
    source = _PHONOCARDIOGRAM if modality is Modality.HEART_SOUND else _PHYSIOLOGICAL
    channel.ChannelSourceSequence = [_item(source)]
    channel.ChannelSampleSkew = 0
    channel.WaveformBitsStored = 16
    group = Dataset()
    group.WaveformOriginality = "ORIGINAL" if kept else "DERIVED"
    group.NumberOfWaveformChannels = 1
    group.NumberOfWaveformSamples = samples.size
    group.SamplingFrequency = rate
    group.ChannelDefinitionSequence = [channel]
    group.WaveformBitsAllocated = 16
    group.WaveformSampleInterpretation = "SS"
    group.add_new(0x54001010, "OW", samples.tobytes())
    return group


def _context(position: str) -> list[Any]:
    from pydicom.dataset import Dataset

    place = PLACES.get(position)
    if place is None:
        return []
    found = []
    for name, value in ((_SITE, place.code), *((_kind(one), one) for one in place.modifiers)):
        item = Dataset()
        item.ValueType = "CODE"
        item.ConceptNameCodeSequence = [_item(name)]
        item.ConceptCodeSequence = [_item(value)]
        found.append(item)
    return found


def _kind(modifier: Code) -> Code:
    return _LATERALITY if modifier in (LEFT, RIGHT) else _TOPOGRAPHY


def _item(code: Code) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def _uid(kind: str, name: str) -> str:
    """A UID by PS3.5 B.2 (2.25 and a number of 128 bits), always the same for the same name."""
    return f"2.25.{int.from_bytes(hashlib.sha256(f'audio-{kind}:{name}'.encode()).digest()[:16], 'big')}"
