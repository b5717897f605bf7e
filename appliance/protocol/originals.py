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
``jpeg-xl``   one frame, ISO/IEC 18181 lossless (codestream or file format); samples as above, colours by pixel
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

Codec = Literal["raw", "deflate", "jpeg-ls", "jpeg-2000", "jpeg-xl", "flac"]

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
        return _DECODERS[part.codec](part)
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


def _jpeg_xl(part: Part) -> bytes:
    import numpy as np
    from imagecodecs import jpegxl_decode

    rows, columns = _size_of_jpeg_xl(part.data)
    if part.size not in (rows * columns * part.width, rows * columns * part.width * 3):
        raise OriginalError("a JPEG XL frame has another size than is announced")
    return bytes(np.ascontiguousarray(jpegxl_decode(part.data, numthreads=1)).astype(f"<u{part.width}").tobytes())


def _size_of_jpeg_xl(data: bytes) -> tuple[int, int]:
    """Rows and columns, from the size header (ISO/IEC 18181-1, D.2); raises ``OriginalError``."""
    at = 0
    if data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":  # the file format (18181-2): boxes, the codestream in one of them
        at = 12
        while data[at + 4 : at + 8] not in (b"jxlc", b""):
            at += max(8, int.from_bytes(data[at : at + 4], "big"))
        at += 8
    if data[at : at + 2] != b"\xff\x0a":
        raise OriginalError("a JPEG XL frame does not begin as one")
    bits, taken = int.from_bytes(data[at + 2 : at + 18], "little"), 0

    def take(count: int) -> int:
        nonlocal taken
        value = bits >> taken & ((1 << count) - 1)
        taken += count
        return value

    small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    rows = side()
    ratio = _RATIOS[take(3)]
    return rows, rows * ratio[0] // ratio[1] if ratio else side()


_RATIOS: tuple[tuple[int, int] | None, ...] = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


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


_DECODERS = {"jpeg-ls": _jpeg_ls, "jpeg-2000": _jpeg_2000, "jpeg-xl": _jpeg_xl, "flac": _sound}
