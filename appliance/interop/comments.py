"""Compressed pictures without the comments and application segments that a machine may have written a name into.

What this module keeps true: no picture changes: only segments that a decoder skips are dropped (ITU-T T.81 B.2.4.5 and
B.2.4.6; T.87 for JPEG-LS; T.800 A.9.2 for JPEG 2000). A stream that can't be walked to its end raises ``ValueError``.
"""

from __future__ import annotations

import struct
from typing import Any

_END, _SCAN, _COMMENT = 0xD9, 0xDA, 0xFE
_J2K_COMMENT, _J2K_TILE, _J2K_DATA, _J2K_END = 0xFF64, 0xFF90, 0xFF93, 0xFFD9


def without_comments(dataset: Any) -> None:
    """Change the encapsulated pixel data of ``dataset`` in place. Raises ``ValueError``."""
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes, RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == RLELossless:
        return
    if syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        strip = jpeg
    elif syntax in JPEG2000TransferSyntaxes or syntax.name.startswith("High-Throughput JPEG 2000"):
        strip = jpeg_2000
    else:
        raise ValueError(f"comments in {syntax.name} can't be judged")
    many = int(dataset.get("NumberOfFrames", 1) or 1)
    offsets = {}
    if "ExtendedOffsetTable" in dataset:
        raw = bytes(dataset.ExtendedOffsetTable), bytes(dataset.ExtendedOffsetTableLengths)
        offsets = {"extended_offsets": raw}
    frames = [strip(frame) for frame in generate_frames(dataset.PixelData, number_of_frames=many, **offsets)]
    for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if name in dataset:
            delattr(dataset, name)
    dataset.PixelData = encapsulate(frames, has_bot=sum(len(one) for one in frames) < 1 << 31)


def jpeg(stream: bytes) -> bytes:
    """A JPEG or JPEG-LS stream without COM and APPn, save the two that tell a decoder the colours; ends at EOI."""
    if stream[:2] != b"\xff\xd8":
        raise ValueError("a JPEG does not begin as one")
    kept, at = [b"\xff\xd8"], 2
    while True:
        while stream[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if at + 2 > len(stream) or stream[at] != 0xFF:
            raise ValueError("a JPEG's segments don't follow one another")
        marker = stream[at + 1]
        if marker == _END:
            kept.append(b"\xff\xd9")
            return b"".join(kept)
        (length,) = struct.unpack_from(">H", stream, at + 2)
        end = at + 2 + length
        if length < 2 or end > len(stream):
            raise ValueError("a JPEG's segment is longer than its stream")
        if marker == _SCAN:
            end = _next_marker(stream, end)
        if not _droppable(marker, stream[at + 4 : end]):
            kept.append(stream[at:end])
        at = end


def _droppable(marker: int, body: bytes) -> bool:
    if marker == 0xEE and body[:5] == b"Adobe" and len(body) == 12:
        return False  # says whether the colours are YCbCr
    if marker == 0xE8 and body[:4] == b"mrfx" and len(body) == 5:
        return False  # JPEG-LS colour transform
    return marker == _COMMENT or 0xE0 <= marker <= 0xEF


def _next_marker(stream: bytes, at: int) -> int:
    """Where the entropy-coded data ends: the next 0xFF with a byte from 0x80 that is no restart."""
    while (at := stream.find(b"\xff", at)) >= 0:
        marker = stream[at + 1] if at + 1 < len(stream) else 0
        if 0x80 <= marker < 0xFF and not 0xD0 <= marker <= 0xD7:
            return at
        at += 1
    raise ValueError("a JPEG has no end")


def jpeg_2000(stream: bytes) -> bytes:
    """A JPEG 2000 codestream without COM in its main header; one with comments in its tiles raises ``ValueError``."""
    if stream[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("a JPEG 2000 codestream does not begin as one")
    kept, at = [stream[:2]], 2
    while struct.unpack_from(">H", stream, at)[0] != _J2K_TILE:
        marker, length = struct.unpack_from(">HH", stream, at)
        end = at + 2 + length
        if marker < 0xFF00 or length < 2 or end > len(stream):
            raise ValueError("a JPEG 2000 header can't be walked")
        if marker != _J2K_COMMENT:
            kept.append(stream[at:end])
        at = end
    kept.append(stream[at : _tiles_end(stream, at)])
    return b"".join(kept)


def _tiles_end(stream: bytes, at: int) -> int:
    """Walk the tile-parts; where the codestream ends."""
    while True:
        if at + 2 <= len(stream) and struct.unpack_from(">H", stream, at)[0] == _J2K_END:
            return at + 2
        marker, _, _, length = struct.unpack_from(">HHHI", stream, at)
        if marker != _J2K_TILE:
            raise ValueError("a JPEG 2000 tile can't be walked")
        head = at + 12
        while (inner := struct.unpack_from(">HH", stream, head))[0] != _J2K_DATA:
            if inner[0] == _J2K_COMMENT or inner[1] < 2:
                raise ValueError("a JPEG 2000 tile holds a comment")
            head += 2 + inner[1]
        if length == 0:  # the last one, up to the end
            end = stream.rfind(b"\xff\xd9")
            if end < head:
                raise ValueError("a JPEG 2000 codestream has no end")
            return end + 2
        if length < 14 or at + length > len(stream):
            raise ValueError("a JPEG 2000 tile is longer than its stream")
        at += length
