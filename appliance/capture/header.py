"""The top level of a DICOM data set, read from its beginning while it arrives.

What this module keeps true: the time is linear and the memory bounded by the prefix, whatever the bytes are: nested
sequences are skipped with a counter, not by recursion; no length in the data makes anything be allocated. The values of
interest are taken as raw bytes; nothing is decoded here and nothing of the data set is changed.

Encoding: DICOM PS3.5, section 7 (elements), 7.5 (sequences), A.4 (encapsulated fragments); PS3.10, section 7 (file meta).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from typing import NamedTuple

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
WAVEFORM_SEQUENCE = 0x54000100
_BULK = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA, WAVEFORM_SEQUENCE})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_DEEPEST = 64
_MOST_ELEMENTS = 200_000

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"


class NotDicom(Exception):  # noqa: N818 - the condition's name
    """The bytes can't be read as a DICOM data set; the message says where."""


class Scan(NamedTuple):
    """What the beginning of a data set says.

    ``values`` holds raw values by tag. ``bulk`` is the first element of pixel or waveform data (0 if none was met) and
    ``start`` the offset of its value; ``end`` is the offset at which the last element met ends, ``None`` when only its
    fragments can tell. ``finished`` says that nothing of interest can follow.
    """

    values: dict[int, bytes]
    bulk: int
    start: int
    end: int | None
    finished: bool


class Meta(NamedTuple):
    """The file meta information of a Part 10 file; ``start`` is the offset of the data set."""

    transfer_syntax_uid: str
    sop_class_uid: str
    instance_uid: str
    start: int


def uid(value: bytes) -> str:
    """A UID without its padding."""
    return value.rstrip(b"\0 ").decode("ascii", "replace")


