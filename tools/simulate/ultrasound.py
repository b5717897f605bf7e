"""Made-up lung ultrasound: a convex probe over an intercostal space, as a DICOM US Multi-frame cine.

What this module keeps true: a cine is a function of its ``Scene``; nothing in it is of a patient; ``Truth`` says what was put
in, so that a test can ask for it back. These pictures obey the physics that makes the signs (they are no evidence that a
model finds disease):

- Echoes are speckle: complex Gaussian scatterers under a point spread function, their envelope (Rayleigh) log-compressed.
- The pleura reflects nearly all sound, so what lies below is echo of the way above: A-lines at multiples of its depth, and
  a faint copy of the chest wall (Lichtenstein 2008, "Relevance of lung ultrasound": the A-line sign).
- B-lines are ring-down: laser-like, from the pleura to the edge of the picture without fading, erasing A-lines, moving with
  the lung.
- The lung slides with the breath, the chest wall does not; ribs at the sides are bright arcs with shadows (the bat sign).

``python -m tools.simulate.ultrasound OUT.dcm [--b-lines N] [--frames N] [--seed N] [--still-lung] [--png FILE]``
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

RATE_HZ = 25.0
ROWS, COLUMNS = 480, 640
MM_PER_PIXEL = 0.35
_PROBE_RADIUS_MM = 60.0
_HALF_ANGLE = np.deg2rad(32.0)
_DEPTH_MM = 150.0
_SAMPLES, _LINES = 600, 180
_RANGE_DB = 60.0
_TOP = 34  # rows above the probe's face
_US_MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.3.1"


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What is under the probe."""

    frames: int = 30
    b_lines: int = 0
    sliding: bool = True
    pleura_mm: float = 26.0
    breaths_per_minute: float = 16.0
    seed: int = 0


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What was put in. Rows of the pleura and of the A-lines on the middle column; B-line angles by frame in degrees."""

    pleura_row: float
    a_line_rows: tuple[float, ...]
    b_line_degrees: tuple[tuple[float, ...], ...]
    slide_mm: tuple[float, ...]


def cine(scene: Scene) -> tuple[Bytes, Truth]:
    """The frames, uint8 ``[frames, 480, 640]``, and what is in them."""
    return _Phantom(scene).frames()


class _Phantom:
    """The polar world: rows are depth below the probe's face, columns are beams."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.random = np.random.default_rng(scene.seed)
        self.depth: Floats = np.linspace(0, _DEPTH_MM, _SAMPLES, dtype=np.float32)[:, None]
        self.angle: Floats = np.linspace(-_HALF_ANGLE, _HALF_ANGLE, _LINES, dtype=np.float32)[None, :]
        self.pleura = self._beam_to_plane(scene.pleura_mm)
        self.wall_scatterers = self._scatterers(_LINES)
        self.lung_scatterers = self._scatterers(4 * _LINES)
        self.wall = self._chest_wall()
        self.rib = self._ribs()
        self.b_line_mm = self._place_b_lines()
        self.to_screen = _scan_conversion()

    def _beam_to_plane(self, below_face_mm: float) -> Floats:
        """Depth along each beam of a plane that is parallel to the face's middle: [1, lines]."""
        return np.asarray((_PROBE_RADIUS_MM + below_face_mm) / np.cos(self.angle) - _PROBE_RADIUS_MM, dtype=np.float32)

    def _lateral(self, depth: Floats) -> Floats:
        """Millimetres sideways of the middle, at a depth along each beam."""
        return (_PROBE_RADIUS_MM + depth) * np.sin(self.angle)

    def _scatterers(self, lines: int) -> npt.NDArray[np.complex64]:
        shape = (_SAMPLES, lines)
        field = self.random.standard_normal(shape) + 1j * self.random.standard_normal(shape)
        return field.astype(np.complex64)

    def _chest_wall(self) -> Floats:
        """Echo strength of skin, fat and muscle, with fasciae; nothing below the pleura."""
        share = self.depth / self.pleura
        strength = 0.35 - 0.12 * np.exp(-(((share - 0.35) / 0.12) ** 2))
        lateral = self._lateral(self.pleura)
        for place, height in ((0.06, 2.4), (0.22, 0.9), (0.48, 1.1), (0.72, 1.3), (0.86, 0.8)):
            phase, wave = self.random.uniform(0, 6.28), self.random.uniform(0.008, 0.02)
            line = place + wave * np.sin(lateral / self.random.uniform(9, 16) + phase)
            strength = strength + height * np.exp(-(((share - line) / 0.012) ** 2))
        return np.asarray(strength * (share < 1.0), dtype=np.float32)

    def _ribs(self) -> Floats:
        """How much sound gets past the ribs at each beam and depth (1: all), bright surfaces are added in ``_echo``."""
        self.rib_echo = np.zeros((_SAMPLES, _LINES), dtype=np.float32)
        passes = np.ones((_SAMPLES, _LINES), dtype=np.float32)
        for side in (-1, 1):
            middle, radius = side * self.random.uniform(33, 37), self.random.uniform(8.5, 10)
            surface = self.scene.pleura_mm - 9 + (self._lateral(self.pleura) - middle) ** 2 / (2 * radius)
            along = self._beam_to_plane(0) + surface / np.cos(self.angle)
            inside = np.abs(self._lateral(self.pleura) - middle) < radius
            below = 0.5 + 0.5 * np.tanh((self.depth - along) / 1.2)
            passes = passes * (1 - 0.985 * below * inside)
            self.rib_echo += 6.0 * np.exp(-(((self.depth - along) / 0.7) ** 2)) * inside
        return np.asarray(passes, dtype=np.float32)

    def _place_b_lines(self) -> list[float]:
        """Where B-lines hang on the pleura in mm, spread over the space between the ribs."""
        count = self.scene.b_lines
        slots = np.linspace(-20, 20, count + 1)
        return [float(self.random.uniform(low + 1.5, high - 1.5)) for low, high in itertools.pairwise(slots)]

    def frames(self) -> tuple[Bytes, Truth]:
        """All frames and the truth."""
        pictures, degrees, slides = [], [], []
        for number in range(self.scene.frames):
            seconds = number / RATE_HZ
            slide = self._slide(seconds)
            where = [self._degrees(place + slide) for place in self.b_line_mm]
            pictures.append(self._picture(self._echo(seconds, slide, where)))
            degrees.append(tuple(where))
            slides.append(slide)
        pleura = self.scene.pleura_mm
        rows = tuple(_TOP + multiple * pleura / MM_PER_PIXEL for multiple in (2, 3, 4) if multiple * pleura < _DEPTH_MM)
        truth = Truth(
            pleura_row=_TOP + pleura / MM_PER_PIXEL,
            a_line_rows=() if self.scene.b_lines > 3 else rows,
            b_line_degrees=tuple(degrees),
            slide_mm=tuple(slides),
        )
        return np.stack(pictures), truth

    def _slide(self, seconds: float) -> float:
        """Lung against chest wall in mm: the breath, and the beat of the heart that a still lung shows too."""
        beat = 0.25 * np.sin(2 * np.pi * 1.2 * seconds)
        breath = 7.0 * np.sin(2 * np.pi * self.scene.breaths_per_minute / 60 * seconds)
        return float(breath + beat if self.scene.sliding else beat)

    def _degrees(self, lateral_mm: float) -> float:
        return float(np.rad2deg(np.arctan2(lateral_mm, _PROBE_RADIUS_MM + self.scene.pleura_mm)))

    def _echo(self, seconds: float, slide: float, b_lines: list[float]) -> npt.NDArray[np.complex64]:
        """Complex echoes before the receiver, [samples, lines]."""
        lines = slide / float(self._lateral(self.pleura)[0, -1]) * _LINES / 2
        lung = _shifted(self.lung_scatterers, _LINES + lines)[:, :_LINES]
        share = self.depth / self.pleura
        grain = 0.75 + 0.25 * cv2.GaussianBlur(np.abs(lung[:1]), (0, 0), 1.5)
        pleura = 13.0 * np.exp(-(((self.depth - self.pleura) / 0.75) ** 2)) * grain
        air = self._reverberations(share, b_lines)
        beneath = (0.16 * np.exp(-(share - 1) / 1.4) + 0.01) * (share > 1)
        haze = np.zeros_like(beneath)
        for number, degree in enumerate(b_lines):
            haze = haze + self._b_line(seconds, number, np.deg2rad(degree))
        tissue = self.wall_scatterers * self.wall + self.wall_scatterers * self.rib_echo
        below = lung * (pleura + beneath + air + haze) + 0.12 * _below(tissue, self.scene.pleura_mm) * (share > 1)
        noise = self.random.standard_normal((_SAMPLES, _LINES)) * 0.006 * (1 + 2 * self.depth / _DEPTH_MM)
        return np.asarray((tissue + below) * self.rib + noise, dtype=np.complex64)

    def _reverberations(self, share: Floats, b_lines: list[float]) -> Floats:
        """A-lines: echoes of the pleura at multiples of its depth, faded, and erased where a B-line hangs.

        Sound goes to and fro only where the pleura faces the probe, so they fade towards the sides.
        """
        facing = np.exp(-((self.angle / np.deg2rad(15)) ** 2))
        lines = np.zeros_like(share)
        for multiple in (2, 3, 4, 5):
            lines = lines + facing * 3.0 * 0.45 ** (multiple - 2) * np.exp(-(((share - multiple) / 0.035) ** 2))
        for degree in b_lines:
            lines = lines * (1 - 0.9 * np.exp(-(((self.angle - np.deg2rad(degree)) / np.deg2rad(2.2)) ** 2)))
        return np.asarray(lines, dtype=np.float32)

    def _b_line(self, seconds: float, number: int, angle: float) -> Floats:
        """Ring-down along one beam: bands of about 1 mm, hardly fading, from the pleura to the edge."""
        width = np.deg2rad(0.8 + 0.35 * (self.depth / _DEPTH_MM))
        beam = np.exp(-(((self.angle - angle) / width) ** 2))
        bands = 0.75 + 0.25 * np.cos(2 * np.pi * self.depth / (1.1 + 0.13 * number) + 3 * seconds)
        below = 0.5 + 0.5 * np.tanh((self.depth - self.pleura) / 1.0)
        return np.asarray(2.6 * beam * bands * below * np.exp(-(self.depth - self.pleura) / 260), dtype=np.float32)

    def _picture(self, echo: npt.NDArray[np.complex64]) -> Bytes:
        """Receive, detect, compress and draw one frame."""
        parts = []
        for part in (echo.real, echo.imag):
            near = cv2.GaussianBlur(np.ascontiguousarray(part), (0, 0), sigmaX=0.8, sigmaY=1.1)
            far = cv2.GaussianBlur(np.ascontiguousarray(part), (0, 0), sigmaX=1.9, sigmaY=1.4)
            mix = self.depth / _DEPTH_MM
            parts.append(near * (1 - mix) + 2.0 * far * mix)
        envelope = np.hypot(parts[0], parts[1])
        decibel = 20 * np.log10(envelope / 4.5 + 1e-6)
        grey = np.clip((decibel + _RANGE_DB) / _RANGE_DB, 0, 1).astype(np.float32) ** 1.25
        picture = cv2.remap(grey, *self.to_screen, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        screen = np.asarray(picture * 235 + 0.5, dtype=np.uint8)
        for centimetre in range(int(_DEPTH_MM // 10) + 1):  # the ruler beside the sector
            row = _TOP + int(centimetre * 10 / MM_PER_PIXEL)
            if row < ROWS:
                screen[row : row + 1, COLUMNS - (14 if centimetre % 5 == 0 else 9) : COLUMNS - 4] = 170
        return screen


def _below(tissue: npt.NDArray[np.complex64], depth_mm: float) -> npt.NDArray[np.complex64]:
    """The chest wall seen once more below the pleura, by sound that went the way twice."""
    samples = round(depth_mm / _DEPTH_MM * _SAMPLES)
    seen = np.zeros_like(tissue)
    seen[samples:] = tissue[:-samples]
    return seen


def _shifted(field: npt.NDArray[np.complex64], lines: float) -> npt.NDArray[np.complex64]:
    """The field moved sideways by a fraction of lines (linear between neighbours), around its end."""
    whole, part = int(np.floor(lines)), float(lines - np.floor(lines))
    first, second = np.roll(field, whole, axis=1), np.roll(field, whole + 1, axis=1)
    mixed = (1 - part) * first + part * second
    return np.asarray(mixed / np.hypot(1 - part, part), dtype=np.complex64)


def _scan_conversion() -> tuple[Floats, Floats]:
    """For each pixel of the screen the beam and the sample that it shows."""
    x = (np.arange(COLUMNS, dtype=np.float32)[None, :] - COLUMNS / 2) * MM_PER_PIXEL
    y = (np.arange(ROWS, dtype=np.float32)[:, None] - _TOP) * MM_PER_PIXEL + _PROBE_RADIUS_MM
    radius, angle = np.hypot(x, y), np.arctan2(x, y)
    beam = (angle / _HALF_ANGLE + 1) / 2 * (_LINES - 1)
    sample = (radius - _PROBE_RADIUS_MM) / _DEPTH_MM * (_SAMPLES - 1)
    return beam.astype(np.float32), sample.astype(np.float32)


def dataset(scene: Scene) -> FileDataset:
    """The cine as an Ultrasound Multi-frame Image (PS3.3 A.7), uncompressed, ready to write or send."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    pixels, _ = cine(scene)
    mark = msgspec.json.encode(scene).decode()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _US_MULTI_FRAME
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance", mark])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID = generate_uid(entropy_srcs=["study", mark])
    made.SeriesInstanceUID = generate_uid(entropy_srcs=["series", mark])
    made.PatientName, made.PatientID = "Simulated^Lung", f"SIM-US-{scene.seed}"
    made.PatientBirthDate, made.PatientSex, made.PatientAge = "19800101", "O", "046Y"
    _describe_study(made)
    _describe_image(made, pixels)
    return made


def _describe_study(made: Dataset) -> None:
    moment = dt.datetime(2026, 1, 1, 12, 0, 0, tzinfo=dt.timezone.utc)
    made.SpecificCharacterSet = "ISO_IR 192"
    made.StudyDate = made.SeriesDate = made.ContentDate = made.AcquisitionDate = moment.strftime("%Y%m%d")
    made.StudyTime = made.SeriesTime = made.ContentTime = made.AcquisitionTime = moment.strftime("%H%M%S")
    made.AccessionNumber, made.StudyID, made.ReferringPhysicianName = "", "1", ""
    made.Modality, made.Manufacturer, made.ManufacturerModelName = "US", "Bedside simulator", "Convex 2-5 MHz"
    made.SoftwareVersions, made.SeriesNumber, made.InstanceNumber = "1", 1, 1
    made.StudyDescription, made.SeriesDescription = "Simulated lung ultrasound", "Intercostal, longitudinal"
    made.BodyPartExamined, made.PatientOrientation = "CHEST", ""
    made.TransducerType = "SECTOR_ANNULAR"


def _describe_image(made: Dataset, pixels: Bytes) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    made.ImageType = ["ORIGINAL", "PRIMARY", "CHEST", "0001"]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.NumberOfFrames, made.Rows, made.Columns = pixels.shape
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.FrameTime, made.FrameIncrementPointer = f"{1000 / RATE_HZ:g}", 0x00181063
    made.CineRate = made.RecommendedDisplayFrameRate = int(RATE_HZ)
    made.LossyImageCompression, made.BurnedInAnnotation = "00", "NO"
    made.UltrasoundColorDataPresent = 0
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = COLUMNS - 20, ROWS - 1
    region.ReferencePixelX0, region.ReferencePixelY0 = COLUMNS // 2, _TOP
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.ReferencePixelPhysicalValueX = region.ReferencePixelPhysicalValueY = 0.0
    region.PhysicalDeltaX = region.PhysicalDeltaY = MM_PER_PIXEL / 10
    made.SequenceOfUltrasoundRegions = Sequence([region])
    made.PixelData = pixels.tobytes()


def main() -> None:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulate.ultrasound", description="A made-up lung cine.")
    parser.add_argument("out", type=Path, help="DICOM file to write")
    parser.add_argument("--b-lines", type=int, default=0, help="how many (0: A-lines)")
    parser.add_argument("--frames", type=int, default=30, help=f"at {RATE_HZ:g} a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--still-lung", action="store_true", help="the lung does not slide (as over a pneumothorax)")
    parser.add_argument("--png", type=Path, help="write the middle frame here as well")
    given = parser.parse_args()
    scene = Scene(frames=given.frames, b_lines=given.b_lines, sliding=not given.still_lung, seed=given.seed)
    made = dataset(scene)
    made.save_as(given.out, enforce_file_format=True)
    if given.png is not None:
        cv2.imwrite(str(given.png), made.pixel_array[given.frames // 2] if given.frames > 1 else made.pixel_array)
    print(f"{given.out}: {given.frames} frames, {given.b_lines} B-lines, {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
