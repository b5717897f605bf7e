"""A DICOM waveform to a sound: General Audio Waveform and its kin (PS3.3 A.34.2 and C.10.9).

What this module keeps true: of several channels the one with the most energy is heard; full scale is ±1 whatever the sample
interpretation; lengths that the header declares are checked against the data.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.reading.decode_limits import DecodeError, Limits
from appliance.reading.dicom_header import header_of, integer, number, text
from appliance.reading.prepared import Header, Sound

_AUDIO_CLASSES = {"1.2.840.10008.5.1.4.1.1.9.4.1", "1.2.840.10008.5.1.4.1.1.9.4.2"}
_KINDS = {"SB": "i1", "UB": "u1", "MB": "u1", "AB": "u1", "SS": "i2", "US": "u2", "SL": "i4", "UL": "u4"}


def decode_waveform(dataset: Any, limits: Limits) -> Sound:
    """The first multiplex group's loudest channel; raises ``DecodeError``."""
    if str(dataset.get("SOPClassUID", "")) not in _AUDIO_CLASSES:
        raise DecodeError(
            "not-a-sound",
            "the DICOM waveform is not audio (an ECG or another curve)",
            "send General Audio Waveform objects for heart and lung sounds",
        )
    group = dataset.WaveformSequence[0]
    channels, count = integer(group, "NumberOfWaveformChannels"), integer(group, "NumberOfWaveformSamples")
    rate = number(group, "SamplingFrequency", 0.0)
    interpretation = text(group, "WaveformSampleInterpretation").upper()
    if interpretation not in _KINDS or rate <= 0 or count < 1 or not 1 <= channels <= limits.sound_channels:
        raise DecodeError(
            "damaged",
            f"the waveform declares {channels} channels of {count} samples ({interpretation or 'no type'}) at {rate:g} Hz",
            "send it again; if that fails, export the recording as WAV",
        )
    if count / rate > limits.sound_seconds:
        raise DecodeError(
            "too-large",
            f"the recording lasts {count / rate:,.0f} s, the limit is {limits.sound_seconds:,.0f} s",
            "send the part that matters",
        )
    kind = np.dtype(_KINDS[interpretation]).newbyteorder("<" if dataset.original_encoding[1] else ">")
    data = bytes(group.get("WaveformData") or b"")
    if len(data) < count * channels * kind.itemsize:
        raise DecodeError(
            "truncated",
            f"the recording is cut off: {len(data):,} of {count * channels * kind.itemsize:,} bytes are there",
            "send or copy it again",
        )
    stored = np.frombuffer(data, kind, count * channels).reshape(count, channels)
    return Sound(header=_audio_header(dataset), samples=loudest(_full_scale(stored, interpretation)), rate_hz=rate)


def loudest(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The channel with the most energy of ``[n, channels]``, as ``[n]``."""
    if samples.shape[1] == 1:
        return np.ascontiguousarray(samples[:, 0])
    return np.ascontiguousarray(samples[:, int(np.argmax(samples.var(axis=0)))])


def _audio_header(dataset: Any) -> Header:
    return msgspec.structs.replace(header_of(dataset), media_type="audio/dicom")


def _full_scale(stored: npt.NDArray[Any], interpretation: str) -> npt.NDArray[np.float32]:
    if interpretation == "MB":
        return _mu_law(stored)
    if interpretation == "AB":
        return _a_law(stored)
    half = float(1 << (stored.dtype.itemsize * 8 - 1))
    centre = half if interpretation.startswith("U") else 0.0
    return ((stored.astype(np.float64) - centre) / half).astype(np.float32)


def _mu_law(stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """ITU-T G.711 µ-law, full scale ±1."""
    code = ~stored.astype(np.uint8)
    magnitude = (((code & 0x0F).astype(np.int32) << 3) + 0x84 << ((code >> 4) & 7)) - 0x84
    return (np.where(code & 0x80, -magnitude, magnitude) / 32768.0).astype(np.float32)


def _a_law(stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """ITU-T G.711 A-law, full scale ±1."""
    code = stored.astype(np.uint8) ^ 0x55
    exponent = ((code >> 4) & 7).astype(np.int32)
    base = ((code & 0x0F).astype(np.int32) << 4) + 8
    magnitude = np.where(exponent == 0, base, (base + 0x100) << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, magnitude, -magnitude) / 32768.0).astype(np.float32)
