"""The configuration: every field documented, every mistake told with its path and a remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from appliance import config
from appliance.config import Config, ConfigError


def test_the_example_is_valid_and_holds_every_default() -> None:
    assert config.parse(config.example()) == Config()


def test_every_field_has_a_title_and_stands_in_the_example() -> None:
    example = config.example()
    for section, name, title, _, _ in config.fields():
        assert title, f"{section}.{name} has no title"
        assert f"\n{name} = " in example


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[dicom]\nprot = 1", r"dicom\.prot: no such field; did you mean 'port'"),
        ("[devce]\n", r"devce: no such section; did you mean 'device'"),
        ("[dicom]\nport = 0", r"dicom\.port: Expected `int` >= 1 \(Port to listen on; default 11112\)"),
        ("[dicom]\nport = 'x'", r"dicom\.port: Expected `int`, got `str`"),
        ("[device]\nsite = 'Clinic of Dr. Who'", r"device\.site: .*lower case letters"),
        ("[models]\nengine = 'gpu'", r"models\.engine: Invalid enum value 'gpu'"),
        ("[link]\nkey_file = 'k.pem'", r"link\.certificate_file and link\.key_file go together"),
        ("[link]\nreconnect_from = 20\nreconnect_to = 10", r"link\.reconnect_to"),
        ("[storage]\nrefuse_below = 64\nreserve = 64", r"storage\.reserve: must be less"),
        ("x = ", "not valid TOML"),
        ("dicom = 3", r"dicom: Expected `object`, got `int`"),
        ("[storage]\nstate = ''", r"storage\.state: Expected `str` of length >= 1"),
        ('[storage]\nstate = "a\\u0000b"', "character of code 0"),
        ("a = " + "[" * 3000, "not a configuration"),
        ("[dicom]\nport = " + "9" * 4000, r"dicom\.port: "),
        (".".join("a" * 20000) + " = 1", "too long to be a configuration"),
        ("# words\n" * 40000, "too long to be a configuration"),
    ],
)
def test_a_mistake_is_told_with_its_field_and_a_remedy(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.parse(text)


def test_a_file_without_end_is_told_before_it_fills_the_memory() -> None:
    with pytest.raises(ConfigError, match="too long to be a configuration"):
        config.load(Path("/dev/zero"))


def test_a_missing_file_is_told_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bedside config --example"):
        config.load(tmp_path / "none.toml")


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(path)


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().dicom.port = 1  # type: ignore[misc]
    assert msgspec.structs.replace(Config().dicom, port=1).port == 1


def test_the_daemon_ends_with_2_on_a_configuration_that_a_human_must_mend(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text("[dicom]\nprot = 1\n")
    bedside = Path(sys.executable).parent / "bedside"
    done = subprocess.run([bedside, "run", "--config", path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'port'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('address = "0.0.0.0"', "plain_http = true"),
        ('address = "192.168.4.1"', 'tls = "own"'),
        ('tls = "files"\ncertificate_file = "/x.pem"', "key_file"),
        ('tls = "own"\ntls_port = 8080', "tls_port"),
    ],
)
def test_a_console_that_would_serve_others_in_clear_or_half_secured_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.parse(f"[console]\n{text}")


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("", "127.0.0.1"),
        ('address = "0.0.0.0"\nplain_http = true', "127.0.0.1"),
        ('address = "192.168.4.1"\nplain_http = true', "192.168.4.1"),
        ('address = "192.168.4.1"\ntls = "own"', "127.0.0.1"),
        ('address = "::1"\ntls = "own"', "::1"),
    ],
)
def test_the_box_itself_reaches_its_console_in_clear(text: str, here: str) -> None:
    assert config.parse(f"[console]\n{text}").console.here == here
