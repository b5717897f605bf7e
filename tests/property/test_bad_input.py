"""Claims about hostile and broken bytes: decoding ends in a picture, a sound or a refusal, and never in anything else."""

from __future__ import annotations

import io
import struct
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from appliance.reading.decode import DecodeError, Limits, decode
from appliance.reading.prepared import Picture, Sound
from tests.simulated_models import dicom, film, written

SMALL = Limits(file_bytes=1 << 24, decoded_bytes=1 << 24, frame_pixels=1 << 22)
SEEDS = ("native", "rle", "jpeg-ls", "jpeg-2000", "jpeg", "jpeg-lossless", "palette", "png", "jpg", "wav", "flac")


@cache
def seed(name: str) -> bytes:
    files = {
        "rle": "MR_small_RLE.dcm",
        "jpeg-ls": "MR_small_jpeg_ls_lossless.dcm",
        "jpeg-2000": "MR_small_jp2klossless.dcm",
        "jpeg": "SC_rgb_small_odd_jpeg.dcm",
        "jpeg-lossless": "SC_rgb_jpeg_gdcm.dcm",
        "palette": "OT-PAL-8-face.dcm",
    }
    if name in files:
        return Path(get_testdata_file(files[name])).read_bytes()
    if name == "native":
        return written(dicom(film(), WindowCenter=5, WindowWidth=9))
    if name in {"png", "jpg"}:
        return cv2.imencode(f".{name}", (film() >> 4).astype(np.uint8))[1].tobytes()
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(4000) / 7), 4000, format=name.upper())
    return buffer.getvalue()


def ends_well(data: bytes, hint: str = "") -> Picture | Sound | DecodeError:
    try:
        decoded = decode(data, hint, limits=SMALL)
    except DecodeError as error:
        if not (error.code and error.message and error.remedy):
            raise AssertionError("a refusal without words") from error
        return error
    if isinstance(decoded, Picture):
        assert decoded.pixels.ndim in {3, 4}
        assert decoded.pixels.size > 0
    return decoded


@pytest.mark.parametrize("name", SEEDS)
def test_every_seed_decodes_whole(name):
    assert not isinstance(ends_well(seed(name)), DecodeError)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(SEEDS), st.floats(0, 0.999))
def test_a_file_cut_anywhere_before_its_pixels_end_is_refused_with_its_cause(name, share):
    data = seed(name)
    outcome = ends_well(data[: int(len(data) * share)], "film.dcm")
    # What follows the pixels (padding, a trailing chunk) may be missing without harm to the picture.
    assert isinstance(outcome, DecodeError) or share > 0.9


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_flipped_bytes_never_escape_as_anything_but_a_refusal(name, data):
    original = bytearray(seed(name))
    for _ in range(data.draw(st.integers(1, 6))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    ends_well(bytes(original), "film.dcm")


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\0" * 128 + b"DICM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WAVE", b"fLaC"]),
)
def test_random_bytes_behind_any_magic_are_refused(noise, magic):
    assert isinstance(ends_well(magic + noise, "x.dcm"), DecodeError)


NUMBERS = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(NUMBERS), st.integers(0, 65535), min_size=1))
def test_any_numbers_in_the_image_header_end_well(numbers):
    dataset = dicom(film())
    for keyword, value in numbers.items():
        setattr(dataset, keyword, value)
    ends_well(written(dataset))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "FrameTime"]),
    st.sampled_from(["nan", "-inf", "1e400", "", "abc", "0", "-5", "1\\x"]),
)
def test_nonsense_in_the_display_elements_does_no_harm(keyword, value):
    dataset = dicom(film())
    with pydicom.config.disable_value_validation():
        dataset.add(pydicom.DataElement(pydicom.datadict.tag_for_keyword(keyword), "LO", value))
        data = written(dataset)
    assert isinstance(ends_well(data), Picture)


def test_sequences_nested_a_thousand_deep_are_refused():
    item = b""
    for _ in range(3000):
        item = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + item
    data = written(dicom(film()))
    assert isinstance(ends_well(data[:400] + item), DecodeError)


def test_a_run_beyond_the_frame_that_makes_the_rle_codec_panic_is_refused():
    segment = b"\x81\x05"  # 128 copies of 5 into a segment of 64 pixels
    frame = struct.pack("<16I", 2, 64, 66, *[0] * 13) + segment * 2
    dataset = dicom(np.zeros((8, 8), np.uint16))
    dataset.PixelData = pydicom.encaps.encapsulate([frame])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    outcome = ends_well(written(dataset))
    assert isinstance(outcome, DecodeError)
    assert outcome.code == "damaged"


def test_an_element_whose_length_does_not_fit_its_kind_is_refused():
    data = written(dicom(film()))
    at = data.index(b"\x28\x00\x11\x00US") + 6
    outcome = ends_well(data[:at] + b"\x03\x00" + data[at + 2 : at + 4] + b"\0" + data[at + 4 :])
    assert isinstance(outcome, DecodeError)
