"""Claims about sounds: full scale is ±1 in every encoding, the loudest channel is heard, cut-off files are refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
from pydicom.dataset import Dataset

from appliance.reading.decode import DecodeError, Limits, decode
from appliance.reading.prepared import Sound
from tests.simulated_models import dicom, written

RATE = 4000


def tone(seconds: float = 2.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 100 * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def sound_file(samples: np.ndarray, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=kind, subtype=subtype)
    return buffer.getvalue()


def heard(source) -> Sound:
    decoded = decode(source)
    assert isinstance(decoded, Sound)
    return decoded


def refused(source, **limits) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(source, limits=Limits(**limits))
    return caught.value.code


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("FLAC", "PCM_16"), ("RF64", "PCM_16")],
)
def test_a_recording_keeps_its_level_and_rate(kind, subtype):
    decoded = heard(sound_file(tone(), kind, subtype))
    assert decoded.rate_hz == RATE
    assert decoded.samples.dtype == np.float32
    np.testing.assert_allclose(decoded.samples, tone(), atol=0.02 if subtype == "ULAW" else 1e-4)


def test_of_two_channels_the_louder_is_heard():
    np.testing.assert_allclose(
        heard(sound_file(np.stack([tone(level=0.01), tone()], axis=1))).samples, tone(), atol=1e-4
    )


def test_recordings_that_cannot_be_whole_are_refused():
    wav, flac = sound_file(tone()), sound_file(tone(), "FLAC")
    assert refused(wav[: len(wav) // 2]) == "truncated"
    assert refused(wav[:40]) == "truncated"
    assert refused(flac[: len(flac) // 2]) in {"truncated", "damaged"}
    assert refused(sound_file(tone(0))) == "empty"
    assert refused(wav, sound_seconds=1.0) == "too-large"
    bad = tone()
    bad[7] = np.nan
    assert refused(sound_file(bad, subtype="FLOAT")) == "damaged"


def test_a_wav_that_was_streamed_without_a_length_is_read():
    wav = bytearray(sound_file(tone()))
    at = wav.index(b"data") + 4
    wav[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert len(heard(bytes(wav)).samples) == len(tone())


def waveform(stored: np.ndarray, interpretation: str, **elements) -> bytes:
    """A General Audio Waveform of ``stored`` ``[n, channels]``."""
    group = Dataset()
    group.NumberOfWaveformSamples, group.NumberOfWaveformChannels = stored.shape
    group.SamplingFrequency = RATE
    group.WaveformBitsAllocated = stored.dtype.itemsize * 8
    group.WaveformSampleInterpretation = interpretation
    source = Dataset()
    source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = "109114", "DCM", "Phonocardiogram"
    channel = Dataset()
    channel.ChannelSourceSequence = [source]
    group.ChannelDefinitionSequence = [channel]
    group.WaveformData = stored.tobytes()
    group["WaveformData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
    values = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.9.4.2", "Modality": "AU", "BodyPartExamined": None, "WaveformSequence": [group],
    }  # fmt: skip
    return written(dicom(None, **{**values, **elements}))


@pytest.mark.parametrize("interpretation", ["SS", "US", "SB", "UB"])
def test_a_dicom_waveform_has_full_scale_one_in_every_interpretation(interpretation):
    half = 32768 if interpretation[1] == "S" else 128
    kind = {"SS": "<i2", "US": "<u2", "SB": "i1", "UB": "u1"}[interpretation]
    stored = np.rint(tone() * (half - 1) + (half if interpretation[0] == "U" else 0)).astype(kind)
    decoded = heard(waveform(stored[:, None], interpretation))
    np.testing.assert_allclose(decoded.samples, tone(), atol=1.5 / half)
    assert decoded.header.body_part == "HEART"
    assert decoded.header.media_type == "audio/dicom"


@pytest.mark.parametrize(("interpretation", "subtype"), [("MB", "ULAW"), ("AB", "ALAW")])
def test_companded_waveforms_are_those_of_g711(interpretation, subtype):
    codes = np.arange(256, dtype=np.uint8)
    raw = io.BytesIO(codes.tobytes())
    theirs, _ = soundfile.read(raw, dtype="float32", samplerate=8000, channels=1, format="RAW", subtype=subtype)
    np.testing.assert_allclose(heard(waveform(codes[:, None], interpretation)).samples, theirs, atol=1e-6)


def test_waveforms_that_lie_about_their_length_are_refused():
    stored = np.zeros((100, 1), "<i2")
    good = waveform(stored, "SS")
    assert refused(good, sound_seconds=0.001) == "too-large"
    assert refused(good.replace(struct.pack("<I", 100), struct.pack("<I", 101), 1)) == "truncated"
    assert refused(waveform(stored, "XX")) == "damaged"
