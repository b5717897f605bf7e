"""Frames of the ring as a DICOM object: a clip is an Ultrasound Multi-frame Image, a freeze an Ultrasound Image.

What this module keeps true: the same frames and the same ``Shot`` give the same bytes (a second try after a power cut is the
same capture); times between frames are those measured; what the picture went through before it came here is said; there are
no private elements, and no text of the machine's screen. Frames stay as the ring has them (JPEG-LS, lossless); what is small
is written uncompressed, which every viewer shows.

Source: DICOM PS3.3 A.6 and A.7 (ultrasound image and multi-frame image), C.7.6.5 (cine), PS3.5 A.4 (encapsulation).
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

from appliance.capture.video_ring import RingFrame
from appliance.records import Moment, Patient

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

UNCOMPRESSED_BELOW = 3 << 20
"""Pixel bytes of an object that is written uncompressed."""
IMAGE, MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
_FRAME_TIME_VECTOR = 0x00181065
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"

Frames = Callable[[], Iterator[RingFrame]]


class Shot(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a freeze or clip. ``id``: random; all UIDs derive from it, the study's from ``encounter_id``."""

    id: str
    clip: bool
    taken: Moment
    patient: Patient = Patient()
    encounter_id: str = ""
    accession_number: str = ""
    device: str = ""
    lossy: bool = False
    method: str = ""
    version: str = ""


class NoFrames(Exception):  # noqa: N818 - the condition's name
    """There is no frame to make an object of."""


class _Plan(NamedTuple):
    """What a first pass over the frames found; frames of another size than the last one's are left out."""

    times: tuple[int, ...]
    lengths: tuple[int, ...]
    lost: int
    rows: int
    columns: int
    channels: int
    plain: bool

    @property
    def syntax(self) -> UID:
        return ExplicitVRLittleEndian if self.plain else JPEGLSLossless

    def takes(self, frame: RingFrame) -> bool:
        return (frame.rows, frame.columns) == (self.rows, self.columns)


def write_object(shot: Shot, frames: Frames, write: Callable[[bytes], object]) -> int:
    """Write the object through ``write``, piece by piece; the number of frames in it.

    ``frames`` is gone through twice. Raises ``NoFrames``.
    """
    plan = _plan(frames)
    write(_header(shot, plan))
    if plan.plain:
        _write_plain(plan, frames, write)
    else:
        _write_encapsulated(plan, frames, write)
    return len(plan.times)


def _plan(frames: Frames) -> _Plan:
    size, channels = (0, 0), 1
    seen: list[tuple[int, int, int, int, int, int]] = []
    for frame in frames():
        size = (frame.rows, frame.columns)
        seen.append((*size, frame.channels, frame.t_ns, len(frame.data), frame.lost))
    kept = [one for one in seen if one[:2] == size]
    if not kept:
        raise NoFrames("no frame was on the disk: nothing could be kept of it")
    channels = max(one[2] for one in kept)
    lengths = tuple(one[4] if one[2] == channels else 0 for one in kept)
    return _Plan(
        times=tuple(one[3] for one in kept),
        lengths=lengths,
        lost=sum(one[5] for one in kept[1:]),
        rows=size[0],
        columns=size[1],
        channels=channels,
        plain=size[0] * size[1] * channels * len(kept) < UNCOMPRESSED_BELOW,
    )


