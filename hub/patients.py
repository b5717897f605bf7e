"""Whose capture it is, as far as one site can say: the key by which captures of the same patient are found.

What this module keeps true: the key holds no name and no number, only their hash; patients without an id have none, so nobody
is taken for somebody else for want of one; the same id at another site, or of another issuer, is another patient.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, select, update

from appliance.protocol.messages import Result, decode
from appliance.records import Patient
from hub import tables


def patient_key(device: str, patient: Patient) -> str:
    """32 hex digits of SHA-256 over site, issuer and id; empty where there is no id. ``device``: ``site/name``."""
    if not patient.id.strip():
        return ""
    site = device.split("/", 1)[0]
    return hashlib.sha256(f"{site}\x00{patient.issuer.strip()}\x00{patient.id.strip()}".encode()).hexdigest()[:32]


def fill_patients(connection: Connection) -> None:
    """Give the captures of an older database their keys."""
    capture, result = tables.capture.c, tables.result.c
    query = select(capture.id, capture.device, result.payload).join(tables.result, result.id == capture.result_id)
    for row in connection.execute(query).all():
        key = patient_key(row.device, decode(row.payload, Result).capture.patient)
        connection.execute(update(tables.capture).where(capture.id == row.id).values(patient=key))
