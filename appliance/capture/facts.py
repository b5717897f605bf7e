"""What a capture says of itself: patient, study, body part, view.

What this module keeps true: facts are read, never guessed from a file's name or time; text is decoded by the data set's own
character set; a field that can't be read is empty and never keeps a capture out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Literal, cast

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.valuerep import PersonName

from appliance.capture.header import DataSetReader, NotDicom, code_meaning, file_meta, looks_like_data_set, uid
from appliance.capture.intake import Facts
from appliance.capture.stethoscope_positions import PLACES
from appliance.records import Modality, Patient

CHARACTER_SET, STUDY_DATE, ACCESSION, MODALITY = 0x00080005, 0x00080020, 0x00080050, 0x00080060
SOP_CLASS, SOP_INSTANCE = 0x00080016, 0x00080018
STUDY_DESCRIPTION, SERIES_DESCRIPTION, ANATOMIC_REGION = 0x00081030, 0x0008103E, 0x00082218
NAME, PATIENT_ID, ISSUER, BIRTH_DATE, SEX, AGE = 0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040, 0x00101010
BODY_PART, VIEW_POSITION = 0x00180015, 0x00185101
STUDY_UID, SERIES_UID, STUDY_INSTANCES = 0x0020000D, 0x0020000E, 0x00201208
VIEW_CODE = 0x00540220
WANTED = frozenset(
    {
        *(CHARACTER_SET, STUDY_DATE, ACCESSION, MODALITY, SOP_CLASS, SOP_INSTANCE),
        *(STUDY_DESCRIPTION, SERIES_DESCRIPTION, ANATOMIC_REGION),
        *(NAME, PATIENT_ID, ISSUER, BIRTH_DATE, SEX, AGE, BODY_PART, VIEW_POSITION, STUDY_UID, SERIES_UID, VIEW_CODE),
        STUDY_INSTANCES,
    }
)

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_BY_CLASS = {
    _STORAGE + "1": Modality.CHEST_XRAY,
    _STORAGE + "1.1": Modality.CHEST_XRAY,
    _STORAGE + "1.1.1": Modality.CHEST_XRAY,
    _STORAGE + "6": Modality.LUNG_ULTRASOUND,
    _STORAGE + "6.1": Modality.LUNG_ULTRASOUND,
    _STORAGE + "3": Modality.LUNG_ULTRASOUND,
    _STORAGE + "3.1": Modality.LUNG_ULTRASOUND,
}
_BY_MODALITY = {"CR": Modality.CHEST_XRAY, "DX": Modality.CHEST_XRAY, "US": Modality.LUNG_ULTRASOUND}
_AUDIO = _STORAGE + "9.4.2"
_PHONOCARDIOGRAM = b"109114"
_LUNG = re.compile(r"\b(lungs?|breath|respir\w*)\b", re.IGNORECASE)
_HEART = re.compile(
    r"\b(hearts?|cardiac|phonocardio\w*|aortic|pulmonary|pulmonic|tricuspid|mitral|erb)\b", re.IGNORECASE
)
_POSITIONS = tuple(sorted(PLACES, key=len, reverse=True))

FOLDERS: Mapping[str, Modality] = {modality.value: modality for modality in Modality}
_DICOMDIR = "1.2.840.10008.1.3.10"


def media_type_of(beginning: bytes) -> str:
    """The media type of a file by its first bytes (256 are enough); empty when it is nothing the box takes."""
    if beginning[128:132] == b"DICM":
        return "application/dicom"
    if beginning.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if beginning.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if beginning[:4] in {b"RIFF", b"RF64"} and beginning[8:12] == b"WAVE":
        return "audio/wav"
    if beginning.startswith(b"fLaC"):
        return "audio/flac"
    if beginning.startswith(b"PK\x03\x04"):
        return "application/zip"
    return "application/dicom" if looks_like_data_set(beginning) else ""


def facts_of_data_set(
    values: Mapping[int, bytes], transfer_syntax_uid: str, source: str, waveform: bytes = b""
) -> Facts:
    """The facts in the raw ``values`` of a data set; ``waveform`` is the beginning of its Waveform Sequence.

    An X-ray or an ultrasound is taken for the one the box can read; whether it shows a chest is for the reading to judge.
    """
    encodings = encodings_of(values.get(CHARACTER_SET, b""))

    def text(tag: int) -> str:
        return text_of(values.get(tag, b""), encodings)

    def meaning(tag: int) -> str:
        return text_of(code_meaning(values.get(tag, b""), transfer_syntax_uid), encodings)

    description = " - ".join(part for part in (text(STUDY_DESCRIPTION), text(SERIES_DESCRIPTION)) if part)
    body_part = (text(BODY_PART) or meaning(ANATOMIC_REGION)).upper()
    sop_class = uid(values.get(SOP_CLASS, b""))
    study_date = text(STUDY_DATE)
    return Facts(
        modality=_modality(sop_class, text(MODALITY), f"{description} {body_part}", waveform),
        media_type="application/dicom",
        source=source,
        patient=patient_of(values, encodings, study_date),
        study_uid=uid(values.get(STUDY_UID, b"")),
        series_uid=uid(values.get(SERIES_UID, b"")),
        instance_uid=uid(values.get(SOP_INSTANCE, b"")),
        sop_class_uid=sop_class,
        transfer_syntax_uid=transfer_syntax_uid,
        study_date=study_date,
        body_part=body_part,
        view=_view(text(VIEW_POSITION), meaning(VIEW_CODE)),
        accession_number=text(ACCESSION),
        description=description,
        study_instances=_count(text(STUDY_INSTANCES)),
        position=next((word for word in _POSITIONS if word in description.lower()), "") if sop_class == _AUDIO else "",
    )


def facts_of(file: Path | bytes, source: str, modality: Modality = Modality.OTHER) -> Facts:
    """The facts of a file, or of a whole file's bytes; ``modality`` is for files that can't say theirs.

    Raises ``NotDicom`` for a DICOM file that is broken or cut off, or a file of a kind the box doesn't take.
    """
    reader = FileReader(source, modality)
    if isinstance(file, bytes):
        reader.feed(file)
    else:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                reader.feed(block)
    return reader.finish()


class UnknownKind(NotDicom):
    """The file is of no kind the box takes."""


class FileReader:
    """Learns a file's facts while its bytes pass by; feed it all of them, in order."""

    _BEGINNING = 1 << 12
    _END = 1 << 10

    def __init__(self, source: str, modality: Modality = Modality.OTHER) -> None:
        self.media_type = ""
        self._source = source
        self._modality = modality
        self._beginning = bytearray()
        self._end = b""
        self._size = 0
        self._claimed = 0
        self._data_set: DataSetReader | None = None
        self._known = False

    def feed(self, data: bytes) -> None:
        """Go on with ``data``; raises ``NotDicom``, or ``UnknownKind`` as soon as its beginning has been seen."""
        self._size += len(data)
        self._end = data[-self._END :] if len(data) >= self._END else (self._end + data)[-self._END :]
        if self._data_set is not None:
            self._data_set.feed(data)
        elif not self._known:
            self._beginning += data
            if len(self._beginning) >= self._BEGINNING:
                self._recognise()

    def finish(self) -> Facts:
        """The facts; raises ``NotDicom`` with the reason why the file can't be taken."""
        if not self._known:
            self._recognise()
        if self._data_set is not None:
            facts = facts_of_data_set(
                self._data_set.finish(), self._data_set.transfer_syntax_uid, self._source, self._data_set.waveform
            )
            if not facts.sop_class_uid or not facts.instance_uid:
                raise NotDicom(
                    "the DICOM data set has no SOP Class UID or SOP Instance UID; send it again from its source"
                )
            return facts
        if (self.media_type == "image/png" and b"IEND" not in self._end) or self._size < self._claimed:
            raise NotDicom(f"the {self.media_type.split('/')[1].upper()} file is cut off; copy it again")
        return Facts(modality=self._modality, media_type=self.media_type, source=self._source, patient=Patient())

    def _recognise(self) -> None:
        beginning = bytes(self._beginning)
        self._known = True
        self.media_type = media_type_of(beginning)
        if not beginning:
            raise UnknownKind("the file is empty")
        if self.media_type in {"", "application/zip"}:
            raise UnknownKind("neither DICOM nor PNG, JPEG, WAV or FLAC")
        if self.media_type == "audio/wav" and beginning[4:8] not in {b"\0\0\0\0", b"\xff\xff\xff\xff"}:
            self._claimed = 8 + int.from_bytes(beginning[4:8], "little")
        if self.media_type == "application/dicom":
            meta = file_meta(beginning)
            if meta is not None and meta.sop_class_uid == _DICOMDIR:
                raise UnknownKind("the DICOMDIR of a medium; the images that it lists are taken by themselves")
            syntax = meta.transfer_syntax_uid if meta else looks_like_data_set(beginning)
            self._data_set = DataSetReader(syntax, WANTED)
            self._data_set.feed(beginning[meta.start if meta else 0 :])
        self._beginning.clear()


