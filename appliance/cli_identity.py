"""The commands about who this box is and what it can prove: ``bedside enrol``, ``erase`` and ``audit``.

What this module keeps true: as in ``cli``: it parses, calls and prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.terminal import ConfigOption, JsonOption, complain, configured, print_json, told

audit_app = typer.Typer(name="audit", help="The audit log: what happened here, provably.", invoke_without_command=True)


def enrol(
    hub: Annotated[str, typer.Option("--hub", help="The hub's address, https://…")] = "",
    code: Annotated[str, typer.Option("--code", help="The one-time code: bedside-hub ca code SITE DEVICE.")] = "",
    offline: Annotated[Path | None, typer.Option(help="Write the request into this folder, to be carried.")] = None,
    answer: Annotated[Path | None, typer.Option(help="Take the answer that was carried back, or its folder.")] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Forget this box's keys and make new ones first.")] = False,
    config: ConfigOption = None,
) -> None:
    """Make this box known to its hub with a one-time code, over the network or on a stick; again to replace its keys."""
    from appliance.protocol.enrolment import EnrolmentError
    from appliance.store.credentials import IdentityError, new_keys
    from appliance.store.errors import StoreError
    from appliance.store.files import RealFiles
    from appliance.store.keys import open_key
    from appliance.sync import enrolment

    settings = configured(config)
    if (answer is None) == (not code) or (not answer and (offline is None) == (not hub)):
        raise typer.BadParameter("say --hub URL --code CODE, or --offline FOLDER --code CODE, or --answer FILE")
    with told(EnrolmentError, IdentityError, StoreError, OSError):
        if new_key:
            new_keys(settings.state, open_key(settings.state, RealFiles()))
        if offline is not None:
            path = enrolment.write_request(settings, offline, code)
            typer.echo(
                f"{path}: carry it to the hub (bedside-hub ca answer) and its answer back (bedside enrol --answer)"
            )
            return
        done = enrolment.take_answer(settings, answer) if answer else enrolment.enrol(settings, hub, code)
    typer.echo(f"{done.device} is enrolled; its certificate is valid until {done.ends:%Y-%m-%d} and renewed before.")
    if done.broker:
        host, _, port = done.broker.rpartition(":")
        typer.echo(f'Its configuration:\n[link]\nhost = "{host}"\nport = {port}\ntls = true')
    if done.parcel_key:
        typer.echo(f'[usb]\nhub_key = "{done.parcel_key}"')


def erase(yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False, config: ConfigOption = None) -> None:
    """Destroy this box's keys and all that they sealed, for good; the daemon must be stopped."""
    from appliance.store.erase import erase as erase_all
    from appliance.store.errors import StoreError

    state = configured(config).state
    if not yes:
        typer.confirm(f"Destroy every capture, reading and key in {state}, for good?", abort=True)
    with told(StoreError, OSError):
        count = erase_all(state)
    typer.echo(f"{state}: the keys are destroyed, {count} files removed. Revoke this box at its hub too.")


def seal_key(
    module: Annotated[str, typer.Option("--module", help="The token's PKCS#11 module, a .so file.")],
    token: Annotated[str, typer.Option("--token", help="The token's label.")],
    pin_file: Annotated[Path, typer.Option("--pin-file", help="File with the token's user PIN, mode 0600.")],
    config: ConfigOption = None,
) -> None:
    """Seal the box key to a TPM, OP-TEE or card through PKCS#11: a copied disk is worth nothing without it."""
    from appliance.store.erase import seal_to_token
    from appliance.store.errors import StoreError

    state = configured(config).state
    with told(StoreError, OSError):
        seal_to_token(state, module=module, label=token, pin_file=pin_file.absolute())
    typer.echo(f"{state}: the box key is sealed to {token}; without that token nothing here can be read any more.")


@audit_app.callback()
def audit(context: typer.Context, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Verify the audit log; with --json, print it."""
    if context.invoked_subcommand is None:
        _verify(config, json=json)


@audit_app.command()
def verify(config: ConfigOption = None) -> None:
    """Find any entry that was changed, removed, put between or cut off: chain, end and signed checkpoints."""
    _verify(config, json=False)


@audit_app.command("export")
def export_log(
    atna: Annotated[bool, typer.Option("--atna", help="As DICOM audit messages (IHE ATNA), XML.")] = False,
    config: ConfigOption = None,
) -> None:
    """Print the log, one entry a line: JSON, or DICOM audit messages for an audit record repository."""
    from appliance.health.status import audit_of
    from appliance.store import atna as forms
    from appliance.store.errors import StoreError

    settings = configured(config)
    device = f"{settings.device.site}/{settings.device.name}"
    with told(StoreError, OSError):
        entries = audit_of(settings)[0]
    for entry in entries:
        if atna:
            typer.echo(forms.message(entry, device))
        else:
            print_json(entry)


def _verify(config: Path | None, *, json: bool) -> None:
    from appliance.health.status import audit_of
    from appliance.store.errors import StoreError

    with told(StoreError, OSError):
        entries, verdict = audit_of(configured(config))
    if json:
        for entry in entries:
            print_json(entry)
    typer.echo(f"{verdict.entries} entries: {verdict.words}", err=json)
    if verdict.broken is not None:
        complain("compare with the hub's checkpoints, and keep this disk as it is: bedside-hub checkpoints")
        raise typer.Exit(1)
