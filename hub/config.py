"""The hub's configuration: one TOML file, validated once, every field with a title, a unit and a default.

What this module keeps true: a ``Config`` exists only if the whole file is valid; a wrong field is reported with its path
and what to write instead; an unknown field is an error. ``example`` is made from the same fields.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from ipaddress import ip_address
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


class HubConfig(_Section, frozen=True, kw_only=True):
    """Who this hub is. The name stands in receipts and in MQTT client ids."""

    name: Annotated[str, _field("This hub's short name, lower case letters, digits and hyphens", pattern=_NAME)] = (
        "hub-1"
    )
    clock_uncertainty: Annotated[
        float, _field("How far this machine's clock may be off; told to the boxes", "s", ge=0, le=3600)
    ] = 0.5


class StorageConfig(_Section, frozen=True, kw_only=True):
    """Where everything that must survive is kept."""

    state: Annotated[str, _field("Folder of the database (unless elsewhere) and the blobs")] = "/var/lib/bedside-hub"
    blobs: Annotated[
        str, _field("Folder of images and recordings, shared by all workers; empty means inside storage.state")
    ] = ""
    refuse_below: Annotated[
        int, _field("Refuse pieces of images and recordings when less than this is free", "MB", ge=1, le=1_000_000)
    ] = 512


class DatabaseConfig(_Section, frozen=True, kw_only=True):
    """The database: SQLite for one machine, PostgreSQL for many workers."""

    url: Annotated[
        str,
        _field(
            "Database URL, e.g. postgresql+psycopg://hub@db/bedside; empty means SQLite inside storage.state",
            pattern=r"^$|^(sqlite|postgresql\+psycopg)://",
        ),
    ] = ""
    busy_timeout: Annotated[float, _field("How long a write waits for another one to end", "s", ge=0.1, le=600)] = 30.0


class BrokerConfig(_Section, frozen=True, kw_only=True):
    """The MQTT 5 broker that the boxes publish to."""

    host: Annotated[str, _field("The broker's host name or address", min_length=1)] = "127.0.0.1"
    port: Annotated[Port, _field("The broker's port (8883 with TLS)")] = 1883
    tls: Annotated[bool, _field("Use TLS")] = False
    ca_file: Annotated[str, _field("PEM file of the authority that signed the broker's certificate")] = ""
    certificate_file: Annotated[str, _field("PEM file of this hub's certificate")] = ""
    key_file: Annotated[str, _field("PEM file of this hub's private key")] = ""
    username: Annotated[str, _field("User name at the broker; empty for none")] = ""
    password_file: Annotated[str, _field("File holding the password at the broker; empty for none")] = ""
    keep_alive: Annotated[int, _field("MQTT keep-alive", "s", ge=5, le=600)] = 30
    session_expiry: Annotated[
        int, _field("How long the broker keeps what arrives while a worker is away", "s", ge=0, le=604_800)
    ] = 3600
    reconnect_from: Annotated[float, _field("First pause before reconnecting", "s", ge=0.05, le=60)] = 0.25
    reconnect_to: Annotated[float, _field("Longest pause before reconnecting", "s", ge=0.1, le=3600)] = 15.0


class IngestConfig(_Section, frozen=True, kw_only=True):
    """How messages are taken in: a batch is one transaction."""

    share: Annotated[str, _field("Name of the group of workers that share the messages", pattern=_NAME)] = "ingest"
    batch: Annotated[int, _field("Most messages of one transaction", "messages", ge=1, le=1000)] = 500
    wait: Annotated[float, _field("How long a batch waits for more messages", "ms", ge=0, le=1000)] = 10.0
    in_flight: Annotated[
        int, _field("Messages a worker holds before it has confirmed them (receive maximum)", ge=1, le=65535)
    ] = 1000


class OutboxConfig(_Section, frozen=True, kw_only=True):
    """Reviews and commands on their way down, sent again until the box confirms them."""

    poll: Annotated[float, _field("How often the rows that are due are looked for", "s", ge=0.05, le=60)] = 0.5
    retry_from: Annotated[float, _field("First pause before sending again", "s", ge=0.1, le=3600)] = 20.0
    retry_to: Annotated[float, _field("Longest pause before sending again", "s", ge=1, le=604_800)] = 3600.0


class EscalationConfig(_Section, frozen=True, kw_only=True):
    """When a result that no human has taken note of is raised again."""

    critical_after: Annotated[
        tuple[Annotated[float, Meta(gt=0, le=10_080)], ...],
        _field("A critical result is raised again after each of these, counted from its arrival", "minutes"),
    ] = (15.0, 30.0, 60.0)
    check: Annotated[float, _field("How often waiting results are looked at", "s", ge=0.1, le=600)] = 5.0


class WebConfig(_Section, frozen=True, kw_only=True):
    """The worklist, the case pages and the JSON interface."""

    enabled: Annotated[bool, _field("Serve the pages")] = True
    address: Annotated[str, _field("Address to listen on")] = "127.0.0.1"
    port: Annotated[Port, _field("Port to listen on")] = 8090
    users_file: Annotated[
        str, _field("File of who may sign in (lines made by: bedside-hub password NAME); empty only on loopback")
    ] = ""
    certificate_file: Annotated[str, _field("PEM file of the web server's certificate; empty for none")] = ""
    key_file: Annotated[str, _field("PEM file of the web server's private key; empty for none")] = ""
    allowed_hosts: Annotated[
        tuple[str, ...], _field("Host names under which the pages are reached; empty means address and localhost")
    ] = ()


class LogConfig(_Section, frozen=True, kw_only=True):
    """What is written to the log (standard error)."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _field("Least important line written")] = "info"
    format: Annotated[Literal["text", "json"], _field("Form of a line")] = "text"


