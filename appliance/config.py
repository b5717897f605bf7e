"""The appliance's configuration: one TOML file, validated once, every field with a title, a unit and a default.

What this module keeps true: a ``Config`` exists only if the whole file is valid; a field that is wrong is reported with its
path and what to write instead; an unknown field is an error (a typo never becomes a default). ``example`` is made from the
same fields, so the documentation can't drift.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class ConfigError(Exception):
    """The configuration can't be used; the message names the file, the field and the remedy."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections: immutable, unknown keys are errors."""


_NAME = r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$"
Port = Annotated[int, Meta(ge=1, le=65535)]


def _field(title: str, unit: str = "", **limits: Any) -> Meta:
    return Meta(title=title, extra={"unit": unit}, **limits)


class DeviceConfig(_Section, frozen=True, kw_only=True):
    """Who this box is. Both names are part of every MQTT topic: nothing identifying a person may stand in them."""

    site: Annotated[str, _field("Clinic's short name, lower case letters, digits and hyphens", pattern=_NAME)] = (
        "site-1"
    )
    name: Annotated[str, _field("This box's short name, unique within the site", pattern=_NAME)] = "box-1"


class StorageConfig(_Section, frozen=True, kw_only=True):
    """Where everything that must survive is kept, and when intake stops."""

    state: Annotated[str, _field("Folder of the journal, the vault and the keys")] = "/var/lib/bedside"
    refuse_below: Annotated[
        int, _field("Refuse new captures when less than this is free", "MB", ge=16, le=1_000_000)
    ] = 512
    reserve: Annotated[
        int, _field("Of that, kept back for the journal, the audit log and the outbox", "MB", ge=4, le=100_000)
    ] = 64
    keep_days: Annotated[
        int, _field("Delivered captures stay on the box for at least this long", "days", ge=0, le=3650)
    ] = 90


class DicomConfig(_Section, frozen=True, kw_only=True):
    """The DICOM door (C-STORE and C-ECHO)."""

    enabled: Annotated[bool, _field("Listen for DICOM")] = True
    address: Annotated[str, _field("Address to listen on")] = "0.0.0.0"  # noqa: S104
    port: Annotated[Port, _field("Port to listen on")] = 11112
    ae_title: Annotated[str, _field("Application entity title of this box", pattern=r"^[ -\[\]-~]{1,16}$")] = "BEDSIDE"
    check_called_ae_title: Annotated[bool, _field("Reject associations that call another AE title")] = True
    allowed_ae_titles: Annotated[tuple[str, ...], _field("Senders that may connect; empty means any")] = ()
    allowed_addresses: Annotated[tuple[str, ...], _field("Networks (CIDR) that may connect; empty means any")] = ()
    maximum_associations: Annotated[int, _field("Associations at a time", ge=1, le=200)] = 20
    maximum_object: Annotated[int, _field("Largest object taken", "MB", ge=1, le=8192)] = 1024


class FolderConfig(_Section, frozen=True, kw_only=True):
    """The watched folder: files put there are taken, once they are complete."""

    enabled: Annotated[bool, _field("Watch the folder")] = False
    path: Annotated[str, _field("Folder to watch")] = "/var/lib/bedside/inbox"
    settle: Annotated[float, _field("A file must not have grown for this long", "s", ge=0.1, le=600)] = 1.0


class ModelsConfig(_Section, frozen=True, kw_only=True):
    """Which bundles are served, and by what."""

    directory: Annotated[
        str, _field("Folder of the model bundles; empty means the ones that came with the program")
    ] = ""
    cache: Annotated[
        str, _field("Folder for what is derived on this box (plans, .ort); empty means inside storage.state")
    ] = ""
    engine: Annotated[
        Literal["auto", "cpu", "cuda", "tensorrt-ort", "tensorrt"],
        _field("Engine: auto takes the best that is there and says which"),
    ] = "auto"
    time_limit: Annotated[float, _field("A reading that takes longer is stopped", "s", ge=1, le=600)] = 60.0
    memory_limit: Annotated[int, _field("Memory limit of the reading process", "MB", ge=512, le=65536)] = 4096


