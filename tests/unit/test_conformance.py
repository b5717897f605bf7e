"""The published statement says what the code offers."""

from __future__ import annotations

from appliance.capture.dicom import STORAGE_CLASSES, TRANSFER_SYNTAXES
from tools.conformance import PAGE, statement


def test_the_statement_in_the_docs_is_the_one_the_code_makes():
    assert PAGE.read_text(encoding="utf-8") == statement(), "run: python -m tools.conformance"


def test_every_class_and_syntax_offered_is_in_it():
    page = statement()
    assert all(f"`{uid}`" in page for uid in (*STORAGE_CLASSES, *TRANSFER_SYNTAXES))
