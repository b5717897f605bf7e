"""The DICOM door over TLS: who has the clinic's certificate comes in, and nobody without; nobody can hold the door."""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydicom.data import get_testdata_file
from pynetdicom import AE

from appliance.capture import dicom_tls
from appliance.capture.commitment import PUSH_MODEL
from appliance.capture.worklist import WorklistClient, WorklistError
from appliance.config import DicomConfig, WorklistConfig
from appliance.records import Moment, Patient
from appliance.store.worklist import ScheduledStep
from tests.boxes import now, open_store
from tests.contract.test_dicom_door import CR, image
from tests.dicom_box import association, box
from tests.unit.test_certificates import certificate

DAY = dt.timedelta(days=1)
TODAY = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
KNOWN = Moment(boot_id="boot", monotonic_ns=1, wall=TODAY.isoformat(), uncertainty_s=1.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a box, a modality, one whose time is over, and one of a stranger."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = certificate(folder, "authority", TODAY - 9 * DAY, TODAY + 999 * DAY, None)
    for name in ("box", "modality"):
        certificate(folder, name, TODAY - 8 * DAY, TODAY + 99 * DAY, authority)
    certificate(folder, "outdated", TODAY - 8 * DAY, TODAY - 2 * DAY, authority)
    certificate(folder, "stranger", TODAY - 8 * DAY, TODAY + 99 * DAY, None)
    return folder


def settings(files: Path, *, mutual: bool = True) -> dict[str, Any]:
    return {
        "tls": True,
        "certificate_file": str(files / "box.pem"),
        "key_file": str(files / "box.key"),
        "ca_file": str(files / "authority.pem") if mutual else "",
    }


def client(files: Path, name: str = "", most: ssl.TLSVersion | None = None) -> tuple[ssl.SSLContext, str]:
    context = ssl.create_default_context(cafile=str(files / "authority.pem"))
    context.check_hostname = False
    if most is not None:
        context.maximum_version = most
    if name:
        context.load_cert_chain(files / f"{name}.pem", files / f"{name}.key")
    return context, "localhost"


def established(port: int, tls: tuple[ssl.SSLContext, str] | None) -> bool:
    ae = AE("XRAY")
    ae.acse_timeout = ae.connection_timeout = 10
    ae.add_requested_context(CR)
    link = ae.associate("127.0.0.1", port, ae_title="BEDSIDE", tls_args=tls)
    found = bool(link.is_established)
    if found:
        link.release()
    return found


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_modality_with_the_clinics_certificate_sends_and_what_it_sent_is_kept(files, tmp_path, most):
    with box(tmp_path, **settings(files)) as (door, store):
        with association(door.port, CR, PUSH_MODEL, tls_args=client(files, "modality", most)) as link:
            for number in range(1, 4):
                assert link.send_c_store(image(f"1.{number}", side=512)).Status == 0x0000
        assert len(store.captures.latest()) == 3


@pytest.mark.parametrize("name", ["", "stranger"])
def test_a_peer_without_a_certificate_of_the_authority_gets_no_association(files, tmp_path, name):
    with box(tmp_path, **settings(files)) as (door, _):
        assert not established(door.port, client(files, name))
        assert established(door.port, client(files, "modality"))
        assert door.counts["rejected-connection"] >= 1 or door.counts["echo"] == 0


def test_without_an_authority_the_connection_is_only_encrypted(files, tmp_path):
    with box(tmp_path, **settings(files, mutual=False)) as (door, _):
        assert established(door.port, client(files))


def test_a_plain_connection_is_cut_off_and_the_door_stays(files, tmp_path):
    with box(tmp_path, **settings(files)) as (door, _):
        assert not established(door.port, None)
        assert established(door.port, client(files, "modality"))


def test_below_tls_1_2_nothing_is_spoken(files):
    context = dicom_tls.server_context(msgspec.structs.replace(DicomConfig(), **settings(files)))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    old = [one["name"] for one in context.get_ciphers() if one["protocol"] == "TLSv1.2"]
    assert old
    assert all(name.startswith("ECDHE") and ("GCM" in name or "CHACHA20" in name) for name in old)


def test_silent_connections_do_not_hold_the_door(files, tmp_path):
    with box(tmp_path, **settings(files)) as (door, _), contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
        start = time.monotonic()
        assert established(door.port, client(files, "modality"))
        assert time.monotonic() - start < 5


def test_dates_count_only_while_the_box_knows_the_time(files, tmp_path, monkeypatch):
    with box(tmp_path, **settings(files)) as (door, store):
        assert established(door.port, client(files, "outdated"))  # a clock that nobody set turns no machine away
        monkeypatch.setattr(store, "now", lambda: KNOWN)
        assert not established(door.port, client(files, "outdated"))
        assert established(door.port, client(files, "modality"))


def test_dcmtks_storescu_sends_over_tls(files, tmp_path):
    storescu = shutil.which("storescu") or pytest.skip("dcmtk is not installed (apt-get install dcmtk)")
    if "+tls" not in subprocess.run([storescu, "--help"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("this dcmtk is built without TLS")
    with box(tmp_path, **settings(files)) as (door, store):
        command = [storescu, "+tls", str(files / "modality.key"), str(files / "modality.pem")]
        command += ["+cf", str(files / "authority.pem"), "-aec", "BEDSIDE", "-xe", "127.0.0.1", str(door.port)]
        subprocess.run([*command, str(get_testdata_file("RG1_UNCR.dcm"))], check=True, timeout=60, capture_output=True)
        assert len(store.captures.latest()) == 1


def test_the_box_asks_a_worklist_over_tls_and_only_the_right_server(files, tmp_path):
    with box(tmp_path / "server", **settings(files)) as (door, server):
        step = ScheduledStep(patient=Patient(id="P1"))
        server.journal.write(lambda tx: server.worklist.replace(tx, [step], now()))
        store = open_store(tmp_path / "asker")
        config = WorklistConfig(host="localhost", port=door.port, ae_title="BEDSIDE", tls=True)
        asking = msgspec.structs.replace(DicomConfig(), **settings(files))
        assert WorklistClient(config, asking, store).ask() == 1
        wrong = msgspec.structs.replace(asking, ca_file=str(files / "stranger.pem"))
        with pytest.raises(WorklistError):
            WorklistClient(config, wrong, store).ask()
        store.close()


def test_a_certificate_that_is_not_there_keeps_the_door_closed_with_a_reason(files, tmp_path):
    missing = {**settings(files), "certificate_file": str(tmp_path / "none.pem")}
    with pytest.raises(OSError, match="No such file"), box(tmp_path / "state", **missing):
        pass
