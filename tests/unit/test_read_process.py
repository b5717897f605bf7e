"""Claims about the reading process: it reads from the vault, in memory only, and previews without decoding again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from appliance.reading import process
from appliance.reading.preview import Preview
from appliance.reading.process import serve
from appliance.reading.requests import Known, ReadRequest, ReadSettings
from appliance.records import Reading
from appliance.store.errors import StoreError
from appliance.store.files import RealFiles
from appliance.store.keys import open_key
from appliance.store.vault import Vault
from tests.networks import description, quantised, seal, write_bundle
from tests.simulated_models import dicom, film, written


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("process")
    root = write_bundle(folder / "models" / "made-up", quantised("mobilenet", folder)[1])
    described = description("made-up", "1.0.0", {"net": "model.onnx"})
    seal(
        root,
        msgspec.structs.replace(
            described, preprocess=msgspec.structs.replace(described.preprocess, parameters={"size": 32})
        ),
    )
    return folder


@pytest.fixture
def box(models, tmp_path):
    """A vault with one film, and the answering function of a process started for it."""
    vault = Vault(tmp_path / "vault", open_key(tmp_path, RealFiles()))
    data = written(dicom(film(), PatientAge="040Y", PatientName="Secret^Name"))
    blob = vault.put(data)
    settings = ReadSettings(
        models=str(models / "models"),
        cache=str(models / "cache"),
        engine="cpu",
        vault=str(tmp_path / "vault"),
        key=str(tmp_path),
    )
    return blob, serve(msgspec.msgpack.encode(settings)), data


def ask(answer, kind, **request):
    return msgspec.msgpack.decode(answer(msgspec.msgpack.encode(ReadRequest(**request))), type=kind)


def test_a_capture_is_read_from_the_vault_and_never_lies_open_on_the_disk(box, tmp_path):
    blob, answer, data = box
    reading = ask(answer, Reading, known=Known(capture_id="c" * 32), sha256=blob.sha256)
    assert (reading.status, reading.capture_id, reading.engine.golden) == ("read", "c" * 32, "passed")
    written_there = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"Secret" not in written_there
    assert data[-64:] not in written_there


def test_a_plain_file_reads_the_same(box, tmp_path):
    blob, answer, data = box
    (tmp_path / "film.dcm").write_bytes(data)
    of_vault = ask(answer, Reading, known=Known(), sha256=blob.sha256)
    of_file = ask(answer, Reading, known=Known(), path=str(tmp_path / "film.dcm"))
    assert of_file.findings == of_vault.findings


def test_the_preview_after_a_reading_decodes_nothing_again(box, monkeypatch):
    blob, answer, _ = box
    known = Known(capture_id="c" * 32)
    ask(answer, Reading, known=known, sha256=blob.sha256)
    monkeypatch.setattr(process.Reader, "look", lambda *_: pytest.fail("decoded again"))
    shown = ask(answer, Preview, known=known, sha256=blob.sha256, preview=True)
    assert shown.media_type == "image/jpeg"
    assert len(shown.data) > 100


def test_what_was_looked_at_ahead_is_decoded_once_and_reads_the_same(box, monkeypatch):
    blob, answer, _ = box
    known = Known(capture_id="c" * 32)
    plain = ask(answer, Reading, known=known, sha256=blob.sha256)
    assert (
        answer(msgspec.msgpack.encode(ReadRequest(known=Known(capture_id="d" * 32), sha256=blob.sha256, ahead=True)))
        == b""
    )
    assert ask(answer, Reading, known=known, sha256=blob.sha256).findings == plain.findings  # another came between
    assert answer(msgspec.msgpack.encode(ReadRequest(known=known, sha256=blob.sha256, ahead=True))) == b""
    monkeypatch.setattr(process.Reader, "look", lambda *_: pytest.fail("decoded again"))
    ahead = ask(answer, Reading, known=known, sha256=blob.sha256)
    assert (ahead.findings, ahead.status) == (plain.findings, plain.status)


def test_what_cannot_be_read_is_a_reading_that_says_so(box, tmp_path):
    _, answer, _ = box
    (tmp_path / "noise.bin").write_bytes(np.random.default_rng(0).bytes(999))
    assert ask(answer, Reading, known=Known(), path=str(tmp_path / "noise.bin")).refusal.code == "unknown-format"


def test_a_blob_that_is_gone_fails_the_request_and_not_the_process(box):
    blob, answer, _ = box
    with pytest.raises(StoreError):
        ask(answer, Reading, known=Known(), sha256="0" * 64)
    assert ask(answer, Reading, known=Known(), sha256=blob.sha256).status == "read"


def test_a_process_without_a_vault_says_so(models):
    settings = ReadSettings(models=str(models / "models"), cache=str(models / "cache"), engine="cpu")
    with pytest.raises(ValueError, match="without a vault"):
        ask(serve(msgspec.msgpack.encode(settings)), Reading, known=Known(), sha256="0" * 64)
