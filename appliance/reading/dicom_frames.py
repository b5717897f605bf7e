"""The compressed frames of a DICOM object: taken apart, measured, and the commonest kind decoded.

What this module keeps true: a frame leaves here only if every fragment of it was in the file; its size is read from its own
markers, so that no codec allocates for a size that the header did not announce.
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.encaps import generate_frames

from appliance.reading.decode_limits import BROKEN, DecodeError

_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"


def encapsulated_frames(data: memoryview, dataset: Any, frames: int) -> list[bytes]:
    """The compressed frames, each whole; raises ``DecodeError`` where a fragment or a frame is missing (PS3.5 A.4)."""
    at, fragments = 0, -1  # the first item is the offset table
    while at + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, at)
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        if (group, element) != (0xFFFE, 0xE000) or at + 8 + length > len(data):
            fragments = -1
            break
        at, fragments = at + 8 + length, fragments + 1
    if fragments < frames:
        raise DecodeError(
            "truncated", "the compressed pixels are cut off: not every fragment is there", "send or copy it again"
        )
    table, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    try:
        whole = list(
            generate_frames(
                bytes(data[:at]) + _DELIMITER,
                number_of_frames=frames,
                extended_offsets=(table, lengths) if table and lengths else None,
            )
        )
    except BROKEN as error:
        raise DecodeError("damaged", f"the frames can't be told apart ({error})", "send it again") from error
    if len(whole) < frames:
        raise DecodeError("truncated", f"{len(whole)} of {frames} frames are there", "send or copy it again")
    return whole


def codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns by the JPEG (SOF) or JPEG 2000 (SIZ) marker; ``None`` where there is none near the start.

    ITU-T T.81 B.2.2, T.87 C.2.2 and T.800 A.5.1.
    """
    if frame[:4] == b"\xff\x4f\xff\x51" and len(frame) >= 24:
        x, y, x0, y0 = struct.unpack_from(">IIII", frame, 8)
        return y - y0, x - x0
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            rows, columns = struct.unpack_from(">HH", frame, at + 5)
            return rows, columns
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def baseline_jpeg(frame: bytes, *, colour: bool) -> npt.NDArray[np.uint8] | None:
    """An 8-bit JPEG as grey ``[r, c]`` or RGB ``[r, c, 3]`` through libjpeg-turbo; ``None`` if others must decode it.

    The same values as gdcm gives, and within a few of pylibjpeg's, ten times as fast. Colour is left to the others where an
    Adobe marker says which transform was used, and so is a stream without an end, which libjpeg would fill up with grey.
    """
    if frame.rstrip(b"\0")[-2:] != b"\xff\xd9" or (colour and b"Adobe" in frame[:4096]):
        return None
    try:
        flags = cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE
        decoded = cv2.imdecode(np.frombuffer(frame, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if decoded is None:
        return None
    return np.ascontiguousarray(decoded[..., ::-1]) if colour else np.asarray(decoded, dtype=np.uint8)
