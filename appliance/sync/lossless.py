"""The smallest lossless form of an original: pixels by JPEG-LS, JPEG 2000 or JPEG XL, sound by FLAC, everything else deflated.

What this module keeps true: nothing is decided by what a file claims: whatever its header says wrongly, the result is
restored and compared before it is used (``originals.exact``). Big-endian, bit-packed and already compressed pixels are
not taken apart: the file is deflated as a whole.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from appliance.protocol.originals import Part, deflated, packed

_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_MOST_PIXELS = 1 << 27
_TRIED = 4
"""Frames of a cine on which all codecs are tried; the best one takes the rest."""
_MOST_FOR_XL = 40 << 20
"""Bytes of all frames above which JPEG XL is not tried: at 0.15 s a megabyte the process's time would run out."""
_XL_EFFORT = 5


class _Stretch(NamedTuple):
    """Where the frames lie in a file, and their shape."""

    start: int
    frames: int
    rows: int
    columns: int
    samples: int
    width: int

    @property
    def size(self) -> int:
        """Bytes of a frame."""
        return self.rows * self.columns * self.samples * self.width


def encoded(plain: bytes, media_type: str) -> bytes:
    """The container (``protocol.originals``) of a file; larger than the file when nothing could be gained."""
    found = None
    if plain[128:132] == b"DICM" or media_type == "application/dicom":
        found = _dicom(plain)
    elif plain[:4] == b"RIFF" and plain[8:12] == b"WAVE":
        found = _wave(plain)
    return packed(found or [deflated(plain)])


def _dicom(plain: bytes) -> list[Part] | None:
    """Header, frames and trailer of a native image; ``None`` when it is none."""
    stretch = _pixels(plain)
    if stretch is None:
        return None
    end = stretch.start + stretch.frames * stretch.size
    found = [deflated(plain[: stretch.start])]
    codecs: list[Callable[[bytes, _Stretch], Part | None]] = [_jpeg_ls]
    if stretch.samples == 1:
        codecs.append(_jpeg_2000)
    if stretch.frames * stretch.size <= _MOST_FOR_XL:
        codecs.append(_jpeg_xl)
    for number in range(stretch.frames):
        at = stretch.start + number * stretch.size
        frame = plain[at : at + stretch.size]
        made = [part for codec in codecs if (part := codec(frame, stretch)) is not None]
        best = min([*made, Part("raw", len(frame), frame)], key=_cost)
        if number >= _TRIED - 1 and len(codecs) > 1:
            codecs = [{"jpeg-2000": _jpeg_2000, "jpeg-xl": _jpeg_xl}.get(best.codec, _jpeg_ls)]
        found.append(best)
    return [*found, deflated(plain[end:])]


def _cost(part: Part) -> float:
    """JPEG 2000 and JPEG XL take two to five times as long to decode as JPEG-LS: it must be worth it."""
    return len(part.data) * (1.01 if part.codec in ("jpeg-2000", "jpeg-xl") else 1.0)