def inflate(data: bytes, limit: int) -> bytes:
    """At most ``limit`` bytes of a deflated data set's beginning; raises ``NotDicom``."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, limit)
    except zlib.error as error:
        raise NotDicom(f"the deflated data set can't be inflated ({error})") from error


class _Reader:
    """Element headers of one encoding."""

    def __init__(self, data: bytes, *, little: bool) -> None:
        self.data = data
        self._left = _MOST_ELEMENTS
        order = "<" if little else ">"
        self._tag = struct.Struct(order + "HH").unpack_from
        self._long = struct.Struct(order + "I").unpack_from
        self._short = struct.Struct(order + "H").unpack_from

    def header(self, offset: int, *, implicit: bool) -> tuple[int, bytes, int, int] | None:
        """(tag, VR, length, offset of the value), or None when the data end inside the header."""
        data = self.data
        self._left -= 1
        if self._left < 0:
            raise NotDicom(f"there are more than {_MOST_ELEMENTS} elements before the pixel data")
        if offset + 8 > len(data):
            return None
        group, element = self._tag(data, offset)
        tag = group << 16 | element
        vr = data[offset + 4 : offset + 6]
        # Delimiters have no VR; a VR that is none marks an element left implicit by a careless writer.
        if implicit or group == 0xFFFE or not (vr.isalpha() and vr.isupper()):
            return tag, b"", self._long(data, offset + 4)[0], offset + 8
        if vr in _SHORT:
            return tag, vr, self._short(data, offset + 6)[0], offset + 8
        if offset + 12 > len(data):
            return None
        return tag, vr, self._long(data, offset + 8)[0], offset + 12

    def after_sequence(self, offset: int, *, implicit: bool) -> int | None:
        """The offset behind a sequence of undefined length whose items begin at ``offset``; None if the data end first."""
        implicit_stack = [implicit]  # one entry per open sequence
        inside_item = False
        depth: list[bool] = []  # per outer sequence: whether we were inside an item of it
        while True:
            met = self.header(offset, implicit=implicit_stack[-1])
            if met is None:
                return None
            tag, vr, length, offset = met
            if tag == _ITEM and not inside_item:
                inside_item = length == UNDEFINED
                offset += 0 if inside_item else length
            elif tag == _ITEM_END and inside_item:
                inside_item = False
            elif tag == _SEQUENCE_END and not inside_item:
                implicit_stack.pop()
                if not implicit_stack:
                    return offset
                inside_item = depth.pop()
            elif tag >> 16 == 0xFFFE or not inside_item:
                raise NotDicom(f"a sequence is broken at byte {offset}")
            elif length == UNDEFINED:
                if len(implicit_stack) == _DEEPEST:
                    raise NotDicom(f"sequences are nested deeper than {_DEEPEST}")
                depth.append(inside_item)
                implicit_stack.append(implicit_stack[-1] or vr == b"UN")
                inside_item = False
            else:
                offset += length


def scan(data: bytes, transfer_syntax_uid: str, wanted: Collection[int]) -> Scan:
    """Read the top level of the data set that begins with ``data`` (already inflated); raises ``NotDicom``.

    Sequences among ``wanted`` are given raw, as their items lie in the data set.
    """
    implicit = transfer_syntax_uid == IMPLICIT_LITTLE
    reader = _Reader(data, little=transfer_syntax_uid != EXPLICIT_BIG)
    last = max(wanted)
    values: dict[int, bytes] = {}
    offset = 0
    while True:
        met = reader.header(offset, implicit=implicit)
        if met is None:
            torn = any(data[offset:])  # zeros are the padding of a careless writer
            return Scan(values, 0, 0, len(data) + 2 if torn else offset, finished=False)
        tag, vr, length, start = met
        bulk = tag if tag in _BULK else 0
        if bulk and tag != WAVEFORM_SEQUENCE and length == UNDEFINED:
            return Scan(values, bulk, start, None, finished=True)
        if length == UNDEFINED:
            end = None if tag > last else reader.after_sequence(start, implicit=implicit or vr == b"UN")
            if end is None:  # where it ends can't be known from here: nothing more is claimed about the length
                return Scan(values, bulk, start, len(data), finished=tag > last)
        else:
            end = start + length
        if tag in wanted and end <= len(data):
            values[tag] = data[start:end]
        if bulk or end > len(data):
            return Scan(values, bulk, start, end, finished=tag > last)
        offset = end


def code_meaning(sequence: bytes, transfer_syntax_uid: str) -> bytes:
    """The Code Meaning (0008,0104) of the first item of a raw code sequence; empty when there is none."""
    implicit = transfer_syntax_uid == IMPLICIT_LITTLE
    reader = _Reader(sequence, little=transfer_syntax_uid != EXPLICIT_BIG)
    met = reader.header(0, implicit=True)
    if met is None or met[0] != _ITEM:
        return b""
    offset = 8
    while (met := reader.header(offset, implicit=implicit)) is not None:
        tag, _, length, start = met
        if tag == 0x00080104:
            return sequence[start : start + length]
        if tag >> 16 == 0xFFFE or length == UNDEFINED:
            return b""
        offset = start + length
    return b""


def file_meta(data: bytes) -> Meta | None:
    """The meta information of a Part 10 file from its first bytes, or None if it is none; raises ``NotDicom``."""
    if data[128:132] != b"DICM":
        return None
    reader = _Reader(data, little=True)
    offset = 132
    found: dict[int, str] = {}
    while (met := reader.header(offset, implicit=False)) is not None and met[0] >> 16 == 2:
        tag, _, length, start = met
        if length > len(data) - start:
            raise NotDicom("the file meta information is cut off")
        found[tag] = uid(data[start : start + length]) if tag in {0x00020002, 0x00020003, 0x00020010} else ""
        offset = start + length
    if not found.get(0x00020010):
        raise NotDicom("the file meta information names no transfer syntax")
    return Meta(found[0x00020010], found.get(0x00020002, ""), found.get(0x00020003, ""), offset)


def looks_like_data_set(data: bytes) -> str:
    """The transfer syntax of a data set without file meta, guessed from its first element; empty if it is none."""
    if len(data) < 12 or data[:2] != b"\x08\x00" or data[3] != 0:
        return ""
    if data[4:6] in _SHORT:
        return EXPLICIT_LITTLE
    return IMPLICIT_LITTLE if struct.unpack_from("<I", data, 4)[0] <= 256 else ""


class Fragments:
    """Follows the fragments of encapsulated pixel data through the stream, to know whether the last one is whole."""

    def __init__(self) -> None:
        self._remaining = 0
        self._head = b""
        self.ended = False

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Go on with ``data``; raises ``NotDicom`` where a fragment should begin and none does."""
        position, size = 0, len(data)
        while not self.ended:
            if self._remaining:
                step = min(self._remaining, size - position)
                self._remaining -= step
                position += step
            if position == size:
                return
            take = min(8 - len(self._head), size - position)
            self._head += bytes(data[position : position + take])
            position += take
            if len(self._head) < 8:
                return
            group, element, length = struct.unpack("<HHI", self._head)
            self._head = b""
            if (group, element) == (0xFFFE, 0xE0DD):
                self.ended = True
            elif (group, element) != (0xFFFE, 0xE000) or length == UNDEFINED:
                raise NotDicom("the compressed pixel data are broken: no fragment begins where one should")
            else:
                self._remaining = length

    @property
    def whole(self) -> bool:
        """Whether the data may end here: at the delimiter, or (careless writers) between two fragments."""
        return self.ended or (self._remaining == 0 and not self._head)


