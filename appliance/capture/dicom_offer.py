"""What the DICOM door of a box offers beside storage and echo, joined to its store."""

from __future__ import annotations

from appliance.capture.commitment import CommitmentService
from appliance.capture.dicom_service import Service
from appliance.capture.mpps import PerformedStepService
from appliance.capture.worklist_scp import WorklistService, todays
from appliance.config import DicomConfig
from appliance.store.store import Store


def services(config: DicomConfig, store: Store) -> tuple[Service, ...]:
    """Storage commitment, performed procedure steps, and today's patients for portable units."""
    return CommitmentService(config, store), PerformedStepService(store), WorklistService(lambda: todays(store))
