"""``bedside devices``: the sound inputs and video grabbers that are plugged in now, by the names that the configuration takes.

What this module keeps true: it sees what the daemon would see, by the same way; what would be recorded from is marked.
"""

from __future__ import annotations

import typer

from appliance.terminal import ConfigOption, JsonOption, complain, configured, print_json, told


def devices(json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the sound inputs and video grabbers that are there now; the ones that would be used are marked with *."""
    from appliance.capture.stethoscope_device import choose
    from appliance.capture.stethoscope_source import NoSound, sound_inputs

    settings = configured(config)
    _grabbers(settings.ultrasound.source, as_json=json)
    pattern = settings.stethoscope.device
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


def _grabbers(source: str, *, as_json: bool) -> None:
    """Video grabbers; an address or a file as source is none of them."""
    from appliance.capture.video_v4l2 import cameras

    found = cameras()
    for number, one in enumerate(found):
        used = number == 0 if source == "auto" else source in {one.id, str(one.path)}
        if as_json:
            print_json({"kind": "video", "id": one.id, "name": one.name, "used": used})
        else:
            typer.echo(f"{'*' if used else ' '} {one.id} (video: {one.name})")
    if not found and source == "auto" and not as_json:
        typer.echo(
            "no video grabber is plugged in; set ultrasound.source where the probe streams over the network", err=True
        )
