"""Claims about decoding: what a DICOM object means is kept, in every transfer syntax; what is broken is refused by name."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from appliance.reading import xray
from appliance.reading.decode import DecodeError, Limits, decode, modality_of
from appliance.reading.prepared import Header, Picture
from appliance.records import Modality
from tests.simulated_models import dicom, film, written


def sample(name: str) -> Path:
    path = get_testdata_file(name)
    assert path, f"{name} is not in pydicom-data"
    return Path(path)


def picture(source) -> Picture:
    decoded = decode(source)
    assert isinstance(decoded, Picture)
    return decoded


def refusal(source, hint: str = "", **limits) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(source, hint, limits=Limits(**limits))
    assert caught.value.remedy
    assert caught.value.message
    return caught.value


def shown_by_pydicom(dataset) -> np.ndarray:
    """The picture by pydicom's own modality and VOI steps, 0…1, MONOCHROME1 inverted."""
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(float)
    low, high = values.min(), values.max()
    values = (values - low) / (high - low)
    return 1 - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def shown_by_us(decoded: Picture) -> np.ndarray:
    return xray.displayed(decoded, decoded.pixels[0].astype(np.float32))


def agrees_after_stretch(ours: np.ndarray, theirs: np.ndarray, within: float = 0.002) -> None:
    ours = (ours - ours.min()) / (ours.max() - ours.min())
    assert np.abs(ours - theirs).max() <= within


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG3_UNCR.dcm"])
def test_a_lossless_jpeg_2000_film_has_the_pixels_of_the_uncompressed_one(name):
    plain, packed = picture(sample(name)), picture(sample(name.replace("UNCR", "J2KR")))
    np.testing.assert_array_equal(plain.pixels, packed.pixels)
    assert (plain.invert, plain.window) == (packed.invert, packed.window)
    assert plain.invert


@pytest.fixture(scope="module")
def chest_film() -> pydicom.Dataset:
    return pydicom.dcmread(sample("RG1_UNCR.dcm"))


@pytest.mark.parametrize(
    "syntax",
    [
        *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
        *("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.70"),
    ],
)
def test_a_film_decodes_alike_from_every_transfer_syntax(chest_film, syntax, tmp_path):
    part = np.ascontiguousarray(chest_film.pixel_array[300:520, 400:611])
    data = dicom(
        part,
        PhotometricInterpretation="MONOCHROME1",
        BitsStored=15,
        HighBit=14,
        WindowCenter=[15000, 9],
        WindowWidth=[30000, 9],
    )
    decoded = picture(encoded(data, syntax, tmp_path))
    np.testing.assert_array_equal(decoded.pixels[0], part)
    assert decoded.invert
    assert decoded.window == (15000.0, 30000.0)


HTJ2K = base64.b64decode(
    """
/0//UQApQAAAAAAgAAAAGAAAAAAAAAAAAAAAIAAAABgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QA
FwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAeQAAf+TwAAmv+0FB3QAwAATQAASgEb8Aod0AO4BB3QAwAAVMAAEkAAEgAIAiBDxAQK0AP0KMwD+AGMAwAAV
0AAFVAABKAICIEoQ4PBBP5jGl3cAAPC5ABA9/i23AMgzUIQAwAAW5AABdBAABbBgVhgABAJ8VUFBWggABIRs4UWrOpbYhIye2Z0ADELY7wkAQgghhAAACCH+YAAA
dggAADHrzfsO8rXekQEkhViNgH5QlB+R+mBZw0/CN4fY6OiZvQDAAC9egABerwAAvWRWAqUEKwHRnsgHSR9AH4TAE6oAS4AVIPAEbWS0QbQRvkB0ROYR5BHBC1CD
UINQAwi8YA1rHEaNxtW7X8k9VXo2Kna+uJ6FXos2arSReNrwscf3HeHYBLCsaVTvhe0ChBCCkBDSW/fegiABAAEBSACaypvKm8pDDCJBIIIAUCTTIESSHIRIpsFg
oEWgbdAgqC17RuvlVfVGw9DkaDHuoe9cD1nVXd3eGzzDv4lpvzgfWhN7n74CyEpaGVpZKkdVRiXHZplmmWaZiFhdqyLVmpWqUrJSkIIkjpBEoyCJ83gJo2SfKSr+
yQ2DScXXDaXN0Lx3Pel8eTiu9ffDNB0C7U/7d+40+uXnaOuvfnR0UQP/2Q==
    """
)
"""24 × 32 pixels of 2000 + 30 column + 7 row + (row × column mod 5), losslessly encoded by OpenJPH."""


