"""DICOM to a picture or a sound: every transfer syntax the box accepts, every grey and colour meaning.

What this module keeps true: the size that the header declares is checked against the file and the limits before anything is
allocated, and the size that a compressed frame declares against the header before a codec sees it; stored values leave
here as stored (PS3.3 C.7.6.3), with the window or table that shows them *in stored values*; only what is asked of a
long cine is decoded, evenly spread.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import config as pydicom_config
from pydicom.encaps import encapsulate
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import as_pixel_options, get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID

from appliance.reading.decode_limits import BROKEN, DecodeError, Limits, check_size, panics_are_errors
from appliance.reading.dicom_display import display
from appliance.reading.dicom_frames import baseline_jpeg, codestream_size, encapsulated_frames
from appliance.reading.dicom_header import header_of, integer, number
from appliance.reading.prepared import Picture, Sound

# Clinics' files break value rules (dates, long strings) without harm to the picture: neither refuse nor complain.
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom\b.*")

_DEFLATED = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _DEFLATED, _BIG_ENDIAN}
_UNDEFINED = 0xFFFFFFFF
_BASELINE = "1.2.840.10008.1.2.4.50"
_RLE = "1.2.840.10008.1.2.5"
# One decoder for each: fast, right, and raising errors. gdcm is 12 % faster on lossless JPEG but ends the process by an
# uncaught C++ exception on some damaged streams.
_PLUGINS = {
    _RLE: "pylibjpeg",
    _BASELINE: "pylibjpeg",
    "1.2.840.10008.1.2.4.51": "pylibjpeg",
    "1.2.840.10008.1.2.4.57": "pylibjpeg",
    "1.2.840.10008.1.2.4.70": "pylibjpeg",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
}
_GREY = {"MONOCHROME1", "MONOCHROME2"}
_COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422"}

Pixels = npt.NDArray[Any]


def decode_dicom(data: memoryview, limits: Limits, *, preamble: bool) -> Picture | Sound:
    """Decode a DICOM object held in ``data``; raises ``DecodeError``."""
    try:
        return _decoded(data, limits, preamble=preamble)
    except (BytesLengthException, InvalidDicomError) as error:
        raise DecodeError("damaged", "an element of the DICOM header has a wrong length", "send it again") from error


def _decoded(data: memoryview, limits: Limits, *, preamble: bool) -> Picture | Sound:
    dataset, data, offset = _parse(data, limits, preamble=preamble)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")) or _guess_syntax(dataset)
    if "WaveformSequence" in dataset:
        from appliance.reading.dicom_waveform import decode_waveform

        return decode_waveform(dataset, limits)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise DecodeError(
            "not-an-image",
            f"the DICOM object holds no image or sound (SOP class {_class_name(dataset)})",
            "send the image itself; reports and other documents are not read here",
        )
    if syntax not in _NATIVE and syntax not in _PLUGINS:
        raise DecodeError(
            "transfer-syntax",
            f"the transfer syntax {UID(syntax).name or syntax!r} is not supported",
            "send it uncompressed, as RLE, JPEG, JPEG-LS or JPEG 2000",
        )
    return _Image(dataset, data, offset, syntax, limits).picture()


def _parse(data: memoryview, limits: Limits, *, preamble: bool) -> tuple[Any, memoryview, int]:
    """The dataset without pixels, the (inflated) bytes, and where the pixel data element begins in them."""
    # BytesIO shares the memory of a bytes object and copies that of a view.
    file = io.BytesIO(data.obj if isinstance(data.obj, bytes) and len(data.obj) == data.nbytes else data)
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=not preamble)
        if str(dataset.file_meta.get("TransferSyntaxUID", "")) == _DEFLATED:
            data, file = _inflate(data, dataset.file_meta, limits)
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            dataset.file_meta.TransferSyntaxUID = UID(_DEFLATED)
    except DecodeError:
        raise
    except BROKEN as error:
        raise DecodeError(
            "damaged", f"the DICOM header can't be parsed ({type(error).__name__}: {error})", "send it again"
        ) from error
    if not preamble and not {"SOPClassUID", "Rows", "Modality"} & set(dataset.dir()):
        raise DecodeError("not-dicom", "the file is not DICOM", "export it from the machine as DICOM")
    return dataset, data, file.tell()


def _inflate(data: memoryview, meta: Any, limits: Limits) -> tuple[memoryview, io.BytesIO]:
    """Deflated explicit little endian as plain explicit little endian, never more than the limit of bytes."""
    start = 132 + 12 + int(meta.FileMetaInformationGroupLength)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = stream.decompress(data[start:], limits.decoded_bytes)
    if stream.unconsumed_tail:
        raise DecodeError("too-large", "the deflated object inflates beyond the limit", "send it uncompressed")
    head = bytes(data[:start]).replace(_DEFLATED.encode(), b"1.2.840.10008.1.2.1\0\0\0", 1)
    whole = head + plain
    return memoryview(whole), io.BytesIO(whole)


def _guess_syntax(dataset: Any) -> str:
    """The native syntax in which a dataset without file meta information was found to be written."""
    implicit, little = dataset.original_encoding
    if not little:
        return _BIG_ENDIAN
    return "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"


def _class_name(dataset: Any) -> str:
    return str(UID(str(dataset.get("SOPClassUID", "") or "unknown")).name)


class _Image:
    """One image object on its way to a ``Picture``."""

    def __init__(self, dataset: Any, data: memoryview, offset: int, syntax: str, limits: Limits) -> None:
        self.dataset, self.data, self.offset, self.syntax, self.limits = dataset, data, offset, syntax, limits
        self.rows, self.columns = integer(dataset, "Rows"), integer(dataset, "Columns")
        self.frames = max(1, integer(dataset, "NumberOfFrames", 1))
        self.samples = integer(dataset, "SamplesPerPixel", 1)
        self.allocated = integer(dataset, "BitsAllocated", 16)
        self.stored = integer(dataset, "BitsStored", self.allocated)
        self.high = integer(dataset, "HighBit", self.stored - 1)
        self.signed = integer(dataset, "PixelRepresentation", 0) == 1
        self.photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2")).strip().upper()
        self.step = -(-self.frames // limits.frames)
        self.kept = -(-self.frames // self.step)
        self.words = self.allocated > 8 or bool(dataset.original_encoding[0])

    def picture(self) -> Picture:
        self._check()
        value, length = self._pixel_element()
        pixels = self._native(value, length) if self.syntax in _NATIVE else self._compressed(value)
        if self.photometric == "PALETTE COLOR":
            pixels = self._palette(pixels)
        elif self.samples == 3:
            pixels = _eight_bits(pixels, self.stored)
        else:
            pixels = self._significant(pixels)
        shown = display(self.dataset, self.stored, signed=self.signed) if pixels.ndim == 3 else None
        frame_time = number(self.dataset, "FrameTime", 0.0)
        if not frame_time and (rate := number(self.dataset, "CineRate", 0.0)) > 0:
            frame_time = 1000.0 / rate
        return Picture(
            header=header_of(self.dataset),
            pixels=pixels,
            invert=(self.photometric == "MONOCHROME1") != bool(shown and shown.falling),
            window=shown.window if shown else None,
            lut=shown.lut if shown else None,
            sigmoid=bool(shown and shown.sigmoid),
            frame_time_ms=frame_time * self.step if self.frames > 1 else 0.0,
        )

    def _check(self) -> None:
        meanings = _GREY | {"PALETTE COLOR"} if self.samples == 1 else _COLOUR
        whole = self.allocated in ({8, 16} if self.samples == 1 else {8, 16, 32})
        if self.samples not in {1, 3} or self.photometric not in meanings or not whole:
            raise DecodeError(
                "unsupported-pixels",
                f"pixels of {self.samples} × {self.allocated} bits ({self.photometric}) are no picture that can be read",
                "send the image as grey or colour of 8 or 16 bits",
            )
        if not 1 <= self.stored <= self.allocated or not self.stored - 1 <= self.high < self.allocated:
            raise DecodeError(
                "damaged",
                f"the header says {self.stored} bits stored, high bit {self.high}, in {self.allocated} allocated",
                "send it again; if that fails, ask for service of the machine",
            )
        check_size(self.rows, self.columns, self.kept, self.samples * self.allocated / 8, self.limits)

    def _pixel_element(self) -> tuple[int, int]:
        """Where the value of Pixel Data begins, and its length in bytes (2³²−1 for encapsulated).

        Some files say explicit and are implicit: the element itself is believed.
        """
        little = self.syntax != _BIG_ENDIAN
        order = "<" if little else ">"
        head = bytes(self.data[self.offset : self.offset + 12])
        if len(head) < 8 or struct.unpack_from(order + "HH", head) != (0x7FE0, 0x0010):
            raise DecodeError(
                "no-pixels", "the DICOM object has a header but no pixel data (or it was cut off)", "send it again"
            )
        if self.dataset.original_encoding[0] or head[4:6] not in {b"OB", b"OW", b"UN"}:
            return self.offset + 8, int(struct.unpack_from(order + "I", head, 4)[0])
        if len(head) < 12:
            raise DecodeError("truncated", "the file ends where its pixels begin", "send it again")
        self.words = head[4:6] == b"OW"
        return self.offset + 12, int(struct.unpack_from(order + "I", head, 8)[0])

    def _native(self, start: int, length: int) -> Pixels:
        if length == _UNDEFINED:
            raise DecodeError(
                "damaged", "the pixels are compressed, but the header says they are not", "send it again uncompressed"
            )
        available = min(length, len(self.data) - start)
        pixels = self.rows * self.columns * self.frames
        if self.photometric == "YBR_FULL_422":
            needed = pixels * 2 * self.allocated // 8
        else:
            needed = pixels * self.samples * self.allocated // 8
        if available < needed:
            raise DecodeError(
                "truncated",
                f"the pixels are cut off: {available:,} of {needed:,} bytes are there",
                "send or copy it again",
            )
        plain = self.samples == 1 or (
            self.photometric == "RGB" and self.allocated == 8 and integer(self.dataset, "PlanarConfiguration", 0) == 0
        )
        if not plain or self.syntax == _BIG_ENDIAN:
            return self._reordered(bytes(self.data[start : start + available]))
        kind = np.dtype(f"<{'i' if self.signed and self.samples == 1 else 'u'}{self.allocated // 8}")
        shape = (self.frames, self.rows, self.columns) + ((3,) if self.samples == 3 else ())
        stored = np.frombuffer(self.data, kind, pixels * self.samples, start).reshape(shape)
        return stored[:: self.step]

    def _compressed(self, start: int) -> Pixels:
        frames = encapsulated_frames(self.data[start:], self.dataset, self.frames)
        wanted = frames[: self.frames : self.step]
        for frame in wanted:
            self._check_frame(frame)
        options = as_pixel_options(self.dataset, number_of_frames=1, transfer_syntax_uid=UID(self.syntax))
        options.pop("extended_offsets", None)
        options["pixel_keyword"] = "PixelData"
        return self._stacked(self._decompressed(frame, options) for frame in wanted)

    def _decompressed(self, frame: bytes, options: dict[str, Any]) -> Pixels:
        plain_colour = self.samples == 3 and self.photometric in {"YBR_FULL", "YBR_FULL_422"}
        if self.syntax == _BASELINE and self.allocated == 8 and (plain_colour or self.photometric in _GREY):
            fast = baseline_jpeg(frame, colour=plain_colour)
            if fast is not None:
                return fast
        decoder = get_decoder(UID(self.syntax))
        plugin = _PLUGINS[self.syntax]
        with panics_are_errors():
            return np.asarray(decoder.as_array(encapsulate([frame]), index=0, decoding_plugin=plugin, **options)[0])

    def _check_frame(self, frame: bytes) -> None:
        size = codestream_size(frame) if self.syntax != _RLE else None
        if size is not None and size != (self.rows, self.columns):
            raise DecodeError(
                "damaged",
                f"the compressed picture is {size[1]}×{size[0]} pixels, the header says {self.columns}×{self.rows}",
                "send it again; if that fails, send it uncompressed",
            )

    def _reordered(self, value: bytes) -> Pixels:
        """Uncompressed pixels that can't be viewed as they lie: big endian, planes, subsampled or YBR colour."""
        syntax = UID("1.2.840.10008.1.2.1" if self.syntax == _DEFLATED else self.syntax)
        options = as_pixel_options(self.dataset, number_of_frames=self.frames, transfer_syntax_uid=syntax)
        options["pixel_keyword"] = "PixelData"
        options["pixel_vr"] = "OW" if self.words else "OB"
        decoder = get_decoder(syntax)
        return self._stacked(
            decoder.as_array(value, index=index, **options)[0] for index in range(0, self.frames, self.step)
        )

    def _stacked(self, frames: Iterable[Pixels]) -> Pixels:
        try:
            decoded = list(frames)
        except BROKEN as error:
            cause = str(error).strip().rpartition("\n")[2].strip()
            raise DecodeError("damaged", f"the pixels can't be decompressed ({cause})", "send it again") from error
        if any(frame.shape[:2] != (self.rows, self.columns) for frame in decoded):
            raise DecodeError(
                "damaged", "the decompressed picture has another size than the header says", "send it again"
            )
        return decoded[0][None] if len(decoded) == 1 else np.stack(decoded)

    def _significant(self, pixels: Pixels) -> Pixels:
        """Only the stored bits: what lies above them (overlays in old files) is cut off, signs are extended."""
        kind = np.dtype(np.int16 if self.signed else np.uint8 if self.allocated == 8 else np.uint16)
        if pixels.dtype.itemsize > 2:
            pixels = pixels.astype(np.int32)
        elif pixels.dtype == np.int8:
            pixels = pixels.astype(np.int16)
        elif not pixels.dtype.isnative:
            pixels = pixels.astype(kind)
        shift = self.high - self.stored + 1 if self.syntax in _NATIVE else 0
        lowest, highest = (
            (-(1 << self.stored - 1), (1 << self.stored - 1) - 1) if self.signed else (0, (1 << self.stored) - 1)
        )
        full = self.stored == pixels.dtype.itemsize * 8
        if shift == 0 and (full or (int(pixels.max()) <= highest and int(pixels.min()) >= lowest)):
            return pixels
        wide = (pixels.astype(np.int32) >> shift) & ((1 << self.stored) - 1)
        if self.signed:
            wide -= (wide >> (self.stored - 1)) << self.stored
        return wide.astype(kind)

    def _palette(self, pixels: Pixels) -> Pixels:
        if self.syntax == _BIG_ENDIAN:
            for colour in ("Red", "Green", "Blue"):
                if (keyword := f"{colour}PaletteColorLookupTableData") in self.dataset:
                    element = self.dataset[keyword]
                    element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()
        try:
            coloured = np.asarray(apply_color_lut(pixels, self.dataset))
        except BROKEN as error:
            raise DecodeError("damaged", f"the colour palette can't be used ({error})", "send it again") from error
        return _eight_bits(coloured[..., :3], coloured.dtype.itemsize * 8)


def _eight_bits(pixels: Pixels, stored: int) -> Pixels:
    if pixels.dtype == np.uint8:
        return pixels
    return (pixels >> max(0, stored - 8)).astype(np.uint8)
