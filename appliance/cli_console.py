"""``bedside console-code`` and ``console-certificate``: how people and tablets come to the console.

What this module keeps true: only who may read the state folder of this box gets the code; a code is made only where nobody
could sign in otherwise, or when it is asked for. What tablets are to trust is public; its fingerprint is
told apart from it.
"""

from __future__ import annotations

from pathlib import Path
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


def console_certificate(
    out: Annotated[Path | None, typer.Option(help="Write the certificate (PEM) to this file, for tablets.")] = None,
    config: ConfigOption = None,
) -> None:
    """Print the fingerprint of the certificate that tablets are to trust (console.tls = "own")."""
    from appliance.console.certificate import authority_pem, fingerprint

    folder = configured(config).state
    with told(OSError):
        pem = authority_pem(folder)
        if pem is not None and out is not None:
            out.write_bytes(pem)
    if pem is None:
        complain(f'{folder}: there is no certificate yet: set console.tls = "own" and start the daemon')
        raise typer.Exit(1)
    typer.echo(fingerprint(pem))
