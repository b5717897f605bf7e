"""The site file: what differs from clinic to clinic, once, for everything that is set on a box's system.

What this module keeps true: a ``Site`` exists only if the whole file is valid, and so is the ``bedside.toml`` that it names;
secrets stand in files of their own, never in the site file, which is made to be copied and kept.
"""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from appliance import config as bedside_config
from appliance.settings import ConfigError, Form, Section, field

__all__ = ["ConfigError", "Site", "example", "fields", "load", "parse"]

Platform = Literal["jetpack-6", "jetpack-7", "debian"]
_Interface = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_.-]{0,14}$")]
_Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}$")]
_Network = Annotated[str, Meta(pattern=r"^[0-9.]+/[0-9]{1,2}$")]
_Server = Annotated[str, Meta(pattern=r"^[0-9.]+:[0-9]{1,5}$")]


class BoxSection(Section, frozen=True, kw_only=True):
    """The machine, and the configuration of the program on it."""

    platform: Annotated[
        Platform, field("System: JetPack 6.2 (Ubuntu 22.04), JetPack 7.2 (Ubuntu 24.04), or Debian 12 and newer")
    ] = "debian"
    bedside: Annotated[
        str, field("The program's configuration, beside the site file; empty keeps the one there is")
    ] = ""


class NetworkSection(Section, frozen=True, kw_only=True):
    """Ways out, never trusted, and the clinic's own networks."""

    uplinks: Annotated[tuple[_Interface, ...], field("Interfaces that lead to the internet, besides modems")] = ()
    clinic: Annotated[tuple[_Network, ...], field("Networks of DICOM devices and tablets (CIDR)")] = (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
    )
    servers: Annotated[
        tuple[_Server, ...],
        field(
            "What the box calls besides the hub's broker (IPv4:port): a worklist, an archive, the hub's page to enrol"
        ),
    ] = ()
    time_servers: Annotated[tuple[_Host, ...], field("NTP servers; empty means Debian's pool")] = ()


class ModemSection(Section, frozen=True, kw_only=True):
    """The metered SIM."""

    apn: Annotated[
        str, field("Access point name of the mobile network; empty for no modem", pattern=r"^[\w.-]{0,100}$")
    ] = ""
    pin_file: Annotated[str, field("File holding the SIM's PIN, beside the site file; empty for none")] = ""


class WifiSection(Section, frozen=True, kw_only=True):
    """The box's own Wi-Fi for the clinic's tablets. They reach the box by it, never the internet."""

    ssid: Annotated[str, field("Name of the network; empty for none", pattern=r"^[^\x00-\x1f\x7f\"\\]{0,32}$")] = ""
    password_file: Annotated[str, field("File holding its password (12 to 63 characters), beside the site file")] = ""
    interface: Annotated[_Interface, field("Wi-Fi interface")] = "wlan0"
    address: Annotated[str, field("The box's address in it (CIDR)")] = "192.168.77.1/24"
    channel: Annotated[int, field("Channel in the 2.4 GHz band", ge=1, le=13)] = 6
    country: Annotated[str, field("Country whose radio rules hold (ISO 3166)", pattern=r"^[A-Z]{2}$")] = "KE"


class PowerSection(Section, frozen=True, kw_only=True):
    """Power and heat of a Jetson."""

    mode: Annotated[
        int, field("nvpmodel mode; its numbers differ from module to module: see `nvpmodel -p --verbose`", ge=0, le=15)
    ] = 0
    fan: Annotated[Literal["quiet", "cool"], field("Fan profile")] = "cool"


class DiskSection(Section, frozen=True, kw_only=True):
    """What is encrypted, what is read only, and how the system is updated."""

    encrypted: Annotated[bool, field("The state folder lies on an encrypted partition, its key sealed in the TPM")] = (
        False
    )
    partition: Annotated[str, field("Label of that partition", pattern=r"^[\w.-]{1,36}$")] = "BEDSIDE_STATE"
    read_only_root: Annotated[bool, field("The system's partition is read only, changes live in memory")] = False
    slots: Annotated[bool, field("Two system slots, updated in turn by RAUC")] = False


