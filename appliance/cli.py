"""The command ``bedside``: words on a command line in, parts called, answers printed. No logic of its own.

What this module keeps true: every command ends with 0 when it did what was asked, 1 when it did not and said why, 2 for a
wrong command line or configuration; errors name cause and remedy on one line, without a trace; imports are made by the
command that needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from appliance.cli_console import console_certificate, console_code
from appliance.cli_deidentify import deidentify
from appliance.cli_devices import devices
from appliance.cli_identity import audit_app, enrol, erase, seal_key
from appliance.cli_models import models_app
from appliance.cli_provision import backup, provision, stick
from appliance.config import example
from appliance.records import Modality
from appliance.terminal import (
    CacheOption,
    ConfigOption,
    EngineOption,
    JsonOption,
    ModelsOption,
    complain,
    configured,
    engine_error,
    folders,
    print_json,
    told,
)

if TYPE_CHECKING:
    from appliance.config import LogConfig

app = typer.Typer(
    name="bedside",
    help="Reads X-rays, ultrasound, heart and lung sounds at the bedside. Advice for a human, never a diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(models_app, name="models")
app.add_typer(audit_app, name="audit")
app.command()(enrol)
app.command()(erase)
app.command("seal-key")(seal_key)
app.command()(deidentify)
app.command()(devices)
app.command("console-code")(console_code)
app.command("console-certificate")(console_certificate)
app.command()(provision)
app.command()(backup)
app.command()(stick)


@app.command()
def run(config: ConfigOption = None) -> None:
    """Run the daemon: take captures, read them, send them, until stopped."""
    from appliance.capture import footprint

    footprint.one_heap()
    footprint.never_decodes()
    from appliance.daemon import Daemon
    from appliance.store.errors import StoreError

    settings = configured(config)
    _log_to_stderr(settings.log)
    with told(StoreError, OSError):
        Daemon(settings).run()


@app.command()
def read(
    files: Annotated[list[Path], typer.Argument(help="DICOM, PNG, JPEG, WAV or FLAC files.")],
    modality: Annotated[Modality | None, typer.Option(help="What the files are of; DICOM says it itself.")] = None,
    age: Annotated[float | None, typer.Option(min=0, max=150, help="The patient's age in years.")] = None,
    json: JsonOption = False,
    overlay: Annotated[Path | None, typer.Option(help="Write a picture with the heatmap of each file here.")] = None,
    engine: EngineOption = "auto",
    models: ModelsOption = None,
    cache: CacheOption = None,
    config: ConfigOption = None,
) -> None:
    """Read files once, without a daemon, and print what was found or why not."""
    from appliance.inference.trust import of_config
    from appliance.reading.read_command import run_read

    folder, derived = folders(config, models, cache)
    lines = run_read(
        _existing(files),
        models=folder,
        cache=derived,
        engine=engine,
        modality=modality,
        age=age,
        overlay_dir=overlay,
        on_problem=complain,
        trust=None if models else of_config(configured(config)),
    )
    with told(OSError, engine_error()):
        for line in lines:
            if json:
                print_json(line)
            else:
                _print_line(line)


@app.command()
def add(
    files: Annotated[list[Path], typer.Argument(help="Files to keep, read and send as if they had been captured.")],
    modality: Annotated[Modality, typer.Option(help="What files are of that can't say it.")] = Modality.OTHER,
    config: ConfigOption = None,
) -> None:
    """Put files into the box; each is saved when its line is printed. Works beside a running daemon or without one."""
    from appliance.capture.add import add_files
    from appliance.health.clock import Clock
    from appliance.store.errors import StoreError

    with told(StoreError, OSError):
        kept = [_say_added(*one) for one in add_files(configured(config), _existing(files), modality, Clock().now)]
    if not all(kept):
        raise typer.Exit(1)


@app.command()
def status(json: JsonOption = False, config: ConfigOption = None) -> None:
    """What the box holds, what waits for the link, and what a running daemon says of itself."""
    from appliance.health.status import state_of
    from appliance.store.errors import StoreError

    with told(StoreError, OSError):
        state = state_of(configured(config))
    if json:
        print_json(state)
        return
    for name, value in msgspec.to_builtins(state).items():
        text = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name.replace('_', ' '):18} {'; '.join(text) if isinstance(text, list) else text}")


@app.command()
def doctor(json: JsonOption = False, config: ConfigOption = None) -> None:
    """Check configuration, disk, broker, audio, engines, models and clock; say what to do for each failing point."""
    from appliance.health.doctor import run_checks

    checks = run_checks(configured(config))
    for check in checks:
        if json:
            print_json(check)
        else:
            mark = {True: "ok  ", False: "FAIL", None: "?   "}[check.ok]
            typer.echo(f"{mark} {check.name}: {check.found}" + (f"\n     → {check.remedy}" if check.remedy else ""))
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


@app.command("config")
def config_command(
    show_example: Annotated[bool, typer.Option("--example", help="Print every field, commented.")] = False,
    check: Annotated[Path | None, typer.Option("--check", help="Check a file and say what is wrong.")] = None,
) -> None:
    """Print a commented configuration, or check one."""
    if show_example:
        typer.echo(example(), nl=False)
    elif check is not None:
        configured(check)
        typer.echo(f"{check}: valid")
    else:
        typer.echo("say --example or --check FILE", err=True)
        raise typer.Exit(2)


@app.command("export")
def export_command(
    folder: Annotated[Path | None, typer.Argument(help="Folder of the stick.")] = None,
    key: Annotated[bool, typer.Option("--key", help="Print this box's line for the hub's devices file.")] = False,
    config: ConfigOption = None,
) -> None:
    """Put what waits for the hub onto a stick, encrypted for the hub; works beside a running daemon (docs/usb.md)."""
    from appliance.protocol.parcel import ParcelError, public_text
    from appliance.store.errors import StoreError
    from appliance.sync.export import Stick, device_key, export

    settings = configured(config)
    with told(ParcelError, StoreError, OSError):
        if key:
            typer.echo(f"{settings.device.site}/{settings.device.name} {public_text(device_key(settings))}")
        elif folder is None:
            raise typer.BadParameter("say the folder of the stick, or --key")
        else:
            done = export(settings, Stick(folder), _show_bytes)
            count = len(done.parcels)
            typer.echo(
                f"{done.messages} messages and {done.blob_bytes} bytes of pictures and sounds in {count} parcels"
            )
            for reason in done.left:
                complain(reason)


@app.command("import-receipts")
def import_receipts(
    folder: Annotated[Path, typer.Argument(help="Folder of the stick.")], config: ConfigOption = None
) -> None:
    """Obey the hub's receipts from a stick, and clear the stick of what they answer (docs/usb.md)."""
    from appliance.health.clock import Clock
    from appliance.protocol.parcel import ParcelError
    from appliance.store.errors import StoreError
    from appliance.sync.carried import carry_back

    with told(ParcelError, StoreError, OSError):
        found = [_say_added(*one) for one in carry_back(configured(config), folder, Clock().now)]
    if not found:
        complain(f"{folder}: no receipts for this box")
    if not all(found) or not found:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the command."""
    app()


def _existing(files: list[Path]) -> Iterator[Path]:
    for path in files:
        if path.is_dir():
            yield from sorted(one for one in path.rglob("*") if one.is_file())
        else:
            yield path


def _say_added(path: Path, outcome: str, kept: bool) -> bool:
    typer.echo(f"{path}: {outcome}", err=not kept)
    return kept


def _show_bytes(done: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done >> 20} MB")
        sys.stderr.flush()


def _print_line(line: Any) -> None:
    mark = {"critical": "!!!", "urgent": "!! ", "routine": "   "}[line.triage]
    found = ", ".join(
        f"{one.label} {one.probability:.0%}{' (positive)' if one.positive else ''}" for one in line.findings
    )
    typer.echo(f"{mark} {line.file}: {found or line.reason}")
    typer.echo(f"      {line.advice}  [{line.bundle} {line.engine} {line.provider} {line.milliseconds:.0f} ms]")


def _log_to_stderr(config: LogConfig) -> None:
    import logging

    import structlog

    level: int = getattr(logging, config.level.upper())
    logging.basicConfig(stream=sys.stderr, level=max(level, logging.WARNING), format="%(name)s: %(message)s")
    last: Callable[..., Any] = (
        structlog.processors.JSONRenderer() if config.format == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


if __name__ == "__main__":
    main()