def test_high_throughput_jpeg_2000_is_lossless():
    row, column = np.mgrid[0:24, 0:32]
    pixels = (2000 + 30 * column + 7 * row + row * column % 5).astype(np.uint16)
    dataset = dicom(pixels)
    dataset.PixelData = pydicom.encaps.encapsulate([HTJ2K])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
    np.testing.assert_array_equal(picture(written(dataset)).pixels[0], pixels)


def encoded(dataset: Dataset, syntax: str, folder: Path) -> bytes:
    uid = pydicom.uid.UID(syntax)
    if syntax in {"1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"}:
        dataset.compress(uid, encoding_plugin="pylibjpeg" if syntax.endswith("2.5") else "pyjpegls")
    elif syntax == "1.2.840.10008.1.2.4.70":
        return transcoded_by_gdcm(dataset, folder)
    elif syntax == "1.2.840.10008.1.2.2":
        dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = uid
    else:
        dataset.file_meta.TransferSyntaxUID = uid
    return written(dataset)


def transcoded_by_gdcm(dataset: Dataset, folder: Path) -> bytes:
    import gdcm

    source, target = folder / "plain.dcm", folder / "jpeg.dcm"
    source.write_bytes(written(dataset))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target.read_bytes()


def test_uncompressed_pixels_are_a_view_of_the_file_not_a_copy():
    data = written(dicom(film()))
    pixels = picture(data).pixels
    assert not pixels.flags.owndata
    assert not pixels.flags.writeable
    assert np.shares_memory(pixels, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG3_UNCR.dcm", "vlut_04.dcm", "mlut_18.dcm", "CT_small.dcm"])
def test_a_picture_is_shown_as_pydicom_shows_it(name):
    path = sample(name)
    agrees_after_stretch(shown_by_us(picture(path)), shown_by_pydicom(pydicom.dcmread(path)))


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 1800, "WindowWidth": 900},
        {"WindowCenter": 1800, "WindowWidth": 900, "PhotometricInterpretation": "MONOCHROME1"},
        {"WindowCenter": [1800, 100], "WindowWidth": [900, 5]},
        {"WindowCenter": 700, "WindowWidth": 900, "RescaleSlope": 0.5, "RescaleIntercept": -100},
        {"WindowCenter": 1800, "WindowWidth": 900, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 1800, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
        {
            "WindowCenter": -800,
            "WindowWidth": 900,
            "RescaleSlope": 1,
            "RescaleIntercept": -2500,
            "VOILUTFunction": "SIGMOID",
        },
    ],
)
def test_windows_functions_and_rescale_are_pydicoms(elements):
    dataset = dicom(film(), BitsStored=12, HighBit=11, **elements)
    agrees_after_stretch(shown_by_us(picture(written(dataset))), shown_by_pydicom(dataset))


def test_a_falling_rescale_shows_high_stored_values_dark():
    falling = {"RescaleSlope": -1, "RescaleIntercept": 4095, "WindowCenter": 2000, "WindowWidth": 4000}
    seen = shown_by_us(picture(written(dicom(film(), BitsStored=12, HighBit=11, **falling))))
    rescaled = 4095.0 - film()
    np.testing.assert_allclose(seen, ((rescaled - 1999.5) / 3999 + 0.5).clip(0, 1), atol=1e-5)


@pytest.mark.parametrize("slope", [1, 2])
def test_a_voi_lut_goes_before_the_window_and_follows_the_rescale(slope):
    item = Dataset()
    first = 500 * slope - 100
    item.LUTDescriptor = [2000, first, 16]
    item.LUTData = [round(65535 * (i / 1999) ** 2) for i in range(2000)]
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    dataset = dicom(
        film(),
        BitsStored=12,
        HighBit=11,
        RescaleSlope=slope,
        RescaleIntercept=-100,
        WindowCenter=5,
        WindowWidth=5,
        VOILUTSequence=[item],
    )
    decoded = picture(written(dataset))
    assert decoded.lut is not None
    agrees_after_stretch(shown_by_us(decoded), shown_by_pydicom(dataset))


def test_signed_pixels_keep_their_sign_within_the_bits_stored():
    values = (film().astype(np.int16) - 2000).astype(np.int16)
    np.testing.assert_array_equal(
        picture(written(dicom(values, BitsStored=12, HighBit=11))).pixels[0], values.clip(-2048, 2047)
    )
    with_overlay_bits = (values.view(np.uint16) & 0x0FFF) | 0x5000
    dataset = dicom(with_overlay_bits, BitsStored=12, HighBit=11, PixelRepresentation=1)
    np.testing.assert_array_equal(picture(written(dataset)).pixels[0], values)


