"""The appliance's configuration: one TOML file, validated once, every field with a title, a unit and a default.

What this module keeps true: a ``Config`` exists only if the whole file is valid; a field that is wrong is reported with its
path and what to write instead; an unknown field is an error (a typo never becomes a default). ``example`` is made from the
same fields, so the documentation can't drift.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from appliance.settings import NAME, ConfigError, Form, Port, Section, field

__all__ = ["Config", "ConfigError"]


class DeviceConfig(Section, frozen=True, kw_only=True):
    """Who this box is. Both names are part of every MQTT topic: nothing identifying a person may stand in them."""

    site: Annotated[str, field("Clinic's short name, lower case letters, digits and hyphens", pattern=NAME)] = "site-1"
    name: Annotated[str, field("This box's short name, unique within the site", pattern=NAME)] = "box-1"


class StorageConfig(Section, frozen=True, kw_only=True):
    """Where everything that must survive is kept, and when intake stops."""

    state: Annotated[str, field("Folder of the journal, the vault and the keys", min_length=1)] = "/var/lib/bedside"
    refuse_below: Annotated[
        int, field("Refuse new captures when less than this is free", "MB", ge=16, le=1_000_000)
    ] = 512
    reserve: Annotated[
        int, field("Of that, kept back for the journal, the audit log and the outbox", "MB", ge=4, le=100_000)
    ] = 64
    keep_days: Annotated[
        int, field("Delivered captures stay on the box for at least this long", "days", ge=0, le=3650)
    ] = 90
    write_budget: Annotated[
        int,
        field(
            "Say so when more than this is written in a day besides captures; 0 means never", "MB", ge=0, le=1_000_000
        ),
    ] = 1000


class DicomConfig(Section, frozen=True, kw_only=True):
    """The DICOM door: storage, echo, storage commitment, performed procedure steps, and the worklist for portable units."""

    enabled: Annotated[bool, field("Listen for DICOM")] = True
    address: Annotated[str, field("Address to listen on")] = "0.0.0.0"  # noqa: S104
    port: Annotated[Port, field("Port to listen on")] = 11112
    ae_title: Annotated[str, field("Application entity title of this box", pattern=r"^[ -\[\]-~]{1,16}$")] = "BEDSIDE"
    check_called_ae_title: Annotated[bool, field("Reject associations that call another AE title")] = True
    allowed_ae_titles: Annotated[tuple[str, ...], field("Senders that may connect; empty means any")] = ()
    allowed_addresses: Annotated[tuple[str, ...], field("Networks (CIDR) that may connect; empty means any")] = ()
    maximum_associations: Annotated[int, field("Associations at a time", ge=1, le=200)] = 20
    maximum_object: Annotated[int, field("Largest object taken", "MB", ge=1, le=8192)] = 1024
    tls: Annotated[bool, field("Take only connections over TLS")] = False
    certificate_file: Annotated[str, field("PEM file of this box's certificate for DICOM over TLS")] = ""
    key_file: Annotated[str, field("PEM file of its private key")] = ""
    ca_file: Annotated[
        str, field("PEM file of the authority that senders' certificates must come from; empty: none is asked for")
    ] = ""
    peers: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[ -<>-\[\]-~]{1,16}=[^\s=:]+:[0-9]{1,5}$")], ...],
        field("Where storage commitment is reported to a sender that has hung up, each as TITLE=host:port"),
    ] = ()


class WorklistConfig(Section, frozen=True, kw_only=True):
    """The clinic's worklist: asked now and then, kept, and served on while it can't be reached."""

    enabled: Annotated[bool, field("Ask the clinic's worklist server")] = False
    host: Annotated[str, field("The server's host name or address", min_length=1)] = "127.0.0.1"
    port: Annotated[Port, field("The server's port")] = 104
    ae_title: Annotated[str, field("The server's application entity title", pattern=r"^[ -\[\]-~]{1,16}$")] = "WORKLIST"
    station_ae_title: Annotated[
        str, field("Only what is scheduled for this station; empty means any", pattern=r"^[ -\[\]-~]{0,16}$")
    ] = ""
    modality: Annotated[
        str, field("Only what is scheduled for this modality (e.g. DX); empty means any", pattern=r"^[A-Z]{0,16}$")
    ] = ""
    refresh: Annotated[float, field("Ask this often", "s", ge=10, le=86400)] = 300.0
    most: Annotated[int, field("Most entries taken of one answer", ge=1, le=10_000)] = 1000
    tls: Annotated[bool, field("Use TLS, with the files of [dicom]")] = False


class FolderConfig(Section, frozen=True, kw_only=True):
    """The watched folder: files put there are taken, once they are complete."""

    enabled: Annotated[bool, field("Watch the folder")] = False
    path: Annotated[str, field("Folder to watch", min_length=1)] = "/var/lib/bedside/inbox"
    settle: Annotated[float, field("A file must not have grown for this long", "s", ge=0.1, le=600)] = 1.0


class StethoscopeConfig(Section, frozen=True, kw_only=True):
    """The stethoscope plugged into this box, or any sound input."""

    enabled: Annotated[bool, field("Record from a stethoscope at the console")] = True
    device: Annotated[
        str, field("Name of the input, a part of it or a pattern with * (`bedside devices` lists them); empty chooses")
    ] = ""
    rate: Annotated[int, field("Sample rate, 4000 to 48000; 0 means the device's own", "Hz", ge=0, le=48000)] = 0
    longest: Annotated[int, field("A recording is stopped after", "s", ge=5, le=300)] = 60
    automatic_stop: Annotated[bool, field("Stop when enough clean beats or breaths are in")] = True


class UltrasoundConfig(Section, frozen=True, kw_only=True):
    """Live ultrasound from a grabber (V4L2) or a stream, for freezes and clips at the console."""

    enabled: Annotated[bool, field("Offer live ultrasound in the console")] = True
    source: Annotated[
        str,
        field(
            "Where the picture comes from: auto (the first grabber), a name below /dev/v4l, a file, or an address "
            "(rtsp, http, udp); `bedside devices` lists the grabbers",
            min_length=1,
        ),
    ] = "auto"
    area: Annotated[
        tuple[float, ...],
        field(
            "The picture on the screen as shares: top, left, bottom, right; empty: it is found, and can be confirmed"
        ),
    ] = ()
    pre_roll: Annotated[float, field("A clip begins this long before it is asked for", "s", ge=0, le=30)] = 4.0
    longest_clip: Annotated[float, field("A clip ends by itself after", "s", ge=1, le=120)] = 20.0
    frame_rate: Annotated[float, field("Most frames a second that are taken; 0 means all", "Hz", ge=0, le=120)] = 30.0
    ring: Annotated[int, field("Disk that the pre-roll may take", "MB", ge=16, le=65536)] = 512


class ModelsConfig(Section, frozen=True, kw_only=True):
    """Which bundles are served, and by what."""

    directory: Annotated[str, field("Folder of the model bundles; empty means the ones that came with the program")] = (
        ""
    )
    cache: Annotated[
        str, field("Folder for what is derived on this box (plans, .ort); empty means inside storage.state")
    ] = ""
    require_signature: Annotated[
        bool, field("Serve only bundles that came with the program or that a trusted key has signed")
    ] = True
    trusted_keys: Annotated[
        tuple[str, ...], field("Public keys (base64) that may sign bundles, besides those of `bedside models trust`")
    ] = ()
    engine: Annotated[
        Literal["auto", "cpu", "cuda", "tensorrt-ort", "tensorrt"],
        field("Engine: auto takes the best that is there and says which"),
    ] = "auto"
    time_limit: Annotated[float, field("A reading that takes longer is stopped", "s", ge=1, le=600)] = 60.0
    memory_limit: Annotated[int, field("Memory limit of the reading process", "MB", ge=512, le=65536)] = 4096


class LinkConfig(Section, frozen=True, kw_only=True):
    """The MQTT link to the telemedicine hub."""

    enabled: Annotated[bool, field("Connect to a hub at all")] = True
    host: Annotated[str, field("The broker's host name or address", min_length=1)] = "127.0.0.1"
    port: Annotated[Port, field("The broker's port (8883 with TLS)")] = 1883
    tls: Annotated[bool, field("Use TLS")] = False
    ca_file: Annotated[str, field("PEM file of the broker's authority; empty: the one this box is enrolled with")] = ""
    certificate_file: Annotated[
        str, field("PEM file of this device's certificate; empty: the one it is enrolled with")
    ] = ""
    key_file: Annotated[str, field("PEM file of this device's private key")] = ""
    username: Annotated[str, field("User name at the broker; empty for none")] = ""
    password_file: Annotated[str, field("File holding the password at the broker; empty for none")] = ""
    keep_alive: Annotated[int, field("MQTT keep-alive", "s", ge=5, le=600)] = 30
    in_flight: Annotated[int, field("Messages sent and not yet acknowledged by the broker", ge=1, le=1000)] = 100
    chunk: Annotated[int, field("Size of an image's or recording's pieces", "bytes", ge=1024, le=262144)] = 16384
    daily_budget: Annotated[
        int,
        field("Bytes a day that may be sent, critical results excepted; 0 means no limit", "MB", ge=0, le=1_000_000),
    ] = 0
    send_originals: Annotated[
        Literal["all", "urgent", "never"], field("Which originals follow their result and preview")
    ] = "all"
    reconnect_from: Annotated[float, field("First pause before reconnecting", "s", ge=0.05, le=60)] = 0.25
    reconnect_to: Annotated[float, field("Longest pause before reconnecting", "s", ge=0.1, le=3600)] = 30.0
    receipt_timeout: Annotated[
        float, field("Send again when the hub has not confirmed within", "s", ge=1, le=86400)
    ] = 30.0


class UsbConfig(Section, frozen=True, kw_only=True):
    """The way out on a stick, for weeks without a link."""

    hub_key: Annotated[str, field("The hub's public key, as `bedside-hub keys` prints it; empty for no way out")] = ""


class DeidentifyConfig(Section, frozen=True, kw_only=True):
    """What may leave with its patient, and what a de-identified object (DICOM PS3.15 annex E) still says."""

    hub: Annotated[
        Literal["identified", "pseudonymous"],
        field("What the hub gets, by the link and by a stick: with a pseudonym, a radiologist can't know the patient"),
    ] = "identified"
    dates: Annotated[Literal["removed", "shifted", "kept"], field("Dates of studies; shifted by days per patient")] = (
        "removed"
    )
    characteristics: Annotated[bool, field("Keep age (over 89 as 90), sex, size and weight")] = True
    device: Annotated[bool, field("Keep the station's name and the machines' serial numbers")] = False
    institution: Annotated[bool, field("Keep the institution's name and address")] = False
    areas: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^([A-Z]{2,4}|\*):[0-9.]+,[0-9.]+,[0-9.]+,[0-9.]+$")], ...],
        field("Areas with burned-in text, as MODALITY:left,top,right,bottom in shares of the picture (US:0,0,1,0.08)"),
    ] = ()


class EscalationConfig(Section, frozen=True, kw_only=True):
    """Critical results that nobody has taken note of."""

    after: Annotated[
        float, field("Raise a critical result again when nobody has taken note; 0 means never", "min", ge=0, le=10080)
    ] = 15.0


class ConsoleConfig(Section, frozen=True, kw_only=True):
    """The bedside console, for the clinic's screen and tablets."""

    enabled: Annotated[bool, field("Serve the console")] = True
    address: Annotated[str, field("Address to listen on")] = "127.0.0.1"
    port: Annotated[Port, field("Port to listen on; with TLS in clear for the box's own screen only")] = 8080
    tls: Annotated[
        Literal["off", "own", "files"],
        field(
            "TLS for tablets: own makes a certificate of this box (`bedside console-certificate`), files takes yours"
        ),
    ] = "off"
    tls_port: Annotated[Port, field("Port to listen on with TLS")] = 8443
    certificate_file: Annotated[str, field("PEM file of the certificate, with its chain, for tls = files")] = ""
    key_file: Annotated[str, field("PEM file of its private key")] = ""
    plain_http: Annotated[
        bool, field("Serve others in clear, where PINs and patients can be read on the network; TLS is the better way")
    ] = False
    sign_in: Annotated[
        Literal["on", "off"], field("Ask people for their PIN; off only on a loopback address, for a demonstration")
    ] = "on"
    idle_lock: Annotated[
        float, field("Ask for the PIN again when nobody has touched the screen for this long", "min", ge=0.5, le=240)
    ] = 5.0

    @property
    def here(self) -> str:
        """The address at which the box itself reaches the console, in clear."""
        if self.tls != "off" and not _is_loopback(self.address):
            return "127.0.0.1"
        return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.address, self.address)  # noqa: S104

    @property
    def is_bare(self) -> bool:
        """Whether others than this box are served in clear."""
        return self.enabled and self.tls == "off" and not _is_loopback(self.address)


