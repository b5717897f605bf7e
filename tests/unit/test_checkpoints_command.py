"""At the hub an operator sees whether a box's log is still the one that it was."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from hub import tables
from hub.cli import app
from hub.config import load
from hub.database import Database


def test_a_log_is_compared_with_what_the_box_once_said(tmp_path: Path) -> None:
    config = tmp_path / "hub.toml"
    config.write_text(f'[storage]\nstate = "{tmp_path}/hub"\n')
    database = Database(load(config).database_url)
    database.migrate()
    row = {"previous": 0, "key_id": "k", "sha256": "", "payload": b"", "received_ms": 1, "device": "clinic-a/box-1"}
    with database.write() as connection:
        connection.execute(tables.checkpoint.insert(), {**row, "id": "a", "sequence": 2, "chain": "bb"})
    database.close()
    log = tmp_path / "log.jsonl"

    def said(*chains: str) -> tuple[int, str]:
        log.write_text("".join(json.dumps({"sequence": at, "chain": one}) + "\n" for at, one in enumerate(chains, 1)))
        command = ["checkpoints", "clinic-a/box-1", "--log", str(log), "--config", str(config)]
        done = CliRunner().invoke(app, command)
        return done.exit_code, done.output

    assert said("aa", "bb", "cc")[0] == 0
    for rewritten in (("aa", "xx", "cc"), ("aa",), ()):
        status, text = said(*rewritten)
        assert (status, "at entry 2" in text) == (1, True)
    listed = CliRunner().invoke(app, ["checkpoints", "--config", str(config)])
    assert "clinic-a/box-1" in listed.output
