"""Whose a capture is, against what was kept before: a difference is found and named, never resolved.

What this module keeps true: it only reads; what one of two records leaves empty contradicts nothing; spelling that says the
same (case, accents' encoding, padding, a title, another script beside it) is no difference. The same patient number with
another name, birth date or sex, and the same study with another patient number, are conflicts with a reason code each; so
are other bytes under a known SOP Instance UID. Person names: DICOM PS3.5, 6.2.1.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from appliance.records import Patient
from appliance.store.journal import Row, Transaction

INSTANCE = "instance"
NAME, BIRTH_DATE, SEX = "patient-name", "patient-birth-date", "patient-sex"
STUDY = "study-patient"
REASONS: dict[str, str] = {
    INSTANCE: "other bytes under the same SOP Instance UID",
    NAME: "the same patient number with another name",
    BIRTH_DATE: "the same patient number with another birth date",
    SEX: "the same patient number with another sex",
    STUDY: "the same study with another patient number",
}


class Keys(NamedTuple):
    """A capture's blinded keys; empty where it says nothing."""

    instance: str
    study: str
    patient: str
    identity: str


class Conflict(NamedTuple):
    """The codes of ``REASONS`` that hold, and the capture that the first of them is about."""

    reasons: tuple[str, ...]
    capture_id: str


def identity(patient: Patient) -> str:
    """What of a patient must not differ under one number, as one text; empty when nothing is said."""
    parts = (_name(patient.name), patient.birth_date, patient.sex)
    return "\0".join(parts) if any(parts) else ""


def differences(one: Patient, other: Patient) -> tuple[str, ...]:
    """The codes of what contradicts, of two records under the same number."""
    pairs = (
        (NAME, _name(one.name), _name(other.name)),
        (BIRTH_DATE, one.birth_date, other.birth_date),
        (SEX, one.sex, other.sex),
    )
    return tuple(code for code, mine, theirs in pairs if mine and theirs and mine != theirs)


def conflict(tx: Transaction, keys: Keys, patient: Patient, unseal: Callable[[Row], Patient]) -> Conflict:
    """What of a capture that is about to be kept contradicts those kept before."""
    found: list[tuple[str, str]] = []
    if keys.instance:
        other = tx.one(  # the second term lets SQLite use the partial index: without it every keep reads all captures
            "SELECT id FROM capture WHERE instance_key = ? AND instance_key <> '' ORDER BY sequence", keys.instance
        )
        found += [(INSTANCE, other["id"])] if other else []
    if keys.patient and keys.identity:
        # One of each identity seen under this number: nearly always there is one, the same, and nothing is unsealed.
        rows = tx.all(
            "SELECT id, sealed, min(sequence) AS first FROM capture WHERE patient_key = ? AND patient_key <> ''"
            " AND identity_key <> ? GROUP BY identity_key ORDER BY first LIMIT 50",
            keys.patient,
            keys.identity,
        )
        for row in rows:
            found += [(code, row["id"]) for code in differences(patient, unseal(row))]
    if keys.study and keys.patient:
        other = tx.one(
            "SELECT id FROM capture WHERE study_key = ? AND study_key <> '' AND patient_key <> '' AND patient_key <> ?"
            " ORDER BY sequence",
            keys.study,
            keys.patient,
        )
        found += [(STUDY, other["id"])] if other else []
    return Conflict(tuple(dict.fromkeys(code for code, _ in found)), found[0][1] if found else "")


def _name(name: str) -> str:
    """Family, given and middle name of the first group that says any, in one spelling."""
    group = next((group for group in name.split("=") if group.strip(" ^")), "")
    words = " ".join(group.split("^")[:3])
    return " ".join(unicodedata.normalize("NFKC", words).casefold().split())