class LinkConfig(_Section, frozen=True, kw_only=True):
    """The MQTT link to the telemedicine hub."""

    enabled: Annotated[bool, _field("Connect to a hub at all")] = True
    host: Annotated[str, _field("The broker's host name or address", min_length=1)] = "127.0.0.1"
    port: Annotated[Port, _field("The broker's port (8883 with TLS)")] = 1883
    tls: Annotated[bool, _field("Use TLS")] = False
    ca_file: Annotated[str, _field("PEM file of the authority that signed the broker's certificate")] = ""
    certificate_file: Annotated[str, _field("PEM file of this device's certificate")] = ""
    key_file: Annotated[str, _field("PEM file of this device's private key")] = ""
    username: Annotated[str, _field("User name at the broker; empty for none")] = ""
    password_file: Annotated[str, _field("File holding the password at the broker; empty for none")] = ""
    keep_alive: Annotated[int, _field("MQTT keep-alive", "s", ge=5, le=600)] = 30
    in_flight: Annotated[int, _field("Messages sent and not yet acknowledged by the broker", ge=1, le=1000)] = 100
    chunk: Annotated[int, _field("Size of an image's or recording's pieces", "bytes", ge=1024, le=262144)] = 16384
    daily_budget: Annotated[
        int,
        _field("Bytes a day that may be sent, critical results excepted; 0 means no limit", "MB", ge=0, le=1_000_000),
    ] = 0
    send_originals: Annotated[
        Literal["all", "urgent", "never"], _field("Which originals follow their result and preview")
    ] = "all"
    reconnect_from: Annotated[float, _field("First pause before reconnecting", "s", ge=0.05, le=60)] = 0.25
    reconnect_to: Annotated[float, _field("Longest pause before reconnecting", "s", ge=0.1, le=3600)] = 30.0
    receipt_timeout: Annotated[
        float, _field("Send again when the hub has not confirmed within", "s", ge=1, le=86400)
    ] = 30.0


class UsbConfig(_Section, frozen=True, kw_only=True):
    """The way out on a stick, for weeks without a link."""

    hub_key: Annotated[str, _field("The hub's public key, as `bedside-hub keys` prints it; empty for no way out")] = ""


class EscalationConfig(_Section, frozen=True, kw_only=True):
    """Critical results that nobody has taken note of."""

    after: Annotated[
        float, _field("Raise a critical result again when nobody has taken note; 0 means never", "min", ge=0, le=10080)
    ] = 15.0


class ConsoleConfig(_Section, frozen=True, kw_only=True):
    """The bedside console, for the clinic's screen and tablets."""

    enabled: Annotated[bool, _field("Serve the console")] = True
    address: Annotated[str, _field("Address to listen on")] = "127.0.0.1"
    port: Annotated[Port, _field("Port to listen on")] = 8080


class LogConfig(_Section, frozen=True, kw_only=True):
    """What is written to the log (standard error, so that the journal of the system keeps it)."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _field("Least important line written")] = "info"
    format: Annotated[Literal["text", "json"], _field("Form of a line")] = "text"


class Config(_Section, frozen=True, kw_only=True):
    """The whole file."""

    device: DeviceConfig = DeviceConfig()
    storage: StorageConfig = StorageConfig()
    dicom: DicomConfig = DicomConfig()
    folder: FolderConfig = FolderConfig()
    models: ModelsConfig = ModelsConfig()
    link: LinkConfig = LinkConfig()
    usb: UsbConfig = UsbConfig()
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
    def models_cache(self) -> Path:
        """The folder for plans and derived models."""
        return Path(self.models.cache) if self.models.cache else self.state / "engines"


def shipped_models() -> Path:
    """The bundles that came with the program: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "_bundles"
    return inside if inside.is_dir() else package.parent / "models"


