"""A DICOM object without its patient: PS3.15 annex E, applied to the bytes of one file.

What this module keeps true:

1. What leaves was decided element by element (``profile.action``); beyond the table, private and unknown elements, URLs,
   binary values that no picture or sound needs, text that is not plain ASCII and text that holds any part of a name or number
   found anywhere in the object do not leave.
2. The same patient and the same study become the same pseudonyms on this box, and nobody without its key can turn them
   back or try names out (``Blind`` is a keyed hash).
3. Pictures that may have text burned in leave only with it blanked: inside the areas that the site gave, or outside the
   ultrasound regions that the machine gave. Otherwise ``Withheld`` says what to do. Only pictures and waveforms can leave:
   a report or a PDF is free text.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from typing import Any, NamedTuple

from appliance.interop import profile
from appliance.interop.comments import without_comments
from appliance.interop.profile import Options

Blind = Callable[[str], str]
"""A keyed hash: text to 32 hex digits (``BoxKey.blind``)."""


class Withheld(Exception):  # noqa: N818 - it is an outcome, and named as one
    """The object can't leave without its patient; the message says why and what to do."""


class Deidentified(NamedTuple):
    """The new file; how many elements were removed, emptied or replaced; the patient's pseudonym."""

    data: bytes
    changed: int
    pseudonym: str


_STANDARD_ROOT = "1.2.840.10008."
_TEXT = frozenset({"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"})
_TIMES = frozenset({"DA", "DT", "TM"})
_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_NEEDED_BINARY = frozenset(
    {0x7FE00010, 0x7FE00001, 0x7FE00002, 0x54001010, 0x5400100A, 0x00281201, 0x00281202, 0x00281203, 0x00283006}
)
_NEEDED_CODES = frozenset({0x00080060, 0x00080008, 0x00280004, 0x00080068, 0x00080005, 0x003A0220, 0x00540410})
"""Code strings whose values are terms of the standard; a name that equals one says nothing."""
_DETECTORS = frozenset({"CR", "DX", "PX", "MG", "ECG", "AU", "GMS"})
"""Modalities whose pictures are made by a detector, or that are no pictures: no text unless the object says so."""
_SHORTEST = 3
_NAME_PARTS = re.compile(r"[\s^=,;.\-_/\\'()\[\]]+")
_OLDEST = 89


def pseudonym(blind: Blind, issuer: str, patient_id: str, name: str = "") -> str:
    """The patient's pseudonym on this box: ``anon-`` and 12 hex digits; of the name where there is no number."""
    return "anon-" + blind(f"patient\0{issuer}\0{patient_id or name}")[:12]


def mapped_uid(blind: Blind, uid: str) -> str:
    """Another UID for a UID, the same one each time (root 2.25, PS3.5 B.2); the standard's own stay."""
    if not uid or uid.startswith(_STANDARD_ROOT):
        return uid
    return f"2.25.{int(blind(f'uid{chr(0)}{uid}'), 16)}"


