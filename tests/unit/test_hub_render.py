"""Claims about the pictures that the hub makes of DICOM originals."""

from __future__ import annotations

import hashlib
import json

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from hub.render import MAXIMUM_SIDE, RenderError, rendered


def dicom(path, pixels, photometric="MONOCHROME2", **fields):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def ramp():
    return np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (32, 1))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_monochrome1_is_inverted_so_that_air_is_dark_in_both(photometric, ramp, tmp_path):
    pixels = ramp if photometric == "MONOCHROME2" else 4095 - ramp
    rendered(dicom(tmp_path / "a.dcm", pixels, photometric), tmp_path / "out")
    image = cv2.imread(str(tmp_path / "out" / "image.png"), cv2.IMREAD_GRAYSCALE)
    assert image[0, 0] < 5
    assert image[0, -1] > 250
    assert np.all(np.diff(image[0].astype(int)) >= 0)


def test_the_files_window_is_the_default_and_all_bits_stay(ramp, tmp_path):
    path = dicom(tmp_path / "a.dcm", ramp, WindowCenter="1024", WindowWidth="512")
    picture = rendered(path, tmp_path / "out")
    assert picture.grey
    assert picture.centre == pytest.approx(1024 / 4095, abs=1e-4)
    assert picture.width == pytest.approx(512 / 4095, abs=1e-4)
    pixels = np.frombuffer((tmp_path / "out" / "pixels.bin").read_bytes(), "<u2").reshape(32, 64)
    np.testing.assert_allclose(pixels[0] / 65535 * 4095, ramp[0], atol=0.1)


def test_a_large_picture_is_made_smaller_by_area(tmp_path):
    pixels = np.tile(np.array([0, 4095], np.uint16), (8, 2 * MAXIMUM_SIDE))
    picture = rendered(dicom(tmp_path / "a.dcm", pixels), tmp_path / "out")
    assert picture.columns == MAXIMUM_SIDE
    shown = np.frombuffer((tmp_path / "out" / "pixels.bin").read_bytes(), "<u2")
    assert abs(int(shown.mean()) - 32768) < 400
    assert shown.std() < 300  # a stripe pattern finer than the picture becomes grey, not moiré


def test_a_hostile_file_costs_its_own_picture_and_says_why(ramp, tmp_path):
    bomb = dicom(tmp_path / "bomb.dcm", ramp, Rows=65535, Columns=65535)
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(dicom(tmp_path / "a.dcm", ramp).read_bytes()[:700])
    noise = tmp_path / "noise.dcm"
    noise.write_bytes(b"\0" * 128 + b"DICM" + hashlib.sha256(b"x").digest() * 100)
    for path, word in ((bomb, "pixels"), (cut, ""), (noise, "")):
        with pytest.raises(RenderError) as caught:
            rendered(path, tmp_path / path.stem)
        assert word in str(caught.value)
        assert not (tmp_path / path.stem).exists()
    assert not list(tmp_path.glob("render-*"))


def test_a_picture_is_made_once(ramp, tmp_path):
    path = dicom(tmp_path / "a.dcm", ramp)
    first = rendered(path, tmp_path / "out")
    path.unlink()
    assert rendered(path, tmp_path / "out") == first
    assert json.loads((tmp_path / "out" / "image.json").read_text(encoding="utf-8"))["columns"] == 64
