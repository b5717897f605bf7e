"""Matching of worklist keys: DICOM PS3.4, C.2.2.2 and K.

What this module keeps true: the time is at most key times value, whatever the wildcards; an entry without a date or time is
here now, and every range holds it. Names match without regard to case; dates and times of the scheduled step, both given as
ranges, are one range from the first date and time to the last (K.6.1.2.2).
"""

from __future__ import annotations

import re
import unicodedata

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

_DATE, _TIME = 0x00400002, 0x00400003
_EXACT = frozenset({"UI", "DS", "IS", "SS", "US", "SL", "UL", "FL", "FD", "AT", "OB", "OW", "UN"})
_NOT_KEYS = frozenset({0x00080005, 0x00080201})


def matches(entry: Dataset, keys: Dataset) -> bool:
    """Whether an entry of the worklist answers these keys; empty keys, and keys that the entry doesn't know, hold always."""
    combined = _combined(entry, keys)
    for key in keys:
        if key.tag in _NOT_KEYS or key.is_private or key.tag.element == 0:
            continue
        if key.VR == "SQ":
            if not _sequence(entry, key):
                return False
        elif combined is not None and key.tag in {_DATE, _TIME}:
            if not combined:
                return False
        elif not _holds(key.VR, _texts(entry, key.tag), _split(key)):
            return False
    return True


def wildcard(pattern: str, text: str) -> bool:
    """Whether ``text`` is ``pattern``, in which ``*`` is any characters and ``?`` any one; O(len(pattern)·len(text))."""
    at = star = 0
    mark = -1
    position = 0
    while position < len(text):
        if at < len(pattern) and pattern[at] == "*":
            mark, star = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in {"?", text[position]}:
            at += 1
            position += 1
        elif mark >= 0:
            star += 1
            at, position = mark + 1, star
        else:
            return False
    return not pattern[at:].strip("*")


def _sequence(entry: Dataset, key: DataElement) -> bool:
    wanted = key.value[0] if key.value else None
    if wanted is None or key.tag not in entry:
        return True
    return any(matches(item, wanted) for item in entry[key.tag].value)


def _combined(entry: Dataset, keys: Dataset) -> bool | None:
    """Whether date and time lie in the one range that both keys make; ``None`` when they don't make one."""
    date, time = (_first(_split(keys[tag])) if tag in keys else "" for tag in (_DATE, _TIME))
    if "-" not in date or "-" not in time:
        return None
    when, clock = (_first(_texts(entry, tag)) for tag in (_DATE, _TIME))
    if not when or not clock:
        return _within(when, date, 8) and _within(clock, time, 6)
    since, until = (part.strip() for part in date.split("-", 1))
    begin, end = (part.strip().split(".")[0].replace(":", "") for part in time.split("-", 1))
    moment = when + clock.split(".")[0].ljust(6, "0")
    return (not since or moment >= since + begin.ljust(6, "0")) and (
        not until or moment <= until + (end or "").ljust(6, "9")
    )


def _holds(vr: str, values: list[str], wanted: list[str]) -> bool:
    wanted = [key for key in wanted if key.strip("*")]
    if not wanted or not any(values):
        return not wanted or vr in {"DA", "TM", "DT"}
    if vr in {"DA", "TM", "DT"}:
        digits = {"DA": 8, "TM": 6, "DT": 14}[vr]
        return any(_within(value, key, digits) for value in values for key in wanted)
    if vr in _EXACT:
        return any(value == key for value in values for key in wanted)
    if vr == "PN":
        values = [_folded(group) for value in values for group in value.split("=") if group]
        wanted = [_folded(key.split("=")[0]) for key in wanted]
    return any(wildcard(key, value) for value in values for key in wanted)


def _within(value: str, key: str, digits: int) -> bool:
    """Whether a date or time is the key or lies in the range that it is; an empty value lies in every one."""
    value, key = (re.sub(r"[:.]" if digits != 6 else r":|\..*", "", text.strip()) for text in (value, key))
    if not value or not key:
        return True
    if "-" not in key:
        return value.ljust(digits, "0") == key.ljust(digits, "0")
    since, until = (part.strip() for part in key.split("-", 1))
    value = value.ljust(digits, "0")
    return (not since or value >= since.ljust(digits, "0")) and (not until or value <= until.ljust(digits, "9"))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip(" ^")


def _split(element: DataElement) -> list[str]:
    value = element.value
    if value is None:
        return []
    parts = value if type(value).__name__ == "MultiValue" or isinstance(value, list) else [value]
    return [str(part).strip(" \0") for part in parts]


def _texts(entry: Dataset, tag: int) -> list[str]:
    return _split(entry[tag]) if tag in entry else []


def _first(texts: list[str]) -> str:
    return texts[0] if texts else ""
