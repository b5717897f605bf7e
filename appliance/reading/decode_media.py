"""PNG, JPEG, WAV and FLAC to a picture or a sound.

What this module keeps true: sizes are read from the container and checked before anything is decoded; a file that was cut
off is refused, where the codec would fill up with grey or silence; pixels keep their bits, orientation tags are ignored
(a rotated film must be seen as rotated).
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.reading.decode_limits import DecodeError, Limits, check_size
from appliance.reading.prepared import Header, Picture, Sound

_CUT_OFF = "send or copy it again"


def decode_picture(data: memoryview, limits: Limits) -> Picture:
    """A PNG or JPEG as a one-frame picture: grey ``[1, r, c]`` uint8 or uint16, or RGB ``[1, r, c, 3]`` uint8."""
    import cv2

    png = bytes(data[:4]) == b"\x89PNG"
    rows, columns = _png_size(data) if png else _jpeg_size(data)
    check_size(rows, columns, 1, 8 if png else 3, limits)
    flags = cv2.IMREAD_UNCHANGED if png else cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DecodeError("damaged", f"the picture can't be decoded ({error.msg})", _CUT_OFF) from error
    if pixels is None or pixels.shape[:2] != (rows, columns):
        raise DecodeError("damaged", "the picture can't be decoded", _CUT_OFF)
    return Picture(
        header=Header(media_type="image/png" if png else "image/jpeg", rows=rows, columns=columns),
        pixels=_grey_or_rgb(np.asarray(pixels))[None],
    )


def _grey_or_rgb(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if pixels.ndim == 2:
        return pixels
    blue, red = pixels[..., 0], pixels[..., 2]
    if np.array_equal(blue, red) and np.array_equal(blue, pixels[..., 1]):
        return np.ascontiguousarray(blue)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., 2::-1])


def _png_size(data: memoryview) -> tuple[int, int]:
    """Rows and columns of a PNG whose chunks are all there and whole (PNG 1.2, chapter 5)."""
    size, at, ended = (0, 0), 8, False
    while not ended:
        if at + 12 > len(data):
            raise DecodeError("truncated", "the PNG is cut off", _CUT_OFF)
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise DecodeError("truncated", "the PNG is cut off", _CUT_OFF)
        if zlib.crc32(data[at + 4 : at + 8 + length]) != struct.unpack_from(">I", data, at + 8 + length)[0]:
            raise DecodeError("damaged", "the PNG is damaged (a checksum is wrong)", _CUT_OFF)
        if kind == b"IHDR" and length >= 8:
            columns, rows = struct.unpack_from(">II", data, at + 8)
            size = (rows, columns)
        ended = kind == b"IEND"
        at += 12 + length
    return size


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Rows and columns of a JPEG that has its end marker after its scan (ITU-T T.81, annex B)."""
    at, size = 2, (0, 0)
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise DecodeError("damaged", "the JPEG's markers are damaged", _CUT_OFF)
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC} and at + 9 <= len(data):
            rows, columns = struct.unpack_from(">HH", data, at + 5)
            size = (rows, columns)
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xDA:
            # Within a scan 0xFF is followed by 0 or a restart: the first FFD9 after it is the end of the image.
            if bytes(data[at:]).find(b"\xff\xd9") < 0:
                break
            return size
    raise DecodeError("truncated", "the JPEG is cut off", _CUT_OFF)


def decode_sound(data: memoryview, limits: Limits) -> Sound:
    """A WAV or FLAC as float32 ``[n]``, full scale ±1; of several channels the one with the most energy."""
    import soundfile

    from appliance.reading.dicom_waveform import loudest

    wave = bytes(data[:4]) != b"fLaC"
    if wave:
        _check_wave(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, frames = file.samplerate, file.frames
            if frames < 1 or rate < 1:
                raise DecodeError("empty", "the recording holds no samples", "record it again")
            if frames / rate > limits.sound_seconds or file.channels > limits.sound_channels:
                raise DecodeError(
                    "too-large",
                    f"the recording has {file.channels} channels of {frames / rate:,.0f} s; the limit is "
                    f"{limits.sound_channels} of {limits.sound_seconds:,.0f} s",
                    "send the part that matters",
                )
            samples = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DecodeError("damaged", f"the recording can't be decoded ({error.error_string})", _CUT_OFF) from error
    if len(samples) < frames:
        raise DecodeError("truncated", f"the recording is cut off after {len(samples) / rate:.1f} s", _CUT_OFF)
    if not np.isfinite(samples).all():
        raise DecodeError("damaged", "the recording holds values that are no numbers", _CUT_OFF)
    return Sound(
        header=Header(media_type="audio/wav" if wave else "audio/flac"),
        samples=loudest(samples),
        rate_hz=float(rate),
    )


def _check_wave(data: memoryview) -> None:
    """A data chunk that declares more than is there was cut off (sizes of 0 or about 2³² mark a stream)."""
    if bytes(data[:4]) == b"RF64":
        return
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"data":
            if 0 < length < 0xFFFFFF00 and at + 8 + length > len(data):
                raise DecodeError(
                    "truncated", f"the recording is cut off: {len(data) - at - 8:,} of {length:,} bytes", _CUT_OFF
                )
            return
        at += 8 + length + (length & 1)
    raise DecodeError("truncated", "the recording has no samples (or was cut off before them)", _CUT_OFF)
