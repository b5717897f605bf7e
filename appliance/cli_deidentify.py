"""The command ``bedside deidentify``: captures as files without their patients, for teaching, research or a second opinion."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.terminal import ConfigOption, complain, configured, told

if TYPE_CHECKING:
    from appliance.interop.export import Exporter


def deidentify(
    folder: Annotated[Path, typer.Argument(help="An empty folder, e.g. on a stick")],
    captures: Annotated[list[str] | None, typer.Option("--capture", help="Only this one; may be repeated")] = None,
    config: ConfigOption = None,
) -> None:
    """Write captures without their patients (DICOM PS3.15 annex E) into a folder, with an index of what was found."""
    from appliance.interop.export import Exporter
    from appliance.interop.profile import ProfileError
    from appliance.store.errors import StoreError

    settings = configured(config)
    with told(ProfileError, StoreError, OSError):
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(f"{folder}: not empty; give an empty folder, so that all in it is de-identified")
        with Exporter(settings) as exporter:
            kept, withheld = _written(exporter, folder, captures or [])
    typer.echo(f"{kept} written to {folder}, {withheld} withheld")
    if withheld:
        raise typer.Exit(1)


def _written(exporter: Exporter, folder: Path, captures: list[str]) -> tuple[int, int]:
    folder.mkdir(parents=True, exist_ok=True)
    kept, withheld = 0, 0
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        index = csv.writer(file)
        index.writerow(exporter.COLUMNS)
        for one in exporter.write(folder, captures):
            if one.withheld:
                withheld += 1
                complain(f"withheld {one.capture_id}: {one.withheld}")
            else:
                kept += 1
                index.writerow(one.row)
    return kept, withheld
