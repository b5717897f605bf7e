"""Erasing destroys the keys first: cut off at any moment, nothing can be read any more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance.records import Patient, Triage
from appliance.store import erase as erasing
from appliance.store.erase import erase
from appliance.store.errors import InUse, StoreError
from appliance.store.files import RealFiles
from appliance.store.keys import CREDENTIAL, open_key
from tests.boxes import keep, open_store, report


def box(folder: Path) -> str:
    store = open_store(folder)
    keep(store, b"an image of a patient", patient=Patient(id="MRN-1", name="Doe^Jane"))
    capture = report(store, b"another image", Triage.CRITICAL, b"picture")
    (folder / "identity").mkdir()
    (folder / "identity" / "signing.key").write_bytes(b"k" * 60)
    store.close()
    return capture


def test_nothing_is_left_and_the_folder_can_be_used_again(tmp_path: Path) -> None:
    box(tmp_path)
    assert erase(tmp_path) > 3
    assert {path.name for path in tmp_path.rglob("*")} == {"lock"}
    store = open_store(tmp_path)
    assert store.captures.triage_counts() == {}
    store.close()


def test_cut_off_after_the_keys_nothing_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box(tmp_path)
    copied = tmp_path.with_name("copied")

    def cut(_state: Path) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(erasing, "_remove", cut)
    with pytest.raises(KeyboardInterrupt):
        erase(tmp_path)
    shutil.copytree(tmp_path, copied)
    assert (copied / "journal.sqlite").exists()
    assert list((copied / "vault").rglob("*"))
    assert not list(copied.glob("*.key"))
    assert not list((copied / "identity").iterdir())
    with pytest.raises(StoreError, match="can't be read without it"):
        open_store(copied)
    assert erase_again(tmp_path, monkeypatch) > 0


def erase_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.undo()
    return erase(folder)


def test_the_bytes_of_a_key_are_overwritten_before_its_name_goes(tmp_path: Path) -> None:
    box(tmp_path)
    secret = (tmp_path / "box.key").read_bytes()
    (tmp_path.parent / "same-bytes").hardlink_to(tmp_path / "box.key")
    erase(tmp_path)
    assert (tmp_path.parent / "same-bytes").read_bytes() == bytes(len(secret))


def test_a_running_box_is_not_erased(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(InUse):
        erase(tmp_path)
    assert (tmp_path / "box.key").exists()
    store.close()


def test_where_no_box_ever_was_nothing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="no box was ever here"):
        erase(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_key_that_the_service_manager_unseals_is_never_in_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / CREDENTIAL).write_bytes(b"\5" * 32)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    state = tmp_path / "state"
    box(state)
    assert not (state / "box.key").exists()
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(StoreError, match="LoadCredentialEncrypted"):
        open_key(state, RealFiles())
    assert not (state / "box.key").exists(), "no new key is made over what another sealed"