def encodings_of(character_set: bytes) -> list[str]:
    """Python's encodings for the raw value of Specific Character Set; Latin-1 when it is none that is known."""
    terms = character_set.decode("ascii", "replace").rstrip("\0 ").split("\\")
    try:
        found = cast("list[str]", convert_encodings([term.strip() for term in terms]))
        for encoding in found:
            b"A".decode(encoding)
    except (
        LookupError,
        ValueError,
    ):  # a name that is none, has a zero in it, or is a codec of Python's for other things
        return ["iso8859"]
    return found


def text_of(value: bytes, encodings: list[str]) -> str:
    """A raw text value without its padding; bytes that are none in these encodings are replaced."""
    if not value:
        return ""
    return cast("str", decode_bytes(value, encodings, {0x5C, 0x0A, 0x0D, 0x09, 0x0C})).strip("\0 \r\n\t")


def patient_of(values: Mapping[int, bytes], encodings: list[str], study_date: str) -> Patient:
    """The patient in the raw ``values``; the age at ``study_date`` (``YYYYMMDD``) where it isn't said."""
    sex = text_of(values.get(SEX, b""), encodings).upper()
    birth_date = text_of(values.get(BIRTH_DATE, b""), encodings)
    return Patient(
        id=text_of(values.get(PATIENT_ID, b""), encodings),
        issuer=text_of(values.get(ISSUER, b""), encodings),
        name=str(PersonName(values.get(NAME, b""), encodings)).strip("\0 ^="),
        birth_date=birth_date,
        sex=cast('Literal["", "M", "F", "O"]', sex if sex in {"M", "F", "O"} else ""),
        age_years=_age_said(text_of(values.get(AGE, b""), encodings), birth_date, study_date),
    )


