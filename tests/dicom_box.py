"""A DICOM door over a real store, with every service a box offers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from pynetdicom import AE

from appliance.capture.dicom import DicomDoor
from appliance.capture.dicom_offer import services
from appliance.capture.intake import Intake
from appliance.config import DicomConfig
from appliance.store.store import Store
from tests.boxes import DEVICE, open_store
from tests.servers import free_port

CONFIG = DicomConfig(address="127.0.0.1")


class Box(NamedTuple):
    door: DicomDoor
    store: Store


@contextlib.contextmanager
def box(folder: Path, **settings: Any) -> Iterator[Box]:
    """Open from the first line to the last; ``settings`` of ``[dicom]``."""
    store = open_store(folder)
    config = msgspec.structs.replace(CONFIG, port=free_port(), **settings)
    door = DicomDoor(config, Intake(store, DEVICE), services(config, store))
    door.start()
    try:
        yield Box(door, store)
    finally:
        door.stop()
        store.close()


@contextlib.contextmanager
def association(
    port: int, *sop_classes: str, calling: str = "XRAY", title: str = "BEDSIDE", syntax: str = "", **more: Any
) -> Iterator[Any]:
    """An association of a modality with a door."""
    ae = AE(calling)
    ae.dimse_timeout = ae.acse_timeout = 20
    for sop_class in sop_classes:
        ae.add_requested_context(sop_class, syntax or None)
    link = ae.associate("127.0.0.1", port, ae_title=title, **more)
    assert link.is_established
    try:
        yield link
    finally:
        if link.is_established:
            link.release()
