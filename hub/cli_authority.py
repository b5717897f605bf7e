"""The commands about who is who: ``bedside-hub ca …`` and ``bedside-hub broker``.

What this module keeps true: it parses, wires and prints; the work is done in ``authority``, ``enrolment`` and ``broker``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from appliance.protocol.enrolment import ANSWER_SUFFIX, MAXIMUM, EnrolmentError
from appliance.protocol.topics import Address
from hub import config as configuration
from hub.authority import Authority, AuthorityError, make_authority
from hub.config import Config, ConfigError
from hub.database import Database, DatabaseError
from hub.enrolment import Enrolments
from hub.identity import make_enrolments

ca_app = typer.Typer(name="ca", help="The hub's authority: who the boxes are.", no_args_is_help=True)
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The hub's TOML file.", dir_okay=False)]
_DEFAULT = Path("/etc/bedside/hub.toml")


def fail(message: str, status: int = 1) -> NoReturn:
    """Say it on standard error and end."""
    typer.echo(f"bedside-hub: {message}", err=True)
    raise typer.Exit(status)


@ca_app.command()
def init(
    config: ConfigOption = _DEFAULT,
    name: Annotated[str, typer.Option(help="What the authority is called in certificates.")] = "Bedside hub",
) -> None:
    """Make the authority in authority.folder, once; keep a copy of that folder off this machine."""
    folder = _folder(_load(config))
    try:
        make_authority(folder, name)
    except (AuthorityError, OSError) as error:
        fail(str(error))
    typer.echo(f"{folder}: made. Keep a copy elsewhere, under lock: whoever has ca.key can pose as any box.")


@ca_app.command()
def code(
    site: Annotated[str, typer.Argument(help="The box's [device] site.")],
    device: Annotated[str, typer.Argument(help="The box's [device] name.")],
    config: ConfigOption = _DEFAULT,
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 90, help="How long it may be used.")] = 48,
) -> None:
    """Print a one-time code for a box: it enrols that box once, and nothing else."""
    try:
        typer.echo(open_enrolments(_load(config)).make_code(Address(site, device), _now_ms(), hours))
    except AuthorityError as error:
        fail(str(error))


@ca_app.command()
def answer(
    request: Annotated[Path, typer.Argument(help="The .enrol file from the stick.", dir_okay=False, exists=True)],
    config: ConfigOption = _DEFAULT,
) -> None:
    """Answer the request of a box without a network; the answer is written beside it."""
    enrolments = open_enrolments(_load(config))
    target = request.with_suffix(ANSWER_SUFFIX)
    try:
        with request.open("rb") as file:
            target.write_bytes(enrolments.enrol(file.read(MAXIMUM + 1), _now_ms()))
    except (EnrolmentError, OSError) as error:
        fail(str(error))
    typer.echo(f"{target}: carry it back and give it to the box: bedside enrol --answer {target.name}")


@ca_app.command("list")
def list_all(config: ConfigOption = _DEFAULT) -> None:
    """Every key that was ever enrolled, and until when its certificate is valid."""
    for one in open_enrolments(_load(config)).all():
        until = time.strftime("%Y-%m-%d", time.gmtime(one.ends_ms / 1000))
        typer.echo(f"{one.device:40} {one.key:12} {one.state:9} certificate until {until} {one.reason}".rstrip())


@ca_app.command()
def revoke(
    device: Annotated[str, typer.Argument(help="site/device, as `ca list` prints it.")],
    config: ConfigOption = _DEFAULT,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "revoked by the operator",
) -> None:
    """End a box's key and certificates: the hub refuses it at once, the broker after a reload."""
    if not open_enrolments(_load(config)).revoke(device, reason, _now_ms()):
        fail(f"{device}: nothing active; see: bedside-hub ca list")
    typer.echo(f"{device}: revoked. Now reload the broker: systemctl reload mosquitto (restart it to drop connections)")


@ca_app.command()
def server(
    names: Annotated[list[str], typer.Argument(help="Host names or addresses of the pages.")],
    config: ConfigOption = _DEFAULT,
) -> None:
    """Make key and certificate for the hub's pages (web.certificate_file, web.key_file)."""
    try:
        certificate, key = Authority(_folder(_load(config))).for_server("web", names)
    except (AuthorityError, OSError) as error:
        fail(str(error))
    typer.echo(f'certificate_file = "{certificate}"\nkey_file = "{key}"')


def broker(
    folder: Annotated[Path, typer.Argument(help="Where mosquitto.conf and acl are written.", file_okay=False)],
    name: Annotated[list[str], typer.Option("--name", help="Host name or address of the broker; may be given again.")],
    config: ConfigOption = _DEFAULT,
    port: Annotated[int, typer.Option(help="Port for the boxes.")] = 8883,
    hub_port: Annotated[int, typer.Option(help="Port for the hub; broker.port of its configuration.")] = 8884,
    address: Annotated[str, typer.Option(help="Address to listen on for the boxes.")] = "0.0.0.0",  # noqa: S104
    hub_address: Annotated[str, typer.Option(help="Address to listen on for hubs.")] = "127.0.0.1",
    user: Annotated[str, typer.Option(help="The system's user that mosquitto becomes.")] = "mosquitto",
) -> None:
    """Write mosquitto's configuration: TLS 1.3 both ways, and a box can only be itself."""
    from hub.broker import Ports, write_broker

    try:
        authority = Authority(_folder(_load(config)))
        path = write_broker(folder, authority, name, Ports(port, hub_port, address, hub_address), user)
    except (AuthorityError, OSError) as error:
        fail(str(error))
    typer.echo(f"{path}: written. Start it with: mosquitto -c {path}")


def checkpoints(
    device: Annotated[str, typer.Argument(help="site/device; all without it.")] = "",
    log: Annotated[Path | None, typer.Option(help="That box's log (`bedside audit export`), to compare.")] = None,
    config: ConfigOption = _DEFAULT,
) -> None:
    """What the boxes said of their audit logs; with --log, whether a box's log is still the one it was."""
    from hub.checkpoints import contradicted, points

    try:
        database = Database(_load(config).database_url)
        database.migrate()
        with database.read() as connection:
            held = points(connection, device)
        entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log else []
    except (DatabaseError, OSError, ValueError) as error:
        fail(str(error))
    if log is None:
        for one in held:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one.received_ms / 1000))
            typer.echo(f"{one.device:40} entry {one.sequence:8} {one.chain} {when}")
        return
    if not device:
        fail("say whose log it is: bedside-hub checkpoints SITE/DEVICE --log FILE", 2)
    wrong = contradicted(held, entries)
    if wrong or not held:
        fail(
            f"{device}: the log is not the one that it was at entry {wrong[0].sequence}"
            if wrong
            else f"{device}: none held"
        )
    typer.echo(f"{device}: {len(entries)} entries agree with {len(held)} checkpoints")


def open_enrolments(config: Config) -> Enrolments:
    """The enrolments as configured; ends the program with what is wrong."""
    try:
        database = Database(config.database_url, busy_timeout=config.database.busy_timeout)
        database.migrate()
        return make_enrolments(config, database)
    except (DatabaseError, AuthorityError, OSError) as error:
        fail(str(error))


def _folder(config: Config) -> Path:
    if not config.authority.folder:
        fail(
            'authority.folder is not set; write it into the configuration: [authority] folder = "/etc/bedside/authority"',
            2,
        )
    return Path(config.authority.folder)


def _load(path: Path) -> Config:
    try:
        return configuration.load(path)
    except ConfigError as error:
        fail(str(error), 2)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
