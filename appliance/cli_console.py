"""``bedside console-code``: the code by which somebody becomes an administrator of the console.

What this module keeps true: only who may read the state folder of this box gets the code; a code is made only where nobody
could sign in otherwise, or when it is asked for.
"""

from __future__ import annotations

from typing import Annotated

import typer

from appliance.terminal import ConfigOption, complain, configured, told


def console_code(
    new: Annotated[bool, typer.Option("--new", help="Make one, also when there are administrators already.")] = False,
    config: ConfigOption = None,
) -> None:
    """Print the code that lets somebody become an administrator of the console, once; works beside a running daemon."""
    from appliance.store import setup_code
    from appliance.store.files import RealFiles

    folder = configured(config).state
    with told(OSError):
        code = setup_code.make(folder, RealFiles()) if new else setup_code.read(folder)
    if code is None:
        complain(f"{folder}: there is no code: somebody can sign in already; make one all the same with --new")
        raise typer.Exit(1)
    typer.echo(code)
