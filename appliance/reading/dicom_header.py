"""What a DICOM header says of a capture: the few facts that decide whether and how it is read.

What this module keeps true: a fact that is missing or malformed is empty, never invented; an age comes from Patient's Age
or from birth and study date, and from nothing else.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from appliance.reading.prepared import Header

_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_OLDEST = 150.0
_AUDIO_SOURCE_HEART = "109114"  # DCM: Phonocardiogram


def header_of(dataset: Any) -> Header:
    """The ``Header`` of a parsed dataset (pixels need not be loaded)."""
    return Header(
        media_type="application/dicom",
        sop_class_uid=text(dataset, "SOPClassUID"),
        dicom_modality=text(dataset, "Modality").upper(),
        body_part=_body_part(dataset),
        view=_view(dataset),
        age_years=age_years(dataset),
        sex=sex if (sex := text(dataset, "PatientSex").upper()) in {"M", "F", "O"} else "",
        rows=integer(dataset, "Rows", 0),
        columns=integer(dataset, "Columns", 0),
        frames=max(1, integer(dataset, "NumberOfFrames", 1)),
        description=text(dataset, "SeriesDescription") or text(dataset, "StudyDescription"),
        position=_meaning(dataset, "AnatomicRegionSequence"),
    )


def age_years(dataset: Any) -> float | None:
    """The age at the study in years: Patient's Age (``nnnD``, ``W``, ``M`` or ``Y``; PS3.5 6.2, AS), else from dates."""
    said = text(dataset, "PatientAge").upper()
    if len(said) > 1 and said[:-1].isdigit() and said[-1] in _DAYS:
        return _plausible(int(said[:-1]) * _DAYS[said[-1]] / 365.25)
    born = _date(text(dataset, "PatientBirthDate"))
    taken = next(
        (date for name in ("StudyDate", "AcquisitionDate", "ContentDate") if (date := _date(text(dataset, name)))), None
    )
    return _plausible((taken - born).days / 365.25) if born and taken else None


def text(dataset: Any, keyword: str) -> str:
    """A string element, stripped; the first of several; empty where there is none."""
    value = _first(dataset.get(keyword))
    return "" if value is None else str(value).strip().strip("\0")


def integer(dataset: Any, keyword: str, default: int | None = None) -> int:
    """An integer element; ``default`` where it is missing or empty (``ValueError`` without a default)."""
    value = _first(dataset.get(keyword))
    if value is None or value == "":
        if default is None:
            raise ValueError(f"{keyword} is missing")
        return default
    return int(value)


def number(dataset: Any, keyword: str, default: float) -> float:
    """A finite number; ``default`` where it is missing, empty or none."""
    try:
        value = float(_first(dataset.get(keyword)))
    except (TypeError, ValueError):
        return default
    return value if math.isfinite(value) else default


def code_of(item: Any, keyword: str) -> tuple[str, str]:
    """Value and meaning of the first code in a code sequence; empty where there is none."""
    sequence = item.get(keyword)
    if not sequence:
        return "", ""
    return text(sequence[0], "CodeValue"), text(sequence[0], "CodeMeaning")


def _first(value: Any) -> Any:
    if isinstance(value, str | bytes) or value is None:
        return value
    if hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        return value[0] if len(value) else None
    return value


def _meaning(dataset: Any, keyword: str) -> str:
    return code_of(dataset, keyword)[1]


def _body_part(dataset: Any) -> str:
    said = text(dataset, "BodyPartExamined") or _meaning(dataset, "AnatomicRegionSequence")
    if said or "WaveformSequence" not in dataset:
        return said.upper()
    for group in dataset.WaveformSequence:
        for channel in group.get("ChannelDefinitionSequence") or ():
            value, meaning = code_of(channel, "ChannelSourceSequence")
            if value == _AUDIO_SOURCE_HEART:
                return "HEART"
            said = said or meaning
    return said.upper()


def _view(dataset: Any) -> str:
    return (text(dataset, "ViewPosition") or _meaning(dataset, "ViewCodeSequence")).upper()


def _date(said: str) -> dt.date | None:
    try:
        return dt.date(int(said[:4]), int(said[4:6]), int(said[6:8])) if len(said) == 8 else None
    except ValueError:
        return None


def _plausible(age: float) -> float | None:
    return age if 0.0 <= age <= _OLDEST else None
