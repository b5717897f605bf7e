"""Recordings on their way out: the samples stay, whatever they were held as, and any bytes end in a file or a reason."""

from __future__ import annotations

import io
import struct
from functools import cache

import numpy as np
import pydicom
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.interop.deidentify import Withheld
from appliance.interop.outgoing import cleaned
from appliance.interop.profile import Options
from appliance.interop.samples import SoundError, samples_of
from appliance.interop.waveform import NotASound, general_audio
from appliance.records import Capture, Modality, Moment, Patient

WAVE = 0.5 * np.sin(np.arange(4000) / 20)
KEPT = Moment(boot_id="b", monotonic_ns=1, wall="2026-11-23T08:00:00Z", uncertainty_s=1.0)
SOUND = Capture(
    id="c",
    patient=Patient(),
    sha256="0" * 64,
    size=1,
    received=KEPT,
    modality=Modality.HEART_SOUND,
    media_type="audio/wav",
    source="",
)


@cache
def seed(form: str, subtype: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, WAVE, 4000, format=form, subtype=subtype)
    return out.getvalue()


def bare(data: bytes) -> bytes:
    return cleaned(SOUND, data, lambda text: text.ljust(32, "0")[:32], Options()).data


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE"])
def test_samples_stay_as_loud_as_they_were_however_the_file_held_them(subtype: str) -> None:
    data = seed("WAV", subtype)
    step = 2.0**-7 if subtype == "PCM_U8" else 2.0**-15
    assert np.abs(soundfile.read(io.BytesIO(bare(data)))[0] - WAVE).max() <= step
    group = pydicom.dcmread(io.BytesIO(general_audio(SOUND, data))).WaveformSequence[0]
    assert np.abs(np.frombuffer(group.WaveformData, "<i2") / 32768 - WAVE).max() <= step


def test_samples_beyond_full_scale_and_none_at_all_are_held_at_it() -> None:
    out = io.BytesIO()
    soundfile.write(out, np.array([2.0, -2.0, np.nan, np.inf]), 4000, format="WAV", subtype="FLOAT")
    assert samples_of(out.getvalue()).values[:, 0].tolist() == [2**31 - 1, -(2**31), 0, 2**31 - 1]


def test_a_header_that_declares_hours_costs_no_memory() -> None:
    data = bytearray(seed("FLAC", "PCM_16"))
    number = struct.unpack_from(">Q", data, 18)[0]
    struct.pack_into(">Q", data, 18, number >> 36 << 36 | (1 << 36) - 1)  # total samples: the lower 36 bits
    with pytest.raises(SoundError, match="more than a recording has"):
        samples_of(bytes(data))


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from([("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_24")]),
    cut=st.integers(0, 5000),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
)
def test_any_damaged_header_ends_in_a_bare_file_or_a_reason(
    form: tuple[str, str], cut: int, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(seed(*form))[: max(0, len(seed(*form)) - cut)]
    for at, value in changes:
        if at < len(data):
            data[at] = value
    try:
        assert bare(bytes(data)).startswith(b"fLaC")
    except Withheld as error:
        assert "can't be written" in str(error)
    try:
        assert general_audio(SOUND, bytes(data))
    except NotASound as error:
        assert str(error)