class LogConfig(Section, frozen=True, kw_only=True):
    """What is written to the log (standard error, so that the journal of the system keeps it)."""

    level: Annotated[Literal["debug", "info", "warning", "error"], field("Least important line written")] = "info"
    format: Annotated[Literal["text", "json"], field("Form of a line")] = "text"


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    device: DeviceConfig = DeviceConfig()
    storage: StorageConfig = StorageConfig()
    dicom: DicomConfig = DicomConfig()
    worklist: WorklistConfig = WorklistConfig()
    folder: FolderConfig = FolderConfig()
    stethoscope: StethoscopeConfig = StethoscopeConfig()
    ultrasound: UltrasoundConfig = UltrasoundConfig()
    models: ModelsConfig = ModelsConfig()
    link: LinkConfig = LinkConfig()
    usb: UsbConfig = UsbConfig()
    deidentify: DeidentifyConfig = DeidentifyConfig()
    escalation: EscalationConfig = EscalationConfig()
    console: ConsoleConfig = ConsoleConfig()
    log: LogConfig = LogConfig()

    @property
    def state(self) -> Path:
        """The state folder."""
        return Path(self.storage.state)

    @property
    def models_directory(self) -> Path:
        """The folder of the bundles: as configured, or those that came with the program."""
        return Path(self.models.directory) if self.models.directory else shipped_models()

    @property
    def models_installed(self) -> Path:
        """The folder of the bundles that were installed on this box."""
        return self.state / "models"

    @property
    def models_cache(self) -> Path:
        """The folder for plans and derived models."""
        return Path(self.models.cache) if self.models.cache else self.state / "engines"