class ScreenSection(Section, frozen=True, kw_only=True):
    """A touch screen on the box itself."""

    kiosk: Annotated[bool, field("Show the console on the box's own screen")] = False


class Site(Section, frozen=True, kw_only=True):
    """The whole file."""

    box: BoxSection = BoxSection()
    network: NetworkSection = NetworkSection()
    modem: ModemSection = ModemSection()
    wifi: WifiSection = WifiSection()
    power: PowerSection = PowerSection()
    disk: DiskSection = DiskSection()
    screen: ScreenSection = ScreenSection()


def secret(folder: Path, name: str, what: str) -> str:
    """The one line of a secret's file; raises ``ConfigError``. ``name`` is taken from ``folder`` on."""
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({type(error).__name__}); put {what} into it, mode 0600") from error
    if not text or any(ord(letter) < 32 for letter in text):
        raise ConfigError(f"{path}: must hold {what} on one line")
    return text


def check_secrets(site: Site, folder: Path) -> dict[str, str]:
    """The secrets that the site file names; raises ``ConfigError`` for one that is none."""
    found: dict[str, str] = {}
    if site.wifi.ssid:
        found["wifi_password"] = secret(folder, site.wifi.password_file or "wifi.password", "the Wi-Fi's password")
        if not re.fullmatch(r"[\x20-\x7e]{12,63}", found["wifi_password"]):
            raise ConfigError("wifi.password_file: the password must have 12 to 63 printable ASCII characters")
    if site.modem.apn and site.modem.pin_file:
        found["sim_pin"] = secret(folder, site.modem.pin_file, "the SIM's PIN")
        if not re.fullmatch(r"\d{4,8}", found["sim_pin"]):
            raise ConfigError("modem.pin_file: a PIN has 4 to 8 digits")
    return found


def check_bedside(site: Site, folder: Path) -> str | None:
    """The text of the program's configuration, once it is valid; raises ``ConfigError``. ``None``: none is given."""
    if not site.box.bedside:
        return None
    path = folder / site.box.bedside
    bedside_config.load(path)
    return path.read_text(encoding="utf-8")


def _cross_check(site: Site, name: str) -> None:
    try:
        address = ip_interface(site.wifi.address)
    except ValueError as error:
        raise ConfigError(f"{name}: wifi.address: {error}; write it like 192.168.77.1/24") from error
    if address.version != 4 or address.network.prefixlen > 28:
        raise ConfigError(f"{name}: wifi.address: must be an IPv4 network of /28 or larger")
    _check_network(site.network, name)
    if site.wifi.ssid and site.wifi.interface in site.network.uplinks:
        raise ConfigError(
            f"{name}: wifi.interface: {site.wifi.interface} is an uplink too; tablets need one of their own"
        )
    if site.disk.slots and not site.disk.read_only_root:
        raise ConfigError(f"{name}: disk.slots: needs disk.read_only_root, or an update would lose what was changed")
    if site.disk.slots and site.box.platform == "debian":
        raise ConfigError(f"{name}: disk.slots: only for a Jetson's two slots (box.platform jetpack-6 or jetpack-7)")


def _check_network(network: NetworkSection, name: str) -> None:
    """What the firewall's own tool would refuse, and leave the box without any firewall."""
    if not network.clinic:
        raise ConfigError(
            f"{name}: network.clinic: empty; name the networks that may reach the box, such as 192.168.1.0/24"
        )
    try:
        for text in network.clinic:
            ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigError(f"{name}: network.clinic: {error}; write networks like 192.168.1.0/24") from error
    for text in network.servers:
        address, _, port = text.partition(":")
        try:
            ip_address(address)
        except ValueError as error:
            raise ConfigError(f"{name}: network.servers: {error}; write servers like 192.168.1.5:104") from error
        if not 1 <= int(port) <= 65535:
            raise ConfigError(f"{name}: network.servers: {text}: a port is from 1 to 65535")


_FORM = Form(Site, _cross_check, headline="A site", command="bedside provision --example")
load = _FORM.load
parse = _FORM.parse
fields = _FORM.fields
example = _FORM.example
