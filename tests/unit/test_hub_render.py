"""Claims about the pictures that the hub makes of DICOM originals."""

from __future__ import annotations

import hashlib
import json

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from hub.render import AT_ONCE, MAXIMUM_SIDE, RenderError, frame, rendered


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
    assert json.loads((tmp_path / "out" / "picture.json").read_text(encoding="utf-8"))["columns"] == 64


def region(units=3):
    made = Dataset()
    made.RegionSpatialFormat, made.PhysicalUnitsXDirection, made.PhysicalUnitsYDirection = 1, units, units
    made.PhysicalDeltaX, made.PhysicalDeltaY = 0.05, 0.04
    return made


@pytest.mark.parametrize(
    ("fields", "spacing", "where"),
    [
        ({"PixelSpacing": ["0.2", "0.3"]}, (0.2, 0.3), "patient"),
        ({"ImagerPixelSpacing": ["0.2", "0.2"], "Modality": "DX"}, (0.2, 0.2), "detector"),
        ({"ImagerPixelSpacing": ["0.2", "0.2"], "PixelSpacing": ["0.2", "0.2"]}, (0.2, 0.2), "detector"),
        ({"ImagerPixelSpacing": ["0.2", "0.2"], "PixelSpacing": ["0.1", "0.1"]}, (0.1, 0.1), "patient"),
        ({"PixelSpacing": ["0.2", "0.2"], "Modality": "CR"}, (0.2, 0.2), "detector"),
        ({"SequenceOfUltrasoundRegions": [region()]}, (0.4, 0.5), "patient"),
        ({"SequenceOfUltrasoundRegions": [region(units=4)]}, None, ""),
        ({"PixelSpacing": ["0", "0"]}, None, "patient"),
        ({}, None, ""),
    ],
)
def test_a_length_has_the_files_scale_and_says_where_it_holds(fields, spacing, where, ramp, tmp_path):
    picture = rendered(dicom(tmp_path / "a.dcm", ramp, **fields), tmp_path / "out")
    assert (picture.spacing == pytest.approx(spacing)) if spacing else (picture.spacing is None)
    assert picture.spacing_at == where


def test_the_scale_follows_when_the_picture_is_made_smaller(tmp_path):
    pixels = np.zeros((8, 2 * MAXIMUM_SIDE), np.uint16)
    picture = rendered(dicom(tmp_path / "a.dcm", pixels, PixelSpacing=["0.1", "0.1"]), tmp_path / "out")
    assert picture.spacing == pytest.approx((0.2, 0.2))


def clip(path, frames, **fields):
    pixels = np.zeros((frames, 16, 16), np.uint16)
    pixels[np.arange(frames), :, 0] = np.arange(frames)[:, None] * (4095 // frames)
    pixels[:, 0, -1] = 4095
    stacked = dicom(path, pixels.reshape(frames * 16, 16), **fields)
    dataset = pydicom.dcmread(stacked)
    dataset.Rows, dataset.NumberOfFrames = 16, frames
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_a_clips_frames_are_decoded_as_they_are_asked_for_and_each_is_its_own(tmp_path):
    path = clip(tmp_path / "a.dcm", AT_ONCE + 2, FrameTime="40")
    folder = tmp_path / "out"
    picture = rendered(path, folder)
    assert picture.frames == AT_ONCE + 2
    assert picture.times_ms[:3] == [0, 40, 80]
    first = cv2.imread(str(frame(path, folder, 1)), cv2.IMREAD_GRAYSCALE)
    assert not (folder / f"frame-{AT_ONCE}.jpg").exists()
    last = cv2.imread(str(frame(path, folder, AT_ONCE + 1)), cv2.IMREAD_GRAYSCALE)
    assert last[8, 0] > first[8, 0] + 100
    with pytest.raises(RenderError, match="frames"):
        frame(path, folder, AT_ONCE + 2)


@pytest.mark.parametrize(
    ("fields", "times", "said"),
    [
        ({"FrameTimeVector": ["0", "10", "30"]}, [0, 10, 40], True),
        ({"CineRate": "20"}, [0, 50, 100], True),
        ({}, [0, 40, 80], False),
    ],
)
def test_frame_times_are_the_files_or_said_to_be_assumed(fields, times, said, tmp_path):
    picture = rendered(clip(tmp_path / "a.dcm", 3, **fields), tmp_path / "out")
    assert (picture.times_ms, picture.times_said) == (times, said)