def _age_said(age: str, birth_date: str, study_date: str) -> float | None:
    """Years, from Patient's Age (``045Y``, ``006M``, ``010W``, ``003D``), else between the two dates (``YYYYMMDD``)."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", age)
    if match:
        return round(int(match[1]) / {"Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}[match[2]], 3)
    return age_at(birth_date, study_date)


def age_at(birth_date: str, day: str) -> float | None:
    """Years between two dates (``YYYYMMDD``); ``None`` when one is none or the day lies before the birth."""
    try:
        born, then = (date(int(one[:4]), int(one[4:6]), int(one[6:8])) for one in (birth_date, day))
    except ValueError:
        return None
    days = (then - born).days
    return round(days / 365.25, 3) if days >= 0 else None


def _count(text: str) -> int:
    """An integer string of at most six digits; 0 for anything else."""
    return int(text) if re.fullmatch(r"\+?\d{1,6}", text.strip(), re.ASCII) else 0


def _view(position: str, meaning: str) -> str:
    if position:
        return position.upper()
    words = meaning.lower().replace(" ", "-")
    if words.startswith(("postero-anterior", "posterior-anterior", "posteroanterior")):
        return "PA"
    if words.startswith(("antero-posterior", "anterior-posterior", "anteroposterior")):
        return "AP"
    return {"left-lateral": "LL", "right-lateral": "RL", "lateral": "LATERAL"}.get(words, meaning.upper())


def _modality(sop_class: str, modality: str, words: str, waveform: bytes) -> Modality:
    if sop_class == _AUDIO:
        if _PHONOCARDIOGRAM in waveform or (_HEART.search(words) and not _LUNG.search(words)):
            return Modality.HEART_SOUND
        return Modality.LUNG_SOUND if _LUNG.search(words) else Modality.OTHER
    return _BY_CLASS.get(sop_class) or _BY_MODALITY.get(modality.upper(), Modality.OTHER)