def test_bits_above_those_stored_are_not_grey():
    dirty = film() | 0xA000
    np.testing.assert_array_equal(picture(written(dicom(dirty, BitsStored=12, HighBit=11))).pixels[0], film())
    shifted = (film() << 4) | 0x0003
    np.testing.assert_array_equal(picture(written(dicom(shifted, BitsStored=12, HighBit=15))).pixels[0], film())


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("US1_UNCR.dcm", "US1_J2KR.dcm"),
        ("OBXXXX1A.dcm", "OBXXXX1A_rle.dcm"),
        ("OBXXXX1A_2frame.dcm", "OBXXXX1A_expb_2frame.dcm"),
        ("gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"),
    ],
)
def test_ultrasound_in_rgb_palette_and_ybr_comes_out_as_the_same_rgb(name, other):
    one, two = picture(sample(name)), picture(sample(other))
    assert one.pixels.dtype == np.uint8
    assert one.pixels.shape[-1] == 3
    assert one.pixels.max() > 100
    np.testing.assert_array_equal(one.pixels, two.pixels)


COLOUR = """
SC_ybr_full_422_uncompressed.dcm SC_ybr_full_uncompressed.dcm SC_rgb_dcmtk_+eb+cy+s2.dcm SC_rgb_rle_2frame.dcm ExplVR_BigEnd.dcm
SC_rgb_jpeg_app14_dcmd.dcm SC_jpeg_no_color_transform.dcm examples_ybr_color.dcm color-pl.dcm SC_rgb_expb_2frame.dcm
SC_rgb_jls_lossy_line.dcm
"""


@pytest.mark.parametrize("name", COLOUR.split())
def test_colour_is_that_of_pydicom(name):
    theirs = pydicom.pixels.pixel_array(sample(name))
    ours = picture(sample(name)).pixels
    assert np.abs(ours.astype(int) - theirs.reshape(ours.shape)).max() <= 1


def test_a_file_that_says_explicit_and_is_implicit_is_believed_by_its_pixels():
    assert picture(sample("SC_rgb_jpeg.dcm")).pixels.shape == (1, 256, 256, 3)


def test_a_long_cine_is_thinned_evenly_and_keeps_its_pace():
    whole = pydicom.dcmread(sample("color3d_jpeg_baseline.dcm"))
    decoded = picture(sample("color3d_jpeg_baseline.dcm"))
    assert len(decoded.pixels) == 60
    assert decoded.header.frames == 120
    assert decoded.frame_time_ms == pytest.approx(2 * float(whole.FrameTime))
    frame = pydicom.pixels.pixel_array(sample("color3d_jpeg_baseline.dcm"), index=118)
    np.testing.assert_allclose(decoded.pixels[59].astype(int), frame, atol=1)


def test_frames_of_an_uncompressed_cine_are_told_apart():
    frames = np.stack([film(seed=i) for i in range(7)])
    decoded = decode(written(dicom(frames, FrameTime=40)), limits=Limits(frames=3))
    np.testing.assert_array_equal(decoded.pixels, frames[::3])
    assert decoded.frame_time_ms == 120.0


@pytest.mark.parametrize(
    ("elements", "age"),
    [
        ({"PatientAge": "064Y"}, 64.0),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "003W"}, 21 / 365.25),
        ({"PatientAge": "010D"}, 10 / 365.25),
        ({"PatientAge": "", "PatientBirthDate": "20200301", "StudyDate": "20230301"}, 3.0),
        ({"PatientBirthDate": "20200301", "AcquisitionDate": "20210301"}, 1.0),
        ({"PatientAge": "old", "PatientBirthDate": "20200301"}, None),
        ({"PatientBirthDate": "20240301", "StudyDate": "20230301"}, None),
        ({"PatientBirthDate": "18000101", "StudyDate": "20230301"}, None),
        ({}, None),
    ],
)
def test_the_age_comes_from_the_age_or_from_two_dates(elements, age):
    found = picture(written(dicom(film(), **elements))).header.age_years
    assert found == (None if age is None else pytest.approx(age, abs=0.005))


def test_broken_dicom_is_refused_by_name():
    flat = film()
    assert refusal(b"").code == "empty"
    assert refusal(b"no picture at all").code == "unknown-format"
    assert refusal(b"no picture at all", "x.dcm").code == "not-dicom"
    assert refusal(written(dicom(None))).code == "not-an-image"
    assert refusal(written(dicom(flat, PixelData=None))).code == "no-pixels"
    assert refusal(written(dicom(flat))[:-9]).code == "truncated"
    assert refusal(written(dicom(flat, Rows=0))).code == "no-pixels"
    assert refusal(written(dicom(flat, PhotometricInterpretation="HSV"))).code == "unsupported-pixels"
    assert refusal(written(dicom(flat, BitsStored=20))).code == "damaged"