def load(path: Path) -> Config:
    """Read and validate the file; raises ``ConfigError`` naming the field and the remedy."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: can't be read ({error.strerror}); write one with: bedside config --example > {path}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return parse(text, str(path))


def parse(text: str, name: str = "configuration") -> Config:
    """Validate the text of a configuration; raises ``ConfigError``. ``name`` stands in the messages."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{name}: not valid TOML: {error}; strings stand in quotes, sections in [brackets]"
        ) from error
    unknown = next(_unknown(tables, Config, ""), None)
    if unknown is not None:
        raise ConfigError(f"{name}: {unknown}")
    try:
        config = msgspec.convert(tables, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explain(str(error))}") from error
    _cross_check(config, name)
    return config


def fields() -> Iterator[tuple[str, str, str, str, Any]]:
    """Every field as (section, name, title, unit, default), in the order of the file."""
    for section in msgspec.structs.fields(Config):
        kind = get_type_hints(Config)[section.name]
        hints = get_type_hints(kind, include_extras=True)
        for field in msgspec.structs.fields(kind):
            meta = _own_meta(hints[field.name])
            unit = (meta.extra or {}).get("unit", "")
            yield section.name, field.name, meta.title or "", unit, field.default


def example() -> str:
    """A commented configuration holding every field at its default."""
    lines = ["# Bedside: every field with its default. Remove what you don't change.", ""]
    current = ""
    for section, name, title, unit, default in fields():
        if section != current:
            kind = get_type_hints(Config)[section]
            lines += [
                "",
                f"[{section}]",
                *(f"# {line.strip()}" for line in (kind.__doc__ or "").splitlines() if line.strip()),
            ]
            current = section
        choices = _choices(section, name)
        lines.append(f"# {title}{f' ({unit})' if unit else ''}{f'; one of {choices}' if choices else ''}")
        lines.append(f"{name} = {_toml(default)}")
    return "\n".join(lines) + "\n"


def _own_meta(hint: Any) -> Meta:
    metas = [item for item in get_args(hint) if isinstance(item, Meta) and item.title]
    return metas[0] if metas else Meta()


def _choices(section: str, name: str) -> str:
    hint = get_type_hints(get_type_hints(Config)[section], include_extras=True)[name]
    for item in get_args(hint):
        if get_origin(item) is Literal:
            return ", ".join(get_args(item))
    return ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return str(value)


def _unknown(tables: dict[str, Any], kind: Any, path: str) -> Iterator[str]:
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in tables.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            yield f"{path}{key}: no such {'field' if path else 'section'}; {remedy}"
        elif isinstance(value, dict) and isinstance(known[key], type) and issubclass(known[key], msgspec.Struct):
            yield from _unknown(value, known[key], f"{path}{key}.")


def _explain(message: str) -> str:
    match = re.match(r"(?s)(.*) - at `\$\.(.*)`$", message)
    if match is None:
        return message
    problem, path = match.groups()
    section, _, name = path.partition(".")
    titles = {(s, n): (t, u, d) for s, n, t, u, d in fields()}
    title, unit, default = titles.get((section, re.sub(r"\[.*", "", name)), ("", "", None))
    hint = f" ({title}{f', {unit}' if unit else ''}; default {_toml(default)})" if title else ""
    return f"{path}: {problem}{hint}"


def _cross_check(config: Config, name: str) -> None:
    link, storage = config.link, config.storage
    if link.tls and not link.ca_file:
        raise ConfigError(
            f"{name}: link.ca_file: empty while link.tls is true; name the PEM file of the broker's authority"
        )
    if bool(link.certificate_file) != bool(link.key_file):
        raise ConfigError(f"{name}: link.certificate_file and link.key_file go together; set both or neither")
    if link.reconnect_to < link.reconnect_from:
        raise ConfigError(f"{name}: link.reconnect_to: less than link.reconnect_from; make it at least as long")
    if storage.reserve >= storage.refuse_below:
        raise ConfigError(
            f"{name}: storage.reserve: must be less than storage.refuse_below ({storage.refuse_below} MB)"
        )
    if config.folder.enabled and Path(config.folder.path).resolve() == config.state.resolve():
        raise ConfigError(f"{name}: folder.path: is storage.state itself; watch a folder of its own")