def _header(shot: Shot, plan: _Plan) -> bytes:
    """Everything before the pixels, with the file's meta information."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(MULTI_FRAME if shot.clip else IMAGE)
    meta.MediaStorageSOPInstanceUID = _uid("instance", shot.id)
    meta.TransferSyntaxUID = plan.syntax
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID = _uid("study", shot.encounter_id or shot.id)
    made.SeriesInstanceUID = _uid("series", shot.encounter_id or shot.id)
    _patient(made, shot.patient)
    _study(made, shot)
    _image(made, shot, plan)
    if shot.clip:
        _cine(made, plan)
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uid(kind: str, of: str) -> UID:
    return generate_uid(prefix="2.25.", entropy_srcs=["bedside", kind, of])


def _patient(made: Dataset, patient: Patient) -> None:
    made.PatientName, made.PatientID = patient.name, patient.id
    if patient.issuer:
        made.IssuerOfPatientID = patient.issuer
    made.PatientBirthDate, made.PatientSex = patient.birth_date, patient.sex
    if patient.age_years is not None:
        years = patient.age_years
        made.PatientAge = f"{int(years):03d}Y" if years >= 2 else f"{int(years * 12):03d}M"


def _study(made: Dataset, shot: Shot) -> None:
    """The dates are empty while no clock has been trusted: order is in the journal, and an invented day would be believed."""
    wall = shot.taken.wall if shot.taken.uncertainty_s is not None else ""
    day, time = wall[:10].replace("-", ""), wall[11:19].replace(":", "")
    made.StudyDate = made.SeriesDate = made.ContentDate = made.AcquisitionDate = day
    made.StudyTime = made.SeriesTime = made.ContentTime = made.AcquisitionTime = time
    if wall:
        made.TimezoneOffsetFromUTC = "+0000"
    made.AccessionNumber, made.StudyID, made.ReferringPhysicianName = shot.accession_number[:16], "1", ""
    made.Modality, made.Manufacturer, made.ManufacturerModelName = "US", "Bedside", shot.device[:64]
    if shot.version:
        made.SoftwareVersions = shot.version
    made.SeriesNumber, made.InstanceNumber = "1", "1"
    made.SeriesDescription = "Lung ultrasound, captured at the bedside"
    made.BodyPartExamined, made.PatientOrientation = "CHEST", ""


def _image(made: Dataset, shot: Shot, plan: _Plan) -> None:
    made.ImageType = ["ORIGINAL", "PRIMARY", "CHEST", "0001"]
    made.SamplesPerPixel = plan.channels
    made.PhotometricInterpretation = "RGB" if plan.channels == 3 else "MONOCHROME2"
    if plan.channels == 3:
        made.PlanarConfiguration = 0
    made.Rows, made.Columns = plan.rows, plan.columns
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.UltrasoundColorDataPresent = int(plan.channels == 3)
    made.LossyImageCompression = "01" if shot.lossy else "00"
    if shot.lossy and shot.method:
        made.LossyImageCompressionMethod = shot.method
    made.BurnedInAnnotation = "NO"
    if plan.lost:
        made.ImageComments = f"{plan.lost} frames between the first and the last were lost"


def _cine(made: Dataset, plan: _Plan) -> None:
    steps = [(later - earlier) / 1e6 for earlier, later in itertools.pairwise(plan.times)]
    made.NumberOfFrames = len(plan.times)
    made.FrameIncrementPointer = _FRAME_TIME_VECTOR
    made.FrameTimeVector = ["0", *(f"{step:.3f}" for step in steps)]
    made.StartTrim, made.StopTrim = 1, len(plan.times)
    if steps and sum(steps) > 0:
        rate = max(1, round(1000 * len(steps) / sum(steps)))
        made.CineRate = made.RecommendedDisplayFrameRate = rate


def _write_plain(plan: _Plan, frames: Frames, write: Callable[[bytes], object]) -> None:
    length = plan.rows * plan.columns * plan.channels * len(plan.times)
    write(b"\xe0\x7f\x10\x00OB\0\0" + struct.pack("<I", length + length % 2))
    for frame in _taken(plan, frames):
        write(_pixels(frame, plan.channels).tobytes())
    write(b"\0" * (length % 2))


def _write_encapsulated(plan: _Plan, frames: Frames, write: Callable[[bytes], object]) -> None:
    """Pixel data with a basic offset table where the lengths are known, one fragment a frame."""
    write(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff")
    table = b""
    if all(plan.lengths):
        ends = itertools.accumulate((8 + length + length % 2 for length in plan.lengths[:-1]), initial=0)
        table = struct.pack(f"<{len(plan.lengths)}I", *ends)
    write(_ITEM + struct.pack("<I", len(table)) + table)
    for frame in _taken(plan, frames):
        data = frame.data if frame.channels == plan.channels else _encoded(_pixels(frame, plan.channels))
        padded = data + b"\0" * (len(data) % 2)
        write(_ITEM + struct.pack("<I", len(padded)) + padded)
    write(_END)


def _taken(plan: _Plan, frames: Frames) -> Iterator[RingFrame]:
    """The frames of the plan, and no other that came meanwhile."""
    wanted = set(plan.times)
    return (frame for frame in frames() if frame.t_ns in wanted and plan.takes(frame))


def _pixels(frame: RingFrame, channels: int) -> npt.NDArray[np.uint8]:
    """A frame decoded, ``[rows, columns]`` or ``[rows, columns, 3]``; grey becomes RGB in a clip that turned to colour."""
    import numpy as np
    from jpeg_ls import decode_buffer

    shape = (frame.rows, frame.columns, 3) if frame.channels == 3 else (frame.rows, frame.columns)
    pixels = np.frombuffer(decode_buffer(frame.data)[0], np.uint8).reshape(shape)
    return pixels if frame.channels == channels else np.repeat(pixels[..., None], channels, axis=-1)


def _encoded(pixels: npt.NDArray[np.uint8]) -> bytes:
    import numpy as np
    from jpeg_ls import encode_array

    return bytes(encode_array(np.ascontiguousarray(pixels), interleave_mode=2))
