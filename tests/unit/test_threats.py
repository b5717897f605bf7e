"""The threat model names tests that exist, and every attacker of the suite stands in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hub import config as hub_config
from tools.attack.__main__ import ATTACKERS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/[a-z_/0-9]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 30
    for path, name in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE), f"{path}::{name}"


def test_every_threat_has_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| attacker")]
    assert len(rows) >= 20
    assert [row for row in rows if "`tests/" not in row] == []


def test_every_attacker_of_the_suite_stands_in_the_threat_model() -> None:
    words = {
        "thief": "thief",
        "guest": "guest",
        "broker": "rogue broker",
        "replayer": "replayer",
        "device": "rogue device",
    }
    assert set(words) == set(ATTACKERS)
    assert [word for word in words.values() if f"| {word}" not in TEXT] == []


@pytest.mark.parametrize("host", ["hub.example", "192.0.2.7", "2001:db8::7"])
def test_a_hub_without_an_authority_serves_this_machine_only(host: str) -> None:
    with pytest.raises(hub_config.ConfigError, match=r"authority\.folder: empty while broker\.host"):
        hub_config.parse(f'[broker]\nhost = "{host}"')
    hub_config.parse(f'[broker]\nhost = "{host}"\ntls = true\n[authority]\nfolder = "/etc/bedside/authority"')
    hub_config.parse('[broker]\nhost = "localhost"')