def deidentified(data: bytes, blind: Blind, options: Options, also: Iterable[str] = ()) -> Deidentified:
    """The object without its patient; raises ``Withheld``. ``also``: names and numbers known from elsewhere."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning may quote a value, and a value may be a name
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), force=data[128:132] != b"DICM")
            dataset.decode()
        except (InvalidDicomError, AttributeError, KeyError, TypeError, ValueError, NotImplementedError, OSError):
            raise Withheld("it can't be read as DICOM; let it leave with its identity, or not at all") from None
        try:
            return _deidentified(dataset, blind, options, also)
        except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise Withheld(f"an element can't be judged ({type(error).__name__}); it stays here") from None


def _deidentified(dataset: Any, blind: Blind, options: Options, also: Iterable[str]) -> Deidentified:
    if "PixelData" not in dataset and "WaveformSequence" not in dataset:
        raise Withheld("it holds neither a picture nor a waveform; documents are not de-identified")
    who = pseudonym(
        blind,
        str(dataset.get("IssuerOfPatientID", "")),
        str(dataset.get("PatientID", "")),
        str(dataset.get("PatientName", "")),
    )
    cleaned = _clean_pixels(dataset, options)
    words = frozenset(_words([*_identities(dataset), *also]))
    walk = _Walk(blind, options, words, _shift(blind, who))
    walk.through(dataset)
    _declare(dataset, who, options, cleaned)
    return Deidentified(_written(dataset, blind, options), walk.changed, who)


class _Walk:
    """Goes through a data set and its sequences, and changes them in place."""

    def __init__(self, blind: Blind, options: Options, words: frozenset[str], shift: timedelta) -> None:
        self._blind, self._options, self._words, self._shift = blind, options, words, shift
        self.changed = 0

    def through(self, dataset: Any) -> None:
        for element in list(dataset):
            if not self._element(element):
                del dataset[element.tag]
                self.changed += 1

    def _element(self, element: Any) -> bool:
        """Whether the element may stay, as it is now."""
        tag, vr, options = int(element.tag), str(element.VR), self._options
        if element.tag.is_private or ((vr == "UN" or element.keyword == "") and not _repeating(tag)):
            return False
        chosen = "keep" if options.keeps(tag) else profile.action(tag)
        if vr == "SQ":
            return self._sequence(element, chosen)
        if vr == "UI":
            return self._uids(element)
        if vr in _TIMES and (chosen is not None or vr != "TM"):
            return self._time(element, chosen)
        if vr == "AS":
            return chosen == "keep" and self._age(element)
        if chosen is None or chosen == "keep":
            return self._harmless(element, tag, vr)
        if chosen == "remove":
            return False
        self.changed += 1
        element.value = _dummy(vr) if chosen == "dummy" else None
        return True

    def _sequence(self, element: Any, chosen: str | None) -> bool:
        if chosen in ("remove", "dummy"):
            return False
        if chosen == "empty":
            element.value = []
            self.changed += 1
            return True
        for item in element.value:
            self.through(item)
        return True

    def _uids(self, element: Any) -> bool:
        if self._options.uids or element.value is None:
            return True
        many = not isinstance(element.value, str)
        values = [str(one) for one in element.value] if many else [str(element.value)]
        mapped = [mapped_uid(self._blind, one) for one in values]
        self.changed += mapped != values
        element.value = mapped if many else mapped[0]
        return True

    def _time(self, element: Any, chosen: str | None) -> bool:
        if self._options.dates == "kept":
            return self._harmless(element, int(element.tag), str(element.VR))
        self.changed += 1
        if self._options.dates == "shifted" and element.VR in ("DA", "DT") and int(element.tag) != 0x00100030:
            element.value = _shifted(element.value, self._shift)
            return True
        if self._options.dates == "shifted" and element.VR == "TM":
            return True
        if chosen in ("empty", "dummy"):
            element.value = None
            return True
        return False

    def _age(self, element: Any) -> bool:
        match = re.fullmatch(r"(\d{3})([DWMY])", str(element.value or ""))
        if match is None:
            return False
        if match.group(2) == "Y" and int(match.group(1)) > _OLDEST:
            element.value = "090Y"
        return True

    def _harmless(self, element: Any, tag: int, vr: str) -> bool:
        if vr in _BINARY:
            return tag in _NEEDED_BINARY
        if vr in ("PN", "UR"):
            return False
        if vr not in _TEXT or tag in _NEEDED_CODES:
            return True
        text = str(element.value or "")
        if not text.isascii() or any(ord(letter) < 32 and letter not in "\r\n\t\f" for letter in text):
            return False
        plain = _plain(text)
        return not any(word in plain for word in self._words)


def _repeating(tag: int) -> bool:
    return (tag >> 16) & 0xFF00 == 0x6000  # overlay planes: geometry may stay, data does not


def _dummy(vr: str) -> Any:
    return {"LO": "removed", "SH": "removed", "ST": "removed", "LT": "removed", "UT": "removed", "CS": "REMOVED"}.get(
        vr
    )


def _identities(dataset: Any) -> Iterator[str]:
    """Everything in the object that names a person or is a number of one."""
    for element in dataset.iterall():
        if element.VR == "PN" or element.keyword in (
            "PatientID",
            "OtherPatientIDs",
            "AccessionNumber",
            "AdmissionID",
            "PatientTelephoneNumbers",
            "PatientAddress",
        ):
            value = element.value
            yield from (str(one) for one in (value if isinstance(value, (list, tuple)) else [value]) if one)


def _words(identities: Iterable[str]) -> Iterator[str]:
    for identity in identities:
        for part in (identity, *_NAME_PARTS.split(identity)):
            plain = _plain(part)
            if len(plain) >= _SHORTEST:
                yield plain


def names_in(text: str, identities: Iterable[str]) -> bool:
    """Whether any part of a name or number stands in the text."""
    plain = _plain(text)
    return any(word in plain for word in _words(identities))


def _plain(text: str) -> str:
    """For comparing: compatibility forms, accents and case folded, what separates words dropped."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    return "".join(letter for letter in folded if letter.isalnum())


def _shift(blind: Blind, who: str) -> timedelta:
    """Days that this patient's dates move back: 1 to 730, the same each time."""
    return timedelta(days=1 + int(blind(f"dates\0{who}"), 16) % 730)


def _shifted(value: Any, shift: timedelta) -> Any:
    match = re.match(r"(\d{4})(\d{2})(\d{2})", str(value or ""))
    if match is None:
        return None
    try:
        moved = date(*(int(part) for part in match.groups())) - shift
    except (ValueError, OverflowError):
        return None
    return moved.strftime("%Y%m%d") + re.sub(r"[^0-9.]", "", str(value)[8:21])


