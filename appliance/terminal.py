"""What the commands of ``bedside`` share: options in, lines out.

What this module keeps true: an error of a named kind becomes one line on standard error and status 1, never a trace; JSON is
one object a line; without ``--config`` the system's configuration is used when it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from appliance.config import Config, ConfigError
from appliance.config import load as load_config

BAD_CONFIG = 2
"""Exit status for a configuration that a human must mend: the service manager does not try again (``bedside.service``)."""

DEFAULT_CONFIG = Path("/etc/bedside/bedside.toml")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help=f"Configuration file; {DEFAULT_CONFIG} when it is there.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
ModelsOption = Annotated[Path | None, typer.Option("--models", help="Folder of model bundles.")]
CacheOption = Annotated[Path | None, typer.Option("--cache", help="Folder for what is derived from them.")]
EngineOption = Annotated[str, typer.Option("--engine", help="auto, cpu, cuda, tensorrt-ort or tensorrt.")]


def configured(path: Path | None) -> Config:
    """The configuration as said, else the one of the system, else every default."""
    chosen = path or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    if chosen is None:
        return Config()
    try:
        return load_config(chosen)
    except ConfigError as error:
        complain(str(error))
        raise typer.Exit(BAD_CONFIG) from None


def folders(config: Path | None, models: Path | None, cache: Path | None) -> tuple[tuple[Path, ...], Path]:
    """Folders of bundles and cache: as said, else as configured; without a configuration the cache is the user's own."""
    settings = configured(config)
    is_said = config is not None or DEFAULT_CONFIG.exists()
    derived = settings.models_cache if is_said else Path.home() / ".cache" / "bedside"
    there = (models,) if models else (settings.models_directory, settings.models_installed)
    return there, cache or derived


def engine_error() -> type[Exception]:
    """The error of engines, imported where it is needed."""
    from appliance.inference.engine import EngineError

    return EngineError


@contextmanager
def told(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds become one line and exit status 1."""
    try:
        yield
    except kinds as error:
        typer.echo(f"bedside: {error}", err=True)
        raise typer.Exit(1) from None


def complain(problem: str) -> None:
    """Say a problem on standard error."""
    typer.echo(f"bedside: {problem}", err=True)


def flat(one: Any) -> str:
    """A record on one line, for people."""
    parts = []
    for name, value in msgspec.to_builtins(one).items():
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            parts.append(f"{name} {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
        elif isinstance(value, float):
            parts.append(f"{name} {value:.3f}")
        elif value not in ("", None, [], {}):
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def print_json(value: Any) -> None:
    """One object on one line."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def listed(outcome: Any) -> list[Any]:
    """One or many as many."""
    return list(outcome) if isinstance(outcome, (list, tuple)) else [outcome]


def print_all(outcome: Any, *, json: bool) -> None:
    """Records for people, a field a line and a line between two, or as JSON, a record a line."""
    for number, one in enumerate(listed(outcome)):
        if json:
            print_json(one)
            continue
        fields = {key: value for key, value in msgspec.to_builtins(one).items() if value not in ("", [], (), {}, None)}
        widest = max((len(key) for key in fields), default=0)
        typer.echo("\n" * bool(number) + "\n".join(f"{_name(key):{widest}}  {_said(fields[key])}" for key in fields))


def _name(key: str) -> str:
    return key.replace("_", " ")


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(_said(one) for one in value) if isinstance(value, (list, tuple)) else str(value)
