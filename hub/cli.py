"""The command ``bedside-hub``: run the hub, run a further worker, print a configuration, look whether all is well.

What this module keeps true: it parses, wires and prints; a fault of the configuration or the machine ends with one
sentence on standard error and status 1 or 2, never a traceback.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hub import config as configuration
from hub.cli_authority import broker, ca_app, checkpoints
from hub.cli_people import token_app, user_app
from hub.config import Config, ConfigError

if TYPE_CHECKING:
    from hub.parcels import Taken

app = typer.Typer(
    name="bedside-hub",
    help="Takes in what the bedside boxes send, shows it by urgency, sends the radiologist's word back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(ca_app, name="ca")
app.add_typer(user_app, name="user")
app.add_typer(token_app, name="token")
app.command()(broker)
app.command()(checkpoints)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The hub's TOML file.", dir_okay=False)]
_DEFAULT = Path("/etc/bedside/hub.toml")
_KEYS = Path("/etc/bedside/hub-parcels.key")
_DEVICES = Path("/etc/bedside/hub-parcels.devices")


def _fail(message: str, status: int = 2) -> NoReturn:
    typer.echo(f"bedside-hub: {message}", err=True)
    raise typer.Exit(status)


def _load(path: Path) -> Config:
    try:
        return configuration.load(path)
    except ConfigError as error:
        _fail(str(error))


@app.command()
def run(config: ConfigOption = _DEFAULT) -> None:
    """Run the hub: one ingest worker, the way down, escalation and the pages."""
    from hub.service import ServiceError, run_hub

    try:
        run_hub(_load(config))
    except ServiceError as error:
        _fail(str(error), 1)


@app.command()
def worker(
    config: ConfigOption = _DEFAULT,
    name: Annotated[
        str, typer.Option(help="This worker's name; the same name again takes over its session at the broker.")
    ] = "",
) -> None:
    """Run one more ingest worker beside the hub; any number may share the messages, on any machine."""
    from hub.service import ServiceError, run_worker

    try:
        run_worker(_load(config), name)
    except ServiceError as error:
        _fail(str(error), 1)


@app.command("config")
def show_config(
    example: Annotated[bool, typer.Option("--example", help="Print a commented configuration.")] = False,
    check: Annotated[Path | None, typer.Option("--check", help="Check this file.", dir_okay=False)] = None,
) -> None:
    """Print a commented configuration (--example), or check one (--check FILE)."""
    if check is not None:
        _load(check)
        typer.echo(f"{check}: valid")
    elif example:
        typer.echo(configuration.example(), nl=False)
    else:
        _fail("say --example to print a configuration or --check FILE to check one")


@app.command()
def password(
    name: Annotated[str, typer.Argument(help="Who may sign in.")],
    secret: Annotated[
        str,
        typer.Option("--password", prompt=True, hide_input=True, confirmation_prompt=True, envvar="BEDSIDE_PASSWORD"),
    ],
) -> None:
    """Print the line for web.users_file that lets NAME sign in as a reader: append it to that file."""
    from hub.users import UsersError, line

    try:
        typer.echo(line(name, secret))
    except UsersError as error:
        _fail(str(error))


@app.command()
def keys(
    file: Annotated[Path, typer.Argument(help="The key file; made with mode 0600 if it is not there.")] = _KEYS,
) -> None:
    """Print the public key that the boxes are given (usb.hub_key), for parcels on sticks."""
    from appliance.protocol.parcel import ParcelError
    from hub.parcels import make_keys

    try:
        typer.echo(make_keys(file).public)
    except ParcelError as error:
        _fail(str(error), 1)


@app.command("import")
def import_parcels(
    folder: Annotated[Path, typer.Argument(help="Folder of the stick.", file_okay=False)],
    config: ConfigOption = _DEFAULT,
    key_file: Annotated[Path, typer.Option("--keys", help="The hub's key file.")] = _KEYS,
    devices: Annotated[Path, typer.Option(help="Lines that `bedside export --key` printed at the boxes.")] = _DEVICES,
) -> None:
    """Take in the parcels on a stick and write the receipts back to it; may run beside the hub."""
    from appliance.protocol.parcel import ParcelError
    from hub.parcels import known_devices, open_keys, take_parcels
    from hub.receive import StoreUnavailable
    from hub.service import ServiceError, make_receiver, open_store

    settings = _load(config)
    try:
        database, blobs = open_store(settings)
        receiver = make_receiver(settings, database, blobs)
        taken = list(map(_say_taken, take_parcels(folder, open_keys(key_file), known_devices(devices), receiver)))
    except (ParcelError, ServiceError, StoreUnavailable, OSError) as error:
        _fail(str(error), 1)
    if not taken:
        _fail(f"{folder}: no parcels there", 1)
    if not all(taken):
        raise typer.Exit(1)


def _say_taken(taken: Taken) -> bool:
    typer.echo(f"{taken.parcel.name}: {taken.words}", err=taken.receipts is None)
    return taken.receipts is not None


@app.command()
def doctor(config: ConfigOption = _DEFAULT) -> None:
    """Check configuration, database, blob folder and broker; say what to do for each failing point."""
    from hub.doctor import examine

    points = list(examine(_load(config)))
    for point in points:
        typer.echo(f"{'ok  ' if point.good else 'FAIL'}  {point.name}: {point.text}")
    if not all(point.good for point in points):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(metadata.version("bedside"))


def main() -> None:
    """Entry point."""
    sys.exit(app())


if __name__ == "__main__":
    main()
