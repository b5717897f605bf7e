"""Claims about the hub's configuration and commands: a typo never becomes a default, every fault names its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from hub import config as configuration
from hub.cli import app
from hub.config import Config, ConfigError, parse
from hub.database import MIGRATIONS, Database, DatabaseError
from hub.service import ServiceError, make_site, open_store


def test_the_example_is_valid_and_holds_every_default():
    assert parse(configuration.example()) == Config()


def test_every_field_of_the_example_has_a_title():
    assert [name for _, name, title, _, _ in configuration.fields() if len(title) < 6] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[web]\nprot = 1", ["web.prot", "did you mean 'port'"]),
        ("[wbe]\nport = 1", ["wbe", "did you mean 'web'"]),
        ("[web]\nport = 0", ["web.port", ">= 1", "default 8090"]),
        ('[web]\nport = "8090"', ["web.port", "int"]),
        ('[web]\naddress = "0.0.0.0"', ["web.certificate_file", "bedside-hub ca server", "web.proxy"]),
        ('[database]\nurl = "mysql://x"', ["database.url", "postgresql+psycopg"]),
        ("[broker]\ntls = true", ["broker.ca_file", "PEM"]),
        ('[broker]\ncertificate_file = "x"', ["broker.certificate_file", "broker.key_file"]),
        ("[escalation]\ncritical_after = [30.0, 15.0]", ["escalation.critical_after", "rise"]),
        ("[outbox]\nretry_to = 1.0", ["outbox.retry_to", "retry_from"]),
        ("[web\nport = 1", ["not valid TOML"]),
    ],
)
def test_a_fault_names_its_field_and_what_to_write_instead(text, words):
    with pytest.raises(ConfigError) as caught:
        parse(text, "hub.toml")
    for word in ["hub.toml", *words]:
        assert word in str(caught.value)


def test_the_first_start_for_others_is_refused_until_somebody_may_sign_in(tmp_path):
    settings = parse(f'[storage]\nstate = "{tmp_path}"\n[web]\naddress = "0.0.0.0"\nproxy = true')
    database, blobs = open_store(settings)
    with pytest.raises(ServiceError, match="bedside-hub user add"):
        make_site(settings, database, blobs, lambda: None)
    database.close()


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_missing_configuration_ends_with_a_sentence(tmp_path):
    result = run("run", "--config", tmp_path / "none.toml")
    assert result.exit_code == 2
    assert "bedside-hub config --example" in result.output
    assert "Traceback" not in result.output


def test_the_doctor_finds_a_broker_that_is_away_and_says_what_to_do(tmp_path):
    file = tmp_path / "hub.toml"
    file.write_text(f'[storage]\nstate = "{tmp_path}"\nrefuse_below = 1\n[broker]\nport = 1\n', encoding="utf-8")
    result = run("doctor", "--config", file)
    assert result.exit_code == 1
    [line] = [line for line in result.output.splitlines() if line.startswith("FAIL")]
    assert "broker" in line
    assert "start it" in line
    assert not (tmp_path / "hub.sqlite").exists()


def test_a_checked_configuration_is_called_valid(tmp_path):
    file = tmp_path / "hub.toml"
    file.write_text(run("config", "--example").output, encoding="utf-8")
    assert run("config", "--check", file).output == f"{file}: valid\n"


def test_a_database_of_a_newer_program_is_refused_with_its_remedy(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/hub.sqlite")
    assert database.migrate() == 0
    assert database.migrate() == len(MIGRATIONS)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE schema_version SET version = 99")
    with pytest.raises(DatabaseError, match="newer than this program"):
        database.migrate()
    database.close()


def test_a_migration_that_fails_leaves_the_old_version_whole(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/hub.sqlite")
    database.migrate()

    def broken(connection):
        connection.exec_driver_sql("CREATE TABLE half (id INTEGER)")
        connection.exec_driver_sql("nonsense")

    with pytest.raises(DatabaseError):
        database.migrate([*MIGRATIONS, broken])
    with database.read() as connection:
        assert database.version(connection) == len(MIGRATIONS)
        assert connection.exec_driver_sql("SELECT count(*) FROM sqlite_master WHERE name = 'half'").scalar() == 0
    database.close()


def test_the_hubs_database_survives_the_loss_of_power():
    """SQLite promises that only with these two settings."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/hub.sqlite")
        with database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        database.close()


def test_every_field_and_command_of_the_hub_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
    fields = [f"`{section}.{name}` | {title} |" for section, name, title, _, _ in configuration.fields()]
    commands = [f"`bedside-hub {name}" for name in typer.main.get_group(app).commands]
    assert [line for line in [*fields, *commands] if line not in text] == []
