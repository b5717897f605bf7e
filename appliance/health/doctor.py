"""``bedside doctor``: every point that can keep a box from its work, what was found, and what to do about it.

What this module keeps true: each failing point carries a remedy; one point that can't be examined doesn't hide the others;
nothing that identifies a person is printed; nothing of the box is changed.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.config import Config
from appliance.health import check_box, check_link, check_models
from appliance.health.check import Check, unsure, well, wrong

__all__ = ["Check", "run_checks"]


def run_checks(config: Config, *, daemon_running: bool | None = None) -> list[Check]:
    """Examine everything; takes seconds (models are loaded and checked, the broker is waited for).

    Args:
        config: A configuration that was loaded, so its fields are valid.
        daemon_running: Whether a daemon serves on this state folder; looked up when ``None``.
    """
    running = check_box.is_running(config.state) if daemon_running is None else daemon_running
    points: list[tuple[str, Callable[[], Check]]] = [
        ("configuration", lambda: check_configuration(config)),
        ("daemon", lambda: _daemon(running=running)),
        ("state folder", lambda: check_box.check_state(config)),
        ("journal", lambda: check_box.check_journal(config)),
        ("disk wear", lambda: check_box.check_writes(config)),
        ("box key", lambda: check_box.check_key(config)),
        ("clock", check_box.check_clock),
        ("memory", lambda: check_box.check_memory(config)),
        ("temperature", lambda: check_box.check_temperature(config)),
        ("dicom", lambda: check_link.check_dicom(config, running=running)),
        ("folder door", lambda: check_box.check_folder(config)),
        ("console", lambda: check_link.check_console(config, running=running)),
        ("broker", lambda: check_link.check_broker(config)),
        ("audio", check_models.check_audio),
        ("engines", lambda: check_models.check_engines(config)),
        ("models", lambda: check_models.check_models(config)),
    ]
    return [_examined(name, look) for name, look in points]


def check_configuration(config: Config) -> Check:
    """Valid, or it would not be here; what is left to say is what was never filled in."""
    name, device = "configuration", config.device
    found = f"valid, this is {device.site}/{device.name}"
    if config.link.enabled and (device.site, device.name) == ("site-1", "box-1"):
        return unsure(name, f"{found}, which is the name every new box has", "set device.site and device.name")
    if config.link.enabled and not config.link.tls and config.link.host not in ("127.0.0.1", "::1", "localhost"):
        remedy = "set link.tls, link.port and link.ca_file: patients' data would travel in the clear"
        return wrong(name, f"{found}; link.tls is false towards {config.link.host}", remedy)
    return well(name, found)


def _daemon(*, running: bool) -> Check:
    if running:
        return well("daemon", "runs on this state folder")
    return unsure("daemon", "does not run on this state folder", "systemctl start bedside")


def _examined(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - the edge of this task: the other points are still examined
        kind = type(error).__name__
        return wrong(
            name, f"could not be examined: {kind}: {error}", "this is a fault of the program: please report it"
        )