class DataSetReader:
    """Reads a data set as it arrives: the wanted values from its beginning, and whether it is whole at its end.

    Feed it every byte of the data set in order. Memory: the prefix (at most ``PREFIX_MOST`` bytes), dropped once read.
    """

    PREFIX = 1 << 17
    PREFIX_MOST = 1 << 23

    def __init__(self, transfer_syntax_uid: str, wanted: Collection[int]) -> None:
        self.transfer_syntax_uid = transfer_syntax_uid
        self.size = 0
        self.waveform = b""
        self._wanted = wanted
        self._prefix = bytearray()
        self._need = self.PREFIX
        self._scan: Scan | None = None
        self._fragments: Fragments | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Go on with ``data``; raises ``NotDicom``."""
        self.size += len(data)
        if self._scan is None:
            self._prefix += data
            if len(self._prefix) >= self._need:
                self._look(final=False)
        elif self._fragments is not None:
            self._fragments.feed(data)

    def finish(self) -> dict[int, bytes]:
        """The wanted values; raises ``NotDicom`` when the data set is cut off or is none at all."""
        if self._scan is None:
            self._look(final=True)
        seen = self._scan
        if seen is None or (not seen.values and not seen.bulk):
            raise NotDicom("no DICOM data set: none of the elements that each has are there")
        if self._fragments is not None and not self._fragments.whole:
            raise NotDicom("the compressed pixel data are cut off inside a fragment")
        # One missing byte is the padding of an odd length that some writers forget.
        if self.transfer_syntax_uid != DEFLATED and seen.end is not None and self.size < seen.end - 1:
            what = "pixel data" if seen.bulk == PIXEL_DATA else "data set"
            raise NotDicom(f"the {what} is cut off: {self.size} of at least {seen.end} bytes are there")
        return seen.values

    @property
    def bulk(self) -> int:
        """The tag of the pixel or waveform data met; 0 if none was."""
        return self._scan.bulk if self._scan is not None else 0

    def _look(self, *, final: bool) -> None:
        data = bytes(self._prefix)
        if self.transfer_syntax_uid == DEFLATED:
            data = inflate(data, self.PREFIX_MOST)
        seen = scan(data, self.transfer_syntax_uid, self._wanted)
        if not seen.finished and not final and len(self._prefix) < self.PREFIX_MOST:
            self._need = min(4 * self._need, self.PREFIX_MOST)
            return
        self._scan = seen
        if seen.bulk == WAVEFORM_SEQUENCE:
            self.waveform = data[seen.start : seen.start + (1 << 16)]
        if seen.end is None and self.transfer_syntax_uid != DEFLATED:
            self._fragments = Fragments()
            self._fragments.feed(data[seen.start :])
        self._prefix = bytearray()
