"""The published statement says what the code offers."""

from __future__ import annotations

from appliance.capture import commitment, mpps, worklist_scp
from appliance.capture.dicom import STORAGE_CLASSES, TRANSFER_SYNTAXES
from appliance.capture.dicom_offer import services
from appliance.config import DicomConfig
from tests.boxes import open_store
from tools.conformance import PAGE, statement


def test_the_statement_in_the_docs_is_the_one_the_code_makes():
    assert PAGE.read_text(encoding="utf-8") == statement(), "run: python -m tools.conformance"


def test_every_class_and_syntax_offered_is_in_it():
    page = statement()
    assert all(f"`{uid}`" in page for uid in (*STORAGE_CLASSES, *TRANSFER_SYNTAXES))


def test_every_service_of_the_door_and_its_statuses_are_in_it(tmp_path):
    store = open_store(tmp_path)
    page = statement()
    for service in services(DicomConfig(), store):
        for sop_class, name in service.sop_classes.items():
            assert f"`{sop_class}`" in page
            assert name.split(" Information")[0].removesuffix(" Push Model") in page
    store.close()
    for statuses in (commitment.STATUSES, commitment.FAILURES, mpps.STATUSES, worklist_scp.STATUSES):
        assert all(f"| {status:04X} | {when} |" in page for status, when in statuses.items())
