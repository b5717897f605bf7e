"""Long runs of the DICOM door over the real store (``-m slow``), and one short one that reads back what was kept."""

from __future__ import annotations

import io
import shutil
import subprocess
import time
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from appliance.capture.dicom import DicomDoor
from appliance.capture.intake import Intake
from appliance.config import DicomConfig, StorageConfig
from appliance.records import Moment
from appliance.store.store import Store
from tests.servers import free_port
from tools.bench import ingest

IMAGES, ASSOCIATIONS = 5000, 500


def now() -> Moment:
    return Moment(boot_id="test", monotonic_ns=time.monotonic_ns(), wall="2026-01-01T00:00:00Z")


def storescu() -> str:
    return shutil.which("storescu") or pytest.skip("dcmtk is not installed (apt-get install dcmtk)")


def test_what_was_answered_with_success_is_in_the_vault_after_reopening(tmp_path):
    config = StorageConfig(state=str(tmp_path / "state"), refuse_below=16, reserve=4)
    store = Store(config, now)
    door = DicomDoor(DicomConfig(address="127.0.0.1", port=free_port()), Intake(store, "site/box"))
    door.start()
    files = [Path(str(get_testdata_file(name))) for name in ("RG1_UNCR.dcm", "RG3_UNCR.dcm")]
    try:
        command = [storescu(), "-aec", "BEDSIDE", "-xe", "127.0.0.1", str(door.port), *map(str, files)]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    finally:
        door.stop()
        store.close()
    store = Store(config, now)
    try:
        assert store.repair.clean
        entries = store.captures.latest()
        assert {entry.capture.body_part for entry in entries} == {"CHEST", "EXTREMITY"}
        sent = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, files)}
        for entry in entries:
            kept = pydicom.dcmread(io.BytesIO(store.vault.read(entry.capture.sha256)))
            assert kept.PixelData == sent[entry.capture.instance_uid].PixelData
    finally:
        store.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_stays_flat_over_five_thousand_images_in_five_hundred_associations(tmp_path):
    image = ingest._write(tmp_path / "x.dcm", (128, 128), ingest.CR)
    with ingest._python("ours", tmp_path / "ours") as receiver:
        send = ingest._sender(storescu(), receiver.port, image, IMAGES // ASSOCIATIONS)
        for _ in range(ASSOCIATIONS // 5):
            send()
        early = receiver.rss_mb
        for _ in range(ASSOCIATIONS - ASSOCIATIONS // 5):
            send()
        assert receiver.rss_mb - early < 4.0
        assert receiver.rss_mb < 90.0
