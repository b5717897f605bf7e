"""The commands about identity and audit say what they did, or what to do instead."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.cli import app
from appliance.store import checkpoints
from appliance.store.credentials import identity_of
from appliance.sync.export import device_key
from hub.cli import app as hub_app
from tests.boxes import now, open_store


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "box.toml"
    path.write_text(
        f'[device]\nsite = "clinic-a"\nname = "box-1"\n[storage]\nstate = "{tmp_path}/state"\nrefuse_below = 16\nreserve = 4\n'
    )
    return path


def says(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == status, done.output
    return done.output


def hub_says(config: Path, *arguments: str) -> str:
    done = CliRunner().invoke(hub_app, [*arguments, "--config", str(config)])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_box_without_a_network_is_enrolled_listed_and_revoked(tmp_path: Path, config: Path) -> None:
    hub = tmp_path / "hub.toml"
    hub.write_text(
        f'[storage]\nstate = "{tmp_path}/hub"\n[authority]\nfolder = "{tmp_path}/ca"\nbroker = "hub.example:8883"\n'
    )
    hub_says(hub, "ca", "init")
    code = hub_says(hub, "ca", "code", "clinic-a", "box-1").strip()
    said = says("enrol", "--offline", str(tmp_path), "--code", code, "--config", str(config))
    assert "carry it to the hub" in said
    hub_says(hub, "ca", "answer", str(tmp_path / "bedside-clinic-a.box-1.enrol"))
    said = says("enrol", "--answer", str(tmp_path), "--config", str(config))
    assert "clinic-a/box-1 is enrolled" in said
    assert 'host = "hub.example"\nport = 8883\ntls = true' in said
    assert "active" in hub_says(hub, "ca", "list")
    assert "reload the broker" in hub_says(hub, "ca", "revoke", "clinic-a/box-1")
    assert "revoked" in hub_says(hub, "ca", "list")


@pytest.mark.parametrize("arguments", [[], ["--hub", "https://x"], ["--code", "x"], ["--answer", "a", "--code", "x"]])
def test_half_a_request_is_told_what_is_missing(config: Path, arguments: list[str]) -> None:
    assert "--hub" in says("enrol", *arguments, "--config", str(config), status=2)


def test_a_wrong_code_is_told_as_one_sentence(config: Path) -> None:
    said = says("enrol", "--hub", "https://hub.example", "--code", "ABCDEF", "--config", str(config), status=1)
    assert "this is not a code" in said
    assert "Traceback" not in said


def test_the_log_is_verified_exported_and_its_change_told(tmp_path: Path, config: Path) -> None:
    store = open_store(tmp_path / "state")
    store.note("kept", "capture-1")
    store.close()
    assert "2 entries: unbroken" in says("audit", "verify", "--config", str(config))
    assert "2 entries: unbroken" in says("audit", "--config", str(config))
    lines = says("audit", "export", "--config", str(config)).splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["start", "kept"]
    assert says("audit", "export", "--atna", "--config", str(config)).count("<AuditMessage>") == 2
    with sqlite3.connect(tmp_path / "state" / "journal.sqlite") as connection:
        connection.execute("DELETE FROM audit WHERE event = 'kept'")
    said = says("audit", "verify", "--config", str(config), status=1)
    assert "entries from 2 on were removed" in said


def test_a_log_stays_whole_when_its_box_gets_new_keys(tmp_path: Path, config: Path) -> None:
    hub = tmp_path / "hub.toml"
    hub.write_text(f'[storage]\nstate = "{tmp_path}/hub"\n[authority]\nfolder = "{tmp_path}/ca"\n')
    hub_says(hub, "ca", "init")
    publics = set()
    for more in ([], ["--new-key"]):
        code = hub_says(hub, "ca", "code", "clinic-a", "box-1").strip()
        says("enrol", "--offline", str(tmp_path), "--code", code, *more, "--config", str(config))
        hub_says(hub, "ca", "answer", str(tmp_path / "bedside-clinic-a.box-1.enrol"))
        says("enrol", "--answer", str(tmp_path), "--config", str(config))
        store = open_store(tmp_path / "state")
        identity = identity_of(tmp_path / "state", store.key)
        assert identity is not None
        publics.add(identity.signer.public)
        made = store.journal.write(
            lambda tx, one=identity, at=store: checkpoints.make(tx, now(), one.device, one.signer, at.outbox)
        )
        assert made is not None
        store.close()
    assert len(publics) == 2
    assert "unbroken, 2 checkpoints" in says("audit", "verify", "--config", str(config))


def test_a_box_is_erased_only_when_asked_for(tmp_path: Path, config: Path) -> None:
    open_store(tmp_path / "state").close()
    done = CliRunner().invoke(app, ["erase", "--config", str(config)], input="n\n")
    assert done.exit_code == 1
    assert (tmp_path / "state" / "box.key").exists()
    assert "the keys are destroyed" in says("erase", "--yes", "--config", str(config))
    assert not (tmp_path / "state" / "box.key").exists()


def test_a_parcel_key_of_before_is_sealed_and_stays_the_same(tmp_path: Path, config: Path) -> None:
    from appliance.config import load

    settings = load(config)
    open_store(settings.state).close()
    (settings.state / "parcel.key").write_bytes(b"\3" * 32)
    key = device_key(settings)
    assert key.private_bytes_raw() == b"\3" * 32
    assert b"\3" * 32 not in (settings.state / "parcel.key").read_bytes()
    assert device_key(settings).private_bytes_raw() == b"\3" * 32
