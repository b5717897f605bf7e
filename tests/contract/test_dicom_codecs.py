"""Every transfer syntax that the door accepts, sent for real: kept byte for byte, and decoded right by the reading side."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from appliance.capture.dicom import TRANSFER_SYNTAXES
from appliance.reading.decode import decode
from tests.contract.test_dicom_door import data_set_bytes, store_raw
from tests.dicom_box import Box, box
from tests.simulated_models import dicom, film, written
from tests.unit.test_decode import HTJ2K, encoded, sample

LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"}
CINE = "1.2.840.10008.5.1.4.1.1.3.1"
REAL = (
    *("RG3_UNCI.dcm", "US1_UNCI.dcm", "SC_rgb_2frame.dcm", "OBXXXX1A.dcm", "SC_ybr_full_uncompressed.dcm"),
    *("SC_ybr_full_422_uncompressed.dcm", "gdcm-US-ALOKA-16.dcm", "OBXXXX1A_expb_2frame.dcm"),
    *("ExplVR_BigEnd.dcm", "examples_ybr_color.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm"),
    *("SC_rgb_small_odd_jpeg.dcm", "JPGExtended.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "SC_rgb_jpeg_gdcm.dcm"),
    *("JPEGLSNearLossless_08.dcm", "SC_rgb_jls_lossy_line.dcm", "US1_J2KR.dcm", "US1_J2KI.dcm", "RG3_J2KI.dcm"),
    *("JPEG2000.dcm", "OBXXXX1A_rle_2frame.dcm", "SC_rgb_rle_2frame.dcm", "color-pl.dcm"),
)
MADE = tuple(f"1.2.840.10008.1.2{end}" for end in ("", ".1.99", ".4.57", ".4.80", ".4.201", ".4.202", ".4.203"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Box:
    with box(tmp_path_factory.mktemp("codecs")) as found:
        yield found


def through(opened: Box, ds: Dataset) -> bytes:
    """What is in the vault after ``ds`` was sent, with elements in it that nobody knows."""
    ds.SpecificCharacterSet = "NOT_REAL"
    ds.add_new(0x00091001, "UN", bytes(range(256)))
    ds.private_block(0x0029, "ODD VENDOR", create=True).add_new(0x01, "LO", "kept")
    ds.add_new(0x00091002, "UN", b"\xff\xfe wrong ")
    ds.SOPInstanceUID = pydicom.uid.generate_uid()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(file, ds, enforce_file_format=True)
    raw = data_set_bytes(file.getvalue())
    syntax = ds.file_meta.TransferSyntaxUID
    answer = store_raw(opened.door, raw, ds.SOPClassUID, ds.SOPInstanceUID, syntax)
    assert (answer.status, answer.comment) == (0x0000, "")
    [entry] = [one for one in opened.store.captures.latest() if one.capture.instance_uid == ds.SOPInstanceUID]
    kept = opened.store.vault.read(entry.capture.sha256)
    assert data_set_bytes(kept) == raw
    assert entry.capture.transfer_syntax_uid == syntax
    return kept


def test_no_transfer_syntax_is_left_out():
    sent = {str(pydicom.dcmread(sample(name), stop_before_pixels=True).file_meta.TransferSyntaxUID) for name in REAL}
    assert sent | set(MADE) == set(TRANSFER_SYNTAXES)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore")
def test_a_real_object_is_kept_as_it_came_and_shows_the_pixels_it_had(opened, name):
    path = sample(name)
    before = decode(path)
    decoded = decode(through(opened, pydicom.dcmread(path)))
    np.testing.assert_array_equal(decoded.pixels, before.pixels)
    ds = pydicom.dcmread(path)
    photometric = ds.PhotometricInterpretation
    assert decoded.invert == (photometric == "MONOCHROME1")
    theirs = pydicom.pixels.pixel_array(path, index=0).astype(int)
    if photometric == "PALETTE COLOR":
        theirs = pydicom.pixels.apply_color_lut(theirs, ds).astype(int)
        theirs = theirs >> 8 if theirs.max() > 255 else theirs
    assert decoded.pixels[0].shape == theirs.shape
    within = 1 if ds.file_meta.TransferSyntaxUID in LOSSY or photometric.startswith("YBR") else 0
    assert np.abs(decoded.pixels[0].astype(int) - theirs).max() <= within


@pytest.mark.parametrize("syntax", MADE)
@pytest.mark.filterwarnings("ignore")
def test_what_no_sample_has_is_made_sent_and_read_without_loss(opened, syntax, tmp_path):
    row, column = np.mgrid[0:24, 0:32]
    pixels = (2000 + 30 * column + 7 * row + row * column % 5).astype(np.uint16)
    ds = dicom(pixels)
    if ".4.20" in syntax:
        ds.PixelData = encapsulate([HTJ2K])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.file_meta.TransferSyntaxUID = syntax
        content = written(ds)
    elif syntax.endswith(".57"):
        content = by_gdcm(ds, gdcm.TransferSyntax.JPEGLosslessProcess14, tmp_path)
    else:
        content = encoded(ds, syntax, tmp_path)
    made = pydicom.dcmread(io.BytesIO(content))
    assert made.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(decode(through(opened, made)).pixels[0], pixels)


def by_gdcm(ds: Dataset, syntax: int, folder: Path) -> bytes:
    source, target = folder / "plain.dcm", folder / "made.dcm"
    source.write_bytes(written(ds))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target.read_bytes()


@pytest.mark.parametrize("per_frame", [1, 3])
@pytest.mark.parametrize("table", [True, False], ids=["offset table", "no offset table"])
@pytest.mark.filterwarnings("ignore")
def test_a_cine_of_many_frames_in_many_fragments_keeps_every_frame(opened, per_frame, table):
    ds = pydicom.dcmread(sample("examples_ybr_color.dcm"))
    whole = decode(sample("examples_ybr_color.dcm"))
    frames = list(generate_frames(ds.PixelData, number_of_frames=30))
    ds.PixelData = encapsulate(frames, fragments_per_frame=per_frame, has_bot=table)
    ds["PixelData"].is_undefined_length = True
    assert ds.SOPClassUID == CINE
    decoded = decode(through(opened, ds))
    assert len(decoded.pixels) == len(whole.pixels) == 30
    np.testing.assert_array_equal(decoded.pixels, whole.pixels)


def test_monochrome1_is_inverted_for_the_model_and_nowhere_else(opened):
    ds = dicom(film(), PhotometricInterpretation="MONOCHROME1")
    decoded = decode(through(opened, ds))
    assert decoded.invert
    np.testing.assert_array_equal(decoded.pixels[0], film())
