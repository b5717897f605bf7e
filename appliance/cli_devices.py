"""``bedside devices``: the sound inputs that are plugged in now, by the names that the configuration takes.

What this module keeps true: it sees what the daemon would see, by the same way; what would be recorded from is marked.
"""

from __future__ import annotations

import typer

from appliance.terminal import ConfigOption, JsonOption, complain, configured, print_json, told


def devices(json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the stethoscopes and other sound inputs that are there now; the one that would be used is marked with *."""
    from appliance.capture.stethoscope_device import choose
    from appliance.capture.stethoscope_source import NoSound, sound_inputs

    pattern = configured(config).stethoscope.device
    with told(NoSound):
        found = sound_inputs()
    chosen = choose(found, pattern)
    for one in found:
        if json:
            print_json(one)
        else:
            typer.echo(f"{'*' if one == chosen else ' '} {one.name} ({one.rate_hz} Hz)")
    if chosen is None:
        wanted = f"no sound input is called {pattern!r}" if pattern and found else "no sound input is there"
        complain(f"{wanted}; plug the stethoscope in, or set stethoscope.device to a name of this list")
        raise typer.Exit(1)
