"""The README can't rot: commands, fields and schemas are documented or this fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer.main

from appliance import config
from appliance.cli import app
from tools.schema import texts

ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[str]:
    group = typer.main.get_group(app)
    names = []
    for name, command in group.commands.items():
        children = getattr(command, "commands", None)
        names += [f"bedside {name} {child}" for child in children] if children else [f"bedside {name}"]
    return names


def test_every_command_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [name for name in commands() if name not in readme]
    assert not missing
    assert "bedside-hub run" in readme


def test_every_configuration_field_stands_in_the_reference() -> None:
    reference = (ROOT / "docs" / "configuration.md").read_text()
    missing = [f"{section}.{name}" for section, name, *_ in config.fields() if f"`{section}.{name}`" not in reference]
    assert not missing, "run: python -m tools.schema"


def test_the_published_schemas_are_those_of_the_code() -> None:
    stale = [path.name for path, text in texts().items() if not path.exists() or path.read_text() != text]
    assert not stale, "run: python -m tools.schema"


def test_every_command_explains_itself() -> None:
    bedside = Path(sys.executable).parent / "bedside"
    for name in commands():
        done = subprocess.run([bedside, *name.split()[1:], "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, name
        assert "Usage:" in done.stdout
