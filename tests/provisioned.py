"""A folder as a box's root, set by a site file that asks for everything."""

from __future__ import annotations

from pathlib import Path

from appliance.provision.apply import apply
from appliance.provision.plan import wanted
from appliance.provision.site import load

SITE = """
[box]
platform = "jetpack-6"
[network]
uplinks = ["eth1"]
servers = ["192.168.50.2:4242"]
time_servers = ["time.example.org"]
[modem]
apn = "internet"
pin_file = "sim.pin"
[wifi]
ssid = "clinic tablets"
[disk]
encrypted = true
read_only_root = true
slots = true
[screen]
kiosk = true
"""
EXTLINUX = "TIMEOUT 30\nDEFAULT primary\nLABEL primary\n      APPEND ${cbootargs} root=PARTUUID=1 panic=0 rw rootwait\n"
FAN = "FAN_GOVERNOR cont\nFAN_DEFAULT_PROFILE quiet\n"


def site(folder: Path, text: str = SITE) -> Path:
    """The site file and the secrets beside it, and what the system itself brings."""
    (folder / "site.toml").write_text(text)
    (folder / "sim.pin").write_text("1234\n")
    (folder / "wifi.password").write_text("a long enough one\n")
    for name, content in (("boot/extlinux/extlinux.conf", EXTLINUX), ("etc/nvfancontrol.conf", FAN)):
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "site.toml"


def provisioned(folder: Path, text: str = SITE) -> Path:
    """The root once the site file was applied to it."""
    path, root = site(folder, text), folder / "root"
    apply(wanted(load(path), folder, root), root, lambda _: None)
    return root