class Config(_Section, frozen=True, kw_only=True):
    """The whole file."""

    hub: HubConfig = HubConfig()
    storage: StorageConfig = StorageConfig()
    database: DatabaseConfig = DatabaseConfig()
    broker: BrokerConfig = BrokerConfig()
    ingest: IngestConfig = IngestConfig()
    outbox: OutboxConfig = OutboxConfig()
    escalation: EscalationConfig = EscalationConfig()
    web: WebConfig = WebConfig()
    log: LogConfig = LogConfig()

    @property
    def database_url(self) -> str:
        """The database's URL: as configured, or SQLite inside the state folder."""
        return self.database.url or f"sqlite:///{Path(self.storage.state).absolute() / 'hub.sqlite'}"

    @property
    def blobs(self) -> Path:
        """The folder of the blobs."""
        return Path(self.storage.blobs) if self.storage.blobs else Path(self.storage.state) / "blobs"


def load(path: Path) -> Config:
    """Read and validate the file; raises ``ConfigError`` naming the field and the remedy."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        remedy = f"write one with: bedside-hub config --example > {path}"
        raise ConfigError(f"{path}: can't be read ({error.strerror}); {remedy}") from error
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
            meta = next((m for m in get_args(hints[field.name]) if isinstance(m, Meta) and m.title), Meta())
            yield section.name, field.name, meta.title or "", (meta.extra or {}).get("unit", ""), field.default


def example() -> str:
    """A commented configuration holding every field at its default."""
    lines = ["# Bedside hub: every field with its default. Remove what you don't change."]
    current = ""
    for section, name, title, unit, default in fields():
        if section != current:
            purpose = get_type_hints(Config)[section].__doc__ or ""
            lines += ["", f"[{section}]", *(f"# {line.strip()}" for line in purpose.splitlines() if line.strip())]
            current = section
        choices = _choices(section, name)
        lines.append(f"# {title}{f' ({unit})' if unit else ''}{f'; one of {choices}' if choices else ''}")
        lines.append(f"{name} = {_toml(default)}")
    return "\n".join(lines) + "\n"


def _choices(section: str, name: str) -> str:
    hint = get_type_hints(get_type_hints(Config)[section], include_extras=True)[name]
    return next((", ".join(get_args(item)) for item in get_args(hint) if get_origin(item) is Literal), "")


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
    broker, web, outbox = config.broker, config.web, config.outbox
    if broker.tls and not broker.ca_file:
        raise ConfigError(
            f"{name}: broker.ca_file: empty while broker.tls is true; name the PEM file of the broker's authority"
        )
    for section, pair in (("broker", broker), ("web", web)):
        if bool(pair.certificate_file) != bool(pair.key_file):
            raise ConfigError(f"{name}: {section}.certificate_file and {section}.key_file go together; set both")
    if broker.reconnect_to < broker.reconnect_from:
        raise ConfigError(f"{name}: broker.reconnect_to: less than broker.reconnect_from; make it at least as long")
    if outbox.retry_to < outbox.retry_from:
        raise ConfigError(f"{name}: outbox.retry_to: less than outbox.retry_from; make it at least as long")
    if list(config.escalation.critical_after) != sorted(set(config.escalation.critical_after)):
        raise ConfigError(f"{name}: escalation.critical_after: must rise from step to step, like [15, 30, 60]")
    if web.enabled and not web.users_file and not is_loopback(web.address):
        raise ConfigError(
            f"{name}: web.users_file: empty while web.address ({web.address}) is not loopback: anybody could read and "
            "review cases; make one with: bedside-hub password NAME >> FILE"
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach ``address``."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