def _declare(dataset: Any, who: str, options: Options, cleaned: bool) -> None:
    from pydicom.dataset import Dataset

    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = who, who
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Bedside, DICOM PS3.15 annex E"
    dataset.LongitudinalTemporalInformationModified = {
        "removed": "REMOVED",
        "shifted": "MODIFIED",
        "kept": "UNMODIFIED",
    }[options.dates]
    items = []
    for code in (*options.codes(), *((profile.CLEAN_PIXELS,) if cleaned else ())):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = items
    if "PixelData" in dataset:
        dataset.BurnedInAnnotation = "NO"


def _clean_pixels(dataset: Any, options: Options) -> bool:
    """Blank what may be burned in; whether anything was. Raises ``Withheld``."""
    if "PixelData" not in dataset:
        return False
    modality = str(dataset.get("Modality", ""))
    said = str(dataset.get("BurnedInAnnotation", "")).upper()
    areas = [one for one in options.areas if one.modality in ("*", modality)]
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    boxes = [
        (int(one.top * rows), int(one.left * columns), -int(-one.bottom * rows // 1), -int(-one.right * columns // 1))
        for one in areas
    ]
    regions = _regions(dataset, rows, columns)
    if boxes:
        _blank(dataset, lambda shape: _inside(shape, boxes))
        return True
    if said == "NO" or (said != "YES" and modality in _DETECTORS):
        return False
    if regions:
        _blank(dataset, lambda shape: _outside(shape, regions))
        return True
    raise Withheld(
        f"text may be burned into this picture (modality {modality or 'unknown'}); give the areas to blank in "
        "deidentify.areas, or keep it here"
    )


def _regions(dataset: Any, rows: int, columns: int) -> list[tuple[int, int, int, int]]:
    """Sequence of Ultrasound Regions (PS3.3 C.8.5.5) as top, left, bottom, right; ends exclusive."""
    found = []
    for item in dataset.get("SequenceOfUltrasoundRegions", None) or []:
        left, top = int(item.RegionLocationMinX0), int(item.RegionLocationMinY0)
        right, bottom = int(item.RegionLocationMaxX1) + 1, int(item.RegionLocationMaxY1) + 1
        if 0 <= left < right <= columns and 0 <= top < bottom <= rows:
            found.append((top, left, bottom, right))
    return found


def _inside(shape: tuple[int, int], boxes: list[tuple[int, int, int, int]]) -> Any:
    import numpy as np

    mask = np.zeros(shape, bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def _outside(shape: tuple[int, int], boxes: list[tuple[int, int, int, int]]) -> Any:
    return ~_inside(shape, boxes)


def _blank(dataset: Any, masked: Callable[[tuple[int, int]], Any]) -> None:
    """Set the masked pixels of every frame to black; compressed pixels are decoded first."""
    import numpy as np

    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress(as_rgb=True, generate_instance_uid=False)
    if "FloatPixelData" in dataset or int(dataset.BitsAllocated) not in (8, 16):
        raise Withheld("its pixels are not of 8 or 16 bits; burned-in text can't be blanked")
    samples, planar = int(dataset.SamplesPerPixel), int(dataset.get("PlanarConfiguration", 0) or 0)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    order = ">" if not dataset.file_meta.TransferSyntaxUID.is_little_endian else "<"
    values = np.frombuffer(bytes(dataset.PixelData), f"{order}u{int(dataset.BitsAllocated) // 8}").copy()
    whole = len(values) // (rows * columns * samples) * rows * columns * samples
    shape = (-1, samples, rows, columns) if planar else (-1, rows, columns, samples)
    frames = values[:whole].reshape(shape)
    light = str(dataset.PhotometricInterpretation) == "MONOCHROME1"
    black = (1 << int(dataset.BitsStored)) - 1 if light else 0
    chroma = 1 << (int(dataset.BitsStored) - 1) if "YBR" in str(dataset.PhotometricInterpretation) else black
    mask = masked((rows, columns))
    for sample in range(samples):
        plane = frames[:, sample] if planar else frames[..., sample]
        plane[:, mask] = black if sample == 0 else chroma
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW" if int(dataset.BitsAllocated) == 16 else "OB"


def _written(dataset: Any, blind: Blind, options: Options) -> bytes:
    import pydicom
    from pydicom.dataset import FileMetaDataset

    old, meta = dataset.file_meta, FileMetaDataset()
    instance = str(old.get("MediaStorageSOPInstanceUID", dataset.get("SOPInstanceUID", "")))
    meta.MediaStorageSOPClassUID = old.get("MediaStorageSOPClassUID", dataset.get("SOPClassUID", ""))
    meta.MediaStorageSOPInstanceUID = instance if options.uids else mapped_uid(blind, instance)
    meta.TransferSyntaxUID = old.get("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)
    dataset.file_meta, dataset.preamble = meta, b"\0" * 128
    if meta.TransferSyntaxUID.is_compressed and "PixelData" in dataset:
        without_comments(dataset)
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()