def shipped_models() -> Path:
    """The bundles that came with the program: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "_bundles"
    return inside if inside.is_dir() else package.parent / "models"


def _cross_check(config: Config, name: str) -> None:
    link, storage = config.link, config.storage
    if 0 < config.stethoscope.rate < 4000:
        raise ConfigError(f"{name}: stethoscope.rate: below 4000 Hz; write 0 for the device's own or 4000 to 48000")
    if bool(link.certificate_file) != bool(link.key_file):
        raise ConfigError(f"{name}: link.certificate_file and link.key_file go together; set both or neither")
    for key in config.models.trusted_keys:
        if not _is_public_key(key):
            raise ConfigError(
                f"{name}: models.trusted_keys: {key[:60]!r} is no public key; copy what bedside models keygen printed"
            )
    dicom = config.dicom
    if bool(dicom.certificate_file) != bool(dicom.key_file):
        raise ConfigError(f"{name}: dicom.certificate_file and dicom.key_file go together; set both or neither")
    if dicom.tls and not dicom.certificate_file:
        raise ConfigError(
            f"{name}: dicom.certificate_file: empty while dicom.tls is true; name the PEM file of this box's certificate"
        )
    if config.worklist.tls and not dicom.ca_file:
        raise ConfigError(
            f"{name}: dicom.ca_file: empty while worklist.tls is true; name the PEM file of the server's authority"
        )
    if config.console.sign_in == "off" and not _is_loopback(config.console.address):
        raise ConfigError(
            f'{name}: console.sign_in: "off" needs a loopback address; write "on", or 127.0.0.1 as address'
        )
    _check_console_tls(config.console, name)
    if link.reconnect_to < link.reconnect_from:
        raise ConfigError(f"{name}: link.reconnect_to: less than link.reconnect_from; make it at least as long")
    if storage.reserve >= storage.refuse_below:
        raise ConfigError(
            f"{name}: storage.reserve: must be less than storage.refuse_below ({storage.refuse_below} MB)"
        )
    _check_area(config.ultrasound.area, name)
    if config.folder.enabled and Path(config.folder.path).resolve() == config.state.resolve():
        raise ConfigError(f"{name}: folder.path: is storage.state itself; watch a folder of its own")


def _check_console_tls(console: ConsoleConfig, name: str) -> None:
    if console.tls == "files" and not (console.certificate_file and console.key_file):
        raise ConfigError(
            f'{name}: console.certificate_file, console.key_file: name both PEM files while console.tls is "files"'
        )
    if console.tls != "off" and console.tls_port == console.port:
        raise ConfigError(f"{name}: console.tls_port: is console.port too; write another one, say 8443")
    if console.is_bare and not console.plain_http:
        raise ConfigError(
            f"{name}: console.address: {console.address} would serve others in clear, PINs and patients too; write "
            'console.tls = "own", or console.plain_http = true if you accept that'
        )


def _is_public_key(text: str) -> bool:
    """Whether the text is an Ed25519 public key (32 bytes) in base64."""
    try:
        return len(base64.b64decode(text, validate=True)) == 32
    except binascii.Error:
        return False


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _check_area(area: tuple[float, ...], name: str) -> None:
    top, left, bottom, right = area if len(area) == 4 else (0.0, 0.0, 1.0, 1.0)
    if len(area) not in {0, 4} or not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ConfigError(
            f"{name}: ultrasound.area: not four shares from 0 to 1 with top above bottom and left before right; "
            "leave it empty or write, say, [0.1, 0.2, 0.9, 0.8]"
        )


_FORM = Form(Config, _cross_check, headline="Bedside", command="bedside config --example")
load = _FORM.load
parse = _FORM.parse
fields = _FORM.fields
example = _FORM.example
