"""The commands that look after the box itself: ``provision``, ``backup`` and ``stick``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.terminal import ConfigOption, JsonOption, complain, configured, print_json, told

if TYPE_CHECKING:
    from appliance.provision.plan import Change
    from appliance.provision.site import Site

RootOption = Annotated[Path, typer.Option("--root", help="Of an image that is mounted here.")]


def provision(
    site: Annotated[Path | None, typer.Argument(help="The site file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the differences, change nothing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Hold the running box against the site file.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a site file with every field.")] = False,
    root: RootOption = Path("/"),
    json: JsonOption = False,
) -> None:
    """Set this box's system to what one site file says; again and again with the same result (firmware_cfg/README.md)."""
    from appliance.provision import site as sites
    from appliance.provision.apply import apply
    from appliance.provision.plan import wanted

    if example:
        typer.echo(sites.example(), nl=False)
        return
    if site is None:
        raise typer.BadParameter("say the site file, or --example")
    with told(sites.ConfigError):
        asked = sites.load(site)
        changes = wanted(asked, site.parent, root)
        if check:
            _check(asked, changes, root, json=json)
        elif dry_run:
            different = [one for one in changes if one.differs and one.after]
            for one in different:
                typer.echo(one.diff(), nl=False)
            typer.echo(f"{len(different)} of {len(changes)} files differ")
        else:
            count, restart = apply(changes, root, typer.echo)
            typer.echo(f"{count} of {len(changes)} files set{'; restart the box' if restart else ''}")


def _check(site: Site, changes: list[Change], root: Path, *, json: bool) -> None:
    from appliance.provision.audit import audit

    facts = list(audit(site, changes, root))
    for fact in facts:
        if json:
            print_json(fact._asdict())
        elif fact.verdict != "ok":
            typer.echo(f"{fact.verdict:8} {fact.what}: {fact.detail}{f' → {fact.remedy}' if fact.remedy else ''}")
    counts = {verdict: sum(fact.verdict == verdict for fact in facts) for verdict in ("ok", "differs", "unknown")}
    if not json:
        typer.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if counts["differs"]:
        raise typer.Exit(1)


def backup(
    folder: Annotated[Path, typer.Argument(help="Where copies of the journal are kept.")],
    keep: Annotated[int, typer.Option("--keep", help="So many copies stay.", min=1, max=365)] = 7,
    config: ConfigOption = None,
) -> None:
    """Copy the journal, whole and sealed as it is, beside a running daemon; the box key is never in it."""
    from appliance.store.backup import backup as copy
    from appliance.store.errors import StoreError

    with told(StoreError, OSError):
        made = copy(configured(config).state, folder, keep)
        typer.echo(f"{made.path} ({made.size} bytes, {made.captures} captures, whole)")


def stick(
    folder: Annotated[Path, typer.Argument(help="Where the stick is mounted.")], config: ConfigOption = None
) -> None:
    """What is done when a stick is plugged in: receipts in, what waits out, into its folder `bedside` if it has one."""
    from appliance.health.clock import Clock
    from appliance.protocol.parcel import ParcelError
    from appliance.store.errors import StoreError
    from appliance.sync.carried import carry_back
    from appliance.sync.export import Stick, export

    target = folder / "bedside"
    if not target.is_dir():
        complain(f"{folder}: no folder `bedside` on it, so it is left alone; make one to carry what waits for the hub")
        return
    settings = configured(config)
    with told(ParcelError, StoreError, OSError):
        for path, words, kept in carry_back(settings, target, Clock().now):
            typer.echo(f"{path.name}: {words}{'' if kept else ' (left on the stick)'}")
        done = export(settings, Stick(target))
        typer.echo(f"{done.messages} messages and {done.blob_bytes} bytes in {len(done.parcels)} parcels")
        for reason in done.left:
            complain(reason)
