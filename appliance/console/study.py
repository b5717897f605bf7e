"""Whether the study of a capture is complete, in words with what to do; nothing is said where nobody knows."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.console.words import N_, Words
from appliance.records import Record
from appliance.store.errors import StoreError
from appliance.store.store import Store
from appliance.store.studies import Completeness

_PARTLY = N_("The study is not complete: {kept} of {expected} have come. Send the rest.")
_BROKEN = N_("The sending of this study broke off. Send it again.")
_COMING = N_("More of this study is still coming.")
_WHOLE = N_("The study is complete: {kept} have come.")


class StudyShown(Record, frozen=True, kw_only=True):
    """What is said of a study. ``lacking``: something of it is missing."""

    text: str
    lacking: bool


def shown(said: Words, known: Completeness) -> StudyShown | None:
    """What to say of a study; ``None`` when nothing is known of its completeness."""
    kept = said.number(known.kept)
    if known.state == "incomplete" and known.expected is not None:
        return StudyShown(text=said(_PARTLY, kept=kept, expected=said.number(known.expected)), lacking=True)
    if known.state == "incomplete":
        return StudyShown(text=said(_BROKEN), lacking=True)
    if known.state == "in-progress":
        return StudyShown(text=said(_COMING), lacking=False)
    return StudyShown(text=said(_WHOLE, kept=kept), lacking=False) if known.state == "complete" else None


def of_capture(store: Store, said: Words, study_uid: str) -> StudyShown | None:
    """What to say of a capture's study."""
    return shown(said, store.studies.completeness(study_uid)) if study_uid else None


def lacking(store: Store, said: Words, captures: Iterable[str]) -> list[str]:
    """What is missing of the studies of these captures, each study once."""
    studies: dict[str, None] = {}
    for capture_id in captures:
        try:
            studies[store.captures.get(capture_id).capture.study_uid] = None
        except StoreError:
            continue  # a damaged record is shown as such by its line
    found = (of_capture(store, said, study_uid) for study_uid in studies)
    return [one.text for one in found if one is not None and one.lacking]