def test_an_unknown_transfer_syntax_is_named():
    dataset = dicom(film())
    dataset.compress(pydicom.uid.RLELossless)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG4HP41
    caught = refusal(written(dataset))
    assert caught.code == "transfer-syntax"
    assert "MPEG-4" in caught.message


def test_compressed_pixels_under_an_uncompressed_name_are_refused():
    dataset = dicom(film())
    dataset.compress(pydicom.uid.RLELossless)
    data = written(dataset).replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0")
    assert refusal(data).code == "damaged"


def test_a_bomb_is_refused_before_memory_is_asked_for():
    dataset = dicom(film(8, 8), Rows=65000, Columns=65000)
    assert refusal(written(dataset)).code == "too-large"
    dataset = dicom(film(8, 8), NumberOfFrames=2**31 - 1)
    assert refusal(written(dataset), frames=2**31).code == "too-large"
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
        + chunk(b"IEND", b"")
    )
    assert refusal(png).code == "too-large"
    assert refusal(written(dicom(film())), file_bytes=100).code == "too-large"


def test_a_codestream_larger_than_its_header_never_reaches_a_codec():
    dataset = pydicom.dcmread(sample("US1_J2KR.dcm"))
    at = dataset.PixelData.index(b"\xff\x4f\xff\x51") + 8
    dataset.PixelData = dataset.PixelData[:at] + struct.pack(">II", 60000, 60000) + dataset.PixelData[at + 8 :]
    caught = refusal(written(dataset))
    assert caught.code == "damaged"
    assert "60000" in caught.message


def test_a_deflated_bomb_inflates_no_further_than_the_limit():
    dataset = dicom(np.zeros((2000, 2000), np.uint16))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data = written(dataset)
    assert len(data) < 100_000
    assert refusal(data, decoded_bytes=1 << 20).code == "too-large"


def test_documents_and_curves_are_not_pictures():
    assert refusal(sample("reportsi.dcm")).code == "not-an-image"
    assert refusal(sample("waveform_ecg.dcm")).code == "not-a-sound"
    assert refusal(sample("liver_1frame.dcm")).code == "unsupported-pixels"


def test_a_folder_or_missing_file_is_unreadable(tmp_path):
    assert refusal(tmp_path).code == "unreadable"
    assert refusal(tmp_path / "gone.dcm").code == "unreadable"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def as_file(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def test_a_png_keeps_its_sixteen_bits_and_a_jpeg_its_grey():
    np.testing.assert_array_equal(picture(as_file(".png", film())).pixels[0], film())
    eight = (film() >> 4).astype(np.uint8)
    decoded = picture(as_file(".jpg", cv2.cvtColor(eight, cv2.COLOR_GRAY2BGR)))
    assert decoded.pixels.shape == (1, 60, 50)
    assert np.abs(decoded.pixels[0].astype(int) - eight).mean() < 3


def test_colour_pictures_come_out_as_rgb():
    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 2] = 200
    for suffix in (".png", ".jpg"):
        pixel = picture(as_file(suffix, red)).pixels[0, 10, 10]
        assert pixel[0] > 190
        assert pixel[2] < 20


def test_an_orientation_tag_does_not_turn_the_film():
    data = as_file(".jpg", (film(40, 20) >> 4).astype(np.uint8))
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert picture(turned).pixels.shape == (1, 40, 20)


@pytest.mark.parametrize(
    ("header", "modality"),
    [
        (Header(media_type="application/dicom", dicom_modality="DX"), Modality.CHEST_XRAY),
        (Header(media_type="application/dicom", dicom_modality="CR", body_part="HAND"), Modality.CHEST_XRAY),
        (Header(media_type="application/dicom", dicom_modality="US"), Modality.LUNG_ULTRASOUND),
        (Header(media_type="audio/dicom", body_part="HEART"), Modality.HEART_SOUND),
        (Header(media_type="audio/dicom", description="Breath sounds, right base"), Modality.LUNG_SOUND),
        (Header(media_type="audio/wav"), Modality.OTHER),
        (Header(media_type="image/png"), Modality.OTHER),
        (Header(media_type="application/dicom", dicom_modality="MR"), Modality.OTHER),
    ],
)
def test_a_file_is_taken_for_what_it_says_it_is(header, modality):
    assert modality_of(header) is modality
