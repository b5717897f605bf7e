"""Originals on the wire: a file taken apart into stretches, each by the codec that makes it smallest, and put together again.

What this module keeps true: ``restored`` gives the very bytes that ``packed`` was given or raises ``OriginalError``, and no
codec is asked for more than the table announced and the caller allows. Lossless coding of pixels alone would lose the rest
of the file; here header, pixels and trailer are all there, so that the original's SHA-256 can be compared after restoring.

Format (``ENCODING`` in the chunk's header), integers big-endian: 8 bytes ``MAGIC``; 4 bytes length of the table; the table,
msgpack: a list of [codec, plain length, coded length, bytes a sample]; then the coded stretches in the table's order. The
original is the stretches, each decoded, one after another. Codecs:

``raw``       the bytes themselves
``deflate``   zlib (RFC 1950)
``jpeg-ls``   one frame, ISO/IEC 14495-1 lossless; samples of 1 or 2 bytes, little-endian, colours by pixel
``jpeg-2000`` one grey frame, ISO/IEC 15444-1 codestream, reversible; samples as above
``flac``      RFC 9639; signed little-endian samples of 2 or 3 bytes, channels interleaved
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import msgspec

ENCODING = "bedside-original-1"
MAGIC = b"BSORIG1\n"

Codec = Literal["raw", "deflate", "jpeg-ls", "jpeg-2000", "flac"]

_MOST_PARTS = 100_000


class OriginalError(ValueError):
    """The bytes are not an original in this format, or don't become what they announce."""


class Part(NamedTuple):
    """A coded stretch of an original. ``size``: plain bytes; ``width``: bytes a sample, for pixels and sound."""

    codec: Codec
    size: int
    data: bytes
    width: int = 1


def packed(parts: Iterable[Part]) -> bytes:
    """The parts as one container."""
    kept = [part for part in parts if part.size]
    table = msgspec.msgpack.encode([(part.codec, part.size, len(part.data), part.width) for part in kept])
    return b"".join([MAGIC, struct.pack(">I", len(table)), table, *(part.data for part in kept)])


def deflated(plain: bytes) -> Part:
    """A stretch of any bytes, as it is when deflating does not make it smaller."""
    data = zlib.compress(plain, 9)
    return Part("deflate", len(plain), data) if len(data) < len(plain) else Part("raw", len(plain), plain)


def parts(container: bytes, largest: int) -> list[Part]:
    """Take a container apart, nothing decoded yet; raises ``OriginalError``. ``largest``: bytes allowed in the original."""
    start = len(MAGIC) + 4
    if not container.startswith(MAGIC) or len(container) < start:
        raise OriginalError("not an original in this format")
    (length,) = struct.unpack_from(">I", container, len(MAGIC))
    try:
        table = msgspec.msgpack.decode(container[start : start + length], type=list[tuple[Codec, int, int, int]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OriginalError(f"the table of its parts is damaged: {error}") from error
    if len(table) > _MOST_PARTS or any(
        size < 1 or coded < 0 or width not in (1, 2, 3) for _, size, coded, width in table
    ):
        raise OriginalError("the table of its parts makes no sense")
    if sum(size for _, size, _, _ in table) > largest:
        raise OriginalError(f"it would have more than {largest} bytes")
    found, at = [], start + length
    for codec, size, coded, width in table:
        found.append(Part(codec, size, container[at : at + coded], width))
        at += coded
    if at != len(container):
        raise OriginalError(f"{len(container)} bytes are there, {at} are announced")
    return found


def restored(container: bytes, largest: int = 1 << 30) -> Iterator[bytes]:
    """The original, stretch by stretch; raises ``OriginalError``. Needs about three times the largest stretch in memory."""
    for part in parts(container, largest):
        plain = _decoded(part)
        if len(plain) != part.size:
            raise OriginalError(f"a part of {part.codec} has {len(plain)} bytes, {part.size} are announced")
        yield plain


def _decoded(part: Part) -> bytes:
    if part.codec == "raw":
        return part.data
    if part.codec == "deflate":
        return _inflated(part)
    try:
        if part.codec == "flac":
            return _sound(part)
        return _jpeg_ls(part) if part.codec == "jpeg-ls" else _jpeg_2000(part)
    except OriginalError:
        raise
    except (RuntimeError, ValueError, KeyError, struct.error) as error:  # what the codecs raise for damaged bytes
        raise OriginalError(f"a part of {part.codec} can't be decoded: {error}") from error


def _inflated(part: Part) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(part.data, part.size + 1)
    except zlib.error as error:
        raise OriginalError(f"a deflated part is damaged: {error}") from error
    if not stream.eof or stream.unused_data:
        raise OriginalError("a deflated part does not end where it should")
    return plain


def _jpeg_ls(part: Part) -> bytes:
    from jpeg_ls import decode_buffer

    if part.data[:4] != b"\xff\xd8\xff\xf7":  # SOI, SOF55 at once: T.87 C.2.2
        raise OriginalError("a JPEG-LS frame does not begin as one")
    bits, rows, columns, samples = struct.unpack_from(">BHHB", part.data, 6)
    if rows * columns * samples * -(-bits // 8) != part.size:
        raise OriginalError("a JPEG-LS frame has another size than is announced")
    return bytes(decode_buffer(part.data)[0])


def _jpeg_2000(part: Part) -> bytes:
    import numpy as np
    from openjpeg.utils import decode

    if part.data[:4] != b"\xff\x4f\xff\x51":  # SOC, SIZ: T.800 A.5.1
        raise OriginalError("a JPEG 2000 frame does not begin as one")
    right, bottom, left, top = struct.unpack_from(">IIII", part.data, 8)
    if (right - left) * (bottom - top) * part.width != part.size:
        raise OriginalError("a JPEG 2000 frame has another size than is announced")
    return bytes(np.ascontiguousarray(decode(part.data, j2k_format=0), dtype=f"<u{part.width}").tobytes())


def _sound(part: Part) -> bytes:
    import numpy as np
    import soundfile

    with soundfile.SoundFile(io.BytesIO(part.data)) as file:
        if file.frames * file.channels * part.width != part.size:
            raise OriginalError("a FLAC stream has another length than is announced")
        if part.width == 2:
            return bytes(file.read(dtype="int16", always_2d=True).astype("<i2").tobytes())
        wide = np.ascontiguousarray(file.read(dtype="int32", always_2d=True)).astype("<i4")
    return bytes(wide.view(np.uint8).reshape(-1, 4)[:, 1:].tobytes())  # 24 bits stand in the upper three bytes
