"""Text out of a data set that somebody sent: whatever is in it, the answer is text, empty when it can't be read.

What this module keeps true: nothing here raises for what a peer sent; the raw bytes are decoded by the character set of the
item they stand in, not by what pydicom makes of a wrong one; no text is longer than ``MOST`` characters.
"""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset

from appliance.capture.facts import CHARACTER_SET, encodings_of, patient_of, text_of
from appliance.capture.facts import WANTED as _FACTS
from appliance.records import Patient

MOST = 256
_ITEMS_MOST = 50_000


class Elements:
    """A data set, or an item of one, to be asked for text."""

    def __init__(self, data_set: Dataset, encodings: list[str] | None = None) -> None:
        self._data_set = data_set
        own = self.raw(CHARACTER_SET)
        self._encodings = encodings_of(own) if own or encodings is None else encodings

    def raw(self, tag: int) -> bytes:
        """The bytes of a value as they came; empty when there is none."""
        value = self._value(tag)
        if isinstance(value, bytes):
            return value
        if value is None or isinstance(value, Dataset):
            return b""
        parts = value if isinstance(value, list) or type(value).__name__ == "MultiValue" else [value]
        return "\\".join(str(part) for part in parts).encode("utf-8" if tag != CHARACTER_SET else "ascii", "replace")

    def text(self, tag: int) -> str:
        """A value as text, the first of several."""
        return text_of(self.raw(tag), self._encodings).split("\\")[0].strip()[:MOST]

    def uid(self, tag: int) -> str:
        """A UID; empty when it is none (more than 64 characters, or others than digits and dots)."""
        text = self.raw(tag).rstrip(b"\0 ").decode("ascii", "replace")
        return text if len(text) <= 64 and text.replace(".", "").isdigit() else ""

    def items(self, tag: int) -> list[Elements]:
        """The items of a sequence; none when it can't be read."""
        try:
            value = self._data_set[tag].value
            found = [item for item in value if isinstance(item, Dataset)] if value else []
        except Exception:  # noqa: BLE001 - the edge: pydicom reads an item's bytes here, and any error means the same
            return []
        return [Elements(item, self._encodings) for item in found[:_ITEMS_MOST]]

    def patient(self, study_date: str = "") -> Patient:
        """The patient that the data set names."""
        found = patient_of({tag: self.raw(tag) for tag in _FACTS if tag >> 16 == 0x0010}, self._encodings, study_date)
        return Patient(
            id=found.id[:MOST],
            issuer=found.issuer[:MOST],
            name=found.name[:MOST],
            birth_date=found.birth_date[:8],
            sex=found.sex,
            age_years=found.age_years,
        )

    def _value(self, tag: int) -> Any:
        try:
            return self._data_set.get_item(tag).value
        except (KeyError, AttributeError):
            return None