def _pixels(plain: bytes) -> _Stretch | None:
    import pydicom

    file = io.BytesIO(plain)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning may quote a value, and a value may be a name
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", _IMPLICIT))
        frames = int(dataset.get("NumberOfFrames", 1) or 1)
        samples, planar = int(dataset.get("SamplesPerPixel", 1)), int(dataset.get("PlanarConfiguration", 0) or 0)
        bits, rows, columns = int(dataset.BitsAllocated), int(dataset.Rows), int(dataset.Columns)
        at = file.tell()
        head = plain[at : at + 12]
        if syntax not in (_IMPLICIT, _EXPLICIT) or head[:4] != b"\xe0\x7f\x10\x00":
            return None
        start = at + (12 if syntax == _EXPLICIT else 8)
        (length,) = struct.unpack_from("<I", plain, start - 4)
    except Exception:  # noqa: BLE001 - the edge of a guess: a file that can't be taken apart is deflated as a whole
        return None
    if bits not in (8, 16) or samples not in (1, 3) or (samples == 3 and (planar or bits == 16)):
        return None
    stretch = _Stretch(start, frames, rows, columns, samples, bits // 8)
    fits = 0 < rows <= 65535 and 0 < columns <= 65535 and frames > 0 and 0 < stretch.size <= _MOST_PIXELS
    if not fits or frames * stretch.size > length or start + frames * stretch.size > len(plain):
        return None
    return stretch


def _samples(frame: bytes, stretch: _Stretch) -> tuple[npt.NDArray[Any], int]:
    """The samples, and how many bits they need so that the codec's words have the file's width."""
    values = np.frombuffer(frame, f"<u{stretch.width}")
    shape = (stretch.rows, stretch.columns) + ((stretch.samples,) if stretch.samples > 1 else ())
    return values.reshape(shape), max(9 if stretch.width == 2 else 2, int(values.max()).bit_length())


def _jpeg_ls(frame: bytes, stretch: _Stretch) -> Part | None:
    from jpeg_ls import encode_buffer

    _, bits = _samples(frame, stretch)
    mode = 0 if stretch.samples == 1 else 2
    try:
        data = encode_buffer(frame, stretch.rows, stretch.columns, stretch.samples, bits, 0, mode)
    except (RuntimeError, ValueError):
        return None
    return Part("jpeg-ls", len(frame), bytes(data), stretch.width)


def _jpeg_2000(frame: bytes, stretch: _Stretch) -> Part | None:
    from openjpeg.utils import encode_array

    values, bits = _samples(frame, stretch)
    try:
        data = encode_array(values, bits_stored=bits)
    except (RuntimeError, ValueError):
        return None
    return Part("jpeg-2000", len(frame), bytes(data), stretch.width)


def _jpeg_xl(frame: bytes, stretch: _Stretch) -> Part | None:
    from imagecodecs import jpegxl_encode

    values, _ = _samples(frame, stretch)
    try:
        data = jpegxl_encode(values, lossless=True, effort=_XL_EFFORT, numthreads=1)
    except (RuntimeError, ValueError):
        return None
    return Part("jpeg-xl", len(frame), bytes(data), stretch.width)


def _wave(plain: bytes) -> list[Part] | None:
    """Header, samples and trailer of integer PCM of 16 or 24 bits (RIFF/WAVE); ``None`` when it is none."""
    at, form = 12, b""
    while at + 8 <= len(plain):
        name, (size,) = plain[at : at + 4], struct.unpack_from("<I", plain, at + 4)
        if name == b"fmt ":
            form = plain[at + 8 : at + 8 + size]
        if name == b"data" and len(form) >= 16:
            return _pcm(plain, form, at + 8, min(size, len(plain) - at - 8))
        at += 8 + size + size % 2
    return None


def _pcm(plain: bytes, form: bytes, start: int, size: int) -> list[Part] | None:
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", form)
    extensible = tag == 0xFFFE and form[24:26] == b"\x01\x00"
    if not (tag == 1 or extensible) or bits not in (16, 24) or not 1 <= channels <= 8 or block != channels * bits // 8:
        return None
    size -= size % block
    coded = _flac(plain[start : start + size], channels, rate, bits // 8) if size else None
    if coded is None:
        return None
    return [deflated(plain[:start]), coded, deflated(plain[start + size :])]


def _flac(samples: bytes, channels: int, rate: int, width: int) -> Part | None:
    import soundfile

    if width == 2:
        values: npt.NDArray[Any] = np.frombuffer(samples, "<i2")
    else:
        wide = np.zeros((len(samples) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(samples, np.uint8).reshape(-1, 3)
        values = wide.reshape(-1).view("<i4")
    out = io.BytesIO()
    subtype = "PCM_16" if width == 2 else "PCM_24"
    try:
        # the rate is only said, the original's own header keeps it: FLAC can't say every rate
        with soundfile.SoundFile(
            out, "w", min(max(rate, 1), 192_000), channels, subtype, format="FLAC", compression_level=1.0
        ) as file:
            file.write(values.reshape(-1, channels))
    except (RuntimeError, ValueError, TypeError):
        return None
    return Part("flac", len(samples), out.getvalue(), width)
