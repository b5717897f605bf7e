"""A copy of the journal is whole, sealed, and tells nobody anything by itself; a stick takes what waits."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.cli import app
from appliance.records import Patient
from appliance.store.backup import backup
from appliance.store.errors import StoreError
from tests.boxes import keep, open_store

RUN = CliRunner()


def test_a_copy_beside_a_writing_box_is_whole_and_opens_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "box")
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            keep(store, f"film {number}".encode(), patient=Patient(id="MRN-77", name="Okonkwo^Adaeze"))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = [backup(tmp_path / "box", tmp_path / "copies", 3) for _ in range(5)]
    finally:
        done.set()
        writer.join()
    store.close()
    kept = sorted((tmp_path / "copies").iterdir())
    assert [path.name for path in kept] == [one.path.name for one in made[-3:]]
    assert made[-1].captures >= made[0].captures
    for path in kept:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert b"Okonkwo" not in path.read_bytes()
    box = tmp_path / "box"
    for path in box.glob("journal.sqlite*"):
        path.unlink()
    shutil.copy(kept[-1], box / "journal.sqlite")
    again = open_store(box)
    assert sum(again.captures.counts().values()) >= made[-1].captures
    again.close()


def test_a_damaged_journal_is_not_copied_over_good_copies(tmp_path: Path) -> None:
    store = open_store(tmp_path / "box")
    for number in range(200):
        keep(store, f"film {number}".encode())
    store.close()
    good = backup(tmp_path / "box", tmp_path / "copies", 3).path.read_bytes()
    journal = tmp_path / "box/journal.sqlite"
    content = bytearray(journal.read_bytes())
    content[8192:16384] = bytes(8192)
    journal.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged|copied"):
        backup(tmp_path / "box", tmp_path / "copies", 3)
    (copy,) = (tmp_path / "copies").iterdir()
    assert copy.read_bytes() == good


def test_the_command_says_where_the_copy_is_or_why_there_is_none(tmp_path: Path) -> None:
    config = tmp_path / "bedside.toml"
    config.write_text(f'[storage]\nstate = "{tmp_path / "box"}"\n')
    refused = RUN.invoke(app, ["backup", str(tmp_path / "copies"), "--config", str(config)])
    assert refused.exit_code == 1
    assert "nothing was ever kept" in refused.output
    open_store(tmp_path / "box").close()
    done = RUN.invoke(app, ["backup", str(tmp_path / "copies"), "--config", str(config)])
    assert done.exit_code == 0
    assert "journal-000001.sqlite" in done.output


def test_a_stick_without_the_folder_is_left_alone(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["stick", str(tmp_path)])
    assert done.exit_code == 0
    assert "left alone" in done.output
    assert not list(tmp_path.iterdir())
