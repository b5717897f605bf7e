"""What becomes of each attribute: DICOM PS3.15 annex E, table E.1-1, basic profile, with the options that a site sets.

What this module keeps true: an attribute that neither the table nor a rule below knows as harmless does not leave. The
table's own rows are data of the package ``dicom-anonymizer`` (generated from the standard); options are the rows of E.3.

Where the table leaves a choice (``X/Z``, ``X/Z/D`` …), the one is taken that keeps an object valid whatever its IOD: a
dummy where ``D`` is among them, else empty.
"""

from __future__ import annotations

import functools
import re
from typing import Literal, NamedTuple

import msgspec

from appliance.records import Code

Action = Literal["remove", "empty", "dummy", "uid", "keep"]
Dates = Literal["removed", "shifted", "kept"]

BASIC = Code(scheme="DCM", value="113100", meaning="Basic Application Confidentiality Profile")
CLEAN_PIXELS = Code(scheme="DCM", value="113101", meaning="Clean Pixel Data Option")
_CHARACTERISTICS = Code(scheme="DCM", value="113108", meaning="Retain Patient Characteristics Option")
_DEVICE = Code(scheme="DCM", value="113109", meaning="Retain Device Identity Option")
_UIDS = Code(scheme="DCM", value="113110", meaning="Retain UIDs Option")
_INSTITUTION = Code(scheme="DCM", value="113112", meaning="Retain Institution Identity Option")
_DATES_KEPT = Code(scheme="DCM", value="113106", meaning="Retain Longitudinal Temporal Information Full Dates Option")
_DATES_SHIFTED = Code(
    scheme="DCM", value="113107", meaning="Retain Longitudinal Temporal Information Modified Dates Option"
)

# Rows of E.1-1 marked K in the option's column.
_KEPT_CHARACTERISTICS = frozenset({0x00101010, 0x00100040, 0x00101020, 0x00101030, 0x00102160, 0x001021C0, 0x001021A0})
_KEPT_DEVICE = frozenset(
    {0x00081010, 0x00181000, 0x00181002, 0x0018700A, 0x00181004, 0x00181007, 0x00181008, 0x00181005, 0x00400241}
)
_KEPT_INSTITUTION = frozenset({0x00080080, 0x00080081, 0x00081040, 0x00080082})

_AREA = re.compile(r"([A-Z]{2,4}|\*):(0|1|0?\.\d+),(0|1|0?\.\d+),(0|1|0?\.\d+),(0|1|0?\.\d+)")


class ProfileError(ValueError):
    """An option is not one; the message says how it is written."""


class Area(NamedTuple):
    """Where text is burned into the pictures of a modality (``*``: any), as shares of their width and height."""

    modality: str
    left: float
    top: float
    right: float
    bottom: float


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a site lets out beyond the basic profile; nothing by default. ``areas`` are blanked in the pixels."""

    dates: Dates = "removed"
    characteristics: bool = False
    device: bool = False
    institution: bool = False
    uids: bool = False
    areas: tuple[Area, ...] = ()

    def codes(self) -> tuple[Code, ...]:
        """The profile and options for De-identification Method Code Sequence (CID 7050)."""
        chosen = [
            BASIC,
            *([_CHARACTERISTICS] if self.characteristics else []),
            *([_DEVICE] if self.device else []),
            *([_INSTITUTION] if self.institution else []),
            *([_UIDS] if self.uids else []),
            *([_DATES_KEPT] if self.dates == "kept" else []),
            *([_DATES_SHIFTED] if self.dates == "shifted" else []),
        ]
        return tuple(chosen)

    def keeps(self, tag: int) -> bool:
        """Whether an option retains the attribute."""
        return (
            (self.characteristics and tag in _KEPT_CHARACTERISTICS)
            or (self.device and tag in _KEPT_DEVICE)
            or (self.institution and tag in _KEPT_INSTITUTION)
        )


def area(text: str) -> Area:
    """An area written ``MODALITY:left,top,right,bottom`` (``US:0,0,1,0.08``); raises ``ProfileError``."""
    match = _AREA.fullmatch(text)
    if match is None:
        raise ProfileError(f"{text!r} is not an area; write MODALITY:left,top,right,bottom, such as US:0,0,1,0.08")
    left, top, right, bottom = (float(number) for number in match.groups()[1:])
    if left >= right or top >= bottom:
        raise ProfileError(f"{text!r}: an area of nothing; left and top come first, as shares from 0 to 1")
    return Area(match.group(1), left, top, right, bottom)


def action(tag: int) -> Action | None:
    """What the basic profile does with an attribute; ``None`` if it is not in the table."""
    found = _table().get(tag)
    if found is not None:
        return found
    group, element = tag >> 16, tag & 0xFFFF
    if group & 0xFF00 == 0x5000 or (group & 0xFF00 == 0x6000 and element in (0x3000, 0x4000)):
        return "remove"  # curves, overlay data and comments: repeating groups of the table
    return None


@functools.cache
def _table() -> dict[int, Action]:
    from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as rows

    kinds: tuple[tuple[list[tuple[int, ...]], Action], ...] = (
        (rows.X_TAGS, "remove"),
        (rows.Z_TAGS, "empty"),
        (rows.X_Z_TAGS, "empty"),
        (rows.D_TAGS, "dummy"),
        (rows.Z_D_TAGS, "dummy"),
        (rows.X_D_TAGS, "dummy"),
        (rows.X_Z_D_TAGS, "dummy"),
        (rows.U_TAGS, "uid"),
        (rows.X_Z_U_STAR_TAGS, "uid"),
    )
    return {tag[0] << 16 | tag[1]: kind for tags, kind in kinds for tag in tags if len(tag) == 2}
