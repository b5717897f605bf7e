"""The hub's configuration: one TOML file, validated once, every field with a title, a unit and a default.

What this module keeps true: a ``Config`` exists only if the whole file is valid; a wrong field is reported with its path
and what to write instead; an unknown field is an error. ``example`` is made from the same fields.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.settings import NAME, ConfigError, Form, Port, Section, field

__all__ = ["Config", "ConfigError"]


class HubConfig(Section, frozen=True, kw_only=True):
    """Who this hub is. The name stands in receipts and in MQTT client ids."""

    name: Annotated[str, field("This hub's short name, lower case letters, digits and hyphens", pattern=NAME)] = "hub-1"
    clock_uncertainty: Annotated[
        float, field("How far this machine's clock may be off; told to the boxes", "s", ge=0, le=3600)
    ] = 0.5


class StorageConfig(Section, frozen=True, kw_only=True):
    """Where everything that must survive is kept."""

    state: Annotated[str, field("Folder of the database (unless elsewhere) and the blobs", min_length=1)] = (
        "/var/lib/bedside-hub"
    )
    blobs: Annotated[
        str, field("Folder of images and recordings, shared by all workers; empty means inside storage.state")
    ] = ""
    refuse_below: Annotated[
        int, field("Refuse pieces of images and recordings when less than this is free", "MB", ge=1, le=1_000_000)
    ] = 512


class DatabaseConfig(Section, frozen=True, kw_only=True):
    """The database: SQLite for one machine, PostgreSQL for many workers."""

    url: Annotated[
        str,
        field(
            "Database URL, e.g. postgresql+psycopg://hub@db/bedside; empty means SQLite inside storage.state",
            pattern=r"^$|^(sqlite|postgresql\+psycopg)://",
        ),
    ] = ""
    busy_timeout: Annotated[float, field("How long a write waits for another one to end", "s", ge=0.1, le=600)] = 30.0


class BrokerConfig(Section, frozen=True, kw_only=True):
    """The MQTT 5 broker that the boxes publish to."""

    host: Annotated[str, field("The broker's host name or address", min_length=1)] = "127.0.0.1"
    port: Annotated[Port, field("The broker's port (8883 with TLS)")] = 1883
    tls: Annotated[bool, field("Use TLS")] = False
    ca_file: Annotated[str, field("PEM file of the authority that signed the broker's certificate")] = ""
    certificate_file: Annotated[str, field("PEM file of this hub's certificate")] = ""
    key_file: Annotated[str, field("PEM file of this hub's private key")] = ""
    username: Annotated[str, field("User name at the broker; empty for none")] = ""
    password_file: Annotated[str, field("File holding the password at the broker; empty for none")] = ""
    keep_alive: Annotated[int, field("MQTT keep-alive", "s", ge=5, le=600)] = 30
    session_expiry: Annotated[
        int, field("How long the broker keeps what arrives while a worker is away", "s", ge=0, le=604_800)
    ] = 3600
    reconnect_from: Annotated[float, field("First pause before reconnecting", "s", ge=0.05, le=60)] = 0.25
    reconnect_to: Annotated[float, field("Longest pause before reconnecting", "s", ge=0.1, le=3600)] = 15.0


class IngestConfig(Section, frozen=True, kw_only=True):
    """How messages are taken in: a batch is one transaction."""

    share: Annotated[str, field("Name of the group of workers that share the messages", pattern=NAME)] = "ingest"
    batch: Annotated[int, field("Most messages of one transaction", "messages", ge=1, le=1000)] = 500
    wait: Annotated[float, field("How long a batch waits for more messages", "ms", ge=0, le=1000)] = 10.0
    in_flight: Annotated[
        int, field("Messages a worker holds before it has confirmed them (receive maximum)", ge=1, le=65535)
    ] = 1000


class OutboxConfig(Section, frozen=True, kw_only=True):
    """Reviews and commands on their way down, sent again until the box confirms them."""

    poll: Annotated[float, field("How often the rows that are due are looked for", "s", ge=0.05, le=60)] = 0.5
    retry_from: Annotated[float, field("First pause before sending again", "s", ge=0.1, le=3600)] = 20.0
    retry_to: Annotated[float, field("Longest pause before sending again", "s", ge=1, le=604_800)] = 3600.0


class EscalationConfig(Section, frozen=True, kw_only=True):
    """When a result that no human has taken note of is raised again."""

    critical_after: Annotated[
        tuple[Annotated[float, Meta(gt=0, le=10_080)], ...],
        field("A critical result is raised again after each of these, counted from its arrival", "minutes"),
    ] = (15.0, 30.0, 60.0)
    check: Annotated[float, field("How often waiting results are looked at", "s", ge=0.1, le=600)] = 5.0


class AuthorityConfig(Section, frozen=True, kw_only=True):
    """Who the boxes are: without it nothing is signed, and the broker must be on this machine."""

    folder: Annotated[
        str, field("Folder of `bedside-hub ca init`; empty: boxes are not enrolled, nothing is signed")
    ] = ""
    days: Annotated[int, field("How long a box's certificate is valid; it is renewed over the link", "days", ge=1)] = (
        730
    )
    broker: Annotated[str, field("Broker as the boxes reach it, host:port; told to them when they enrol")] = ""
    parcel_key: Annotated[str, field("File of `bedside-hub keys`; its public key is told to them too")] = ""


class WebConfig(Section, frozen=True, kw_only=True):
    """The worklist, the case pages and the JSON interface."""

    enabled: Annotated[bool, field("Serve the pages")] = True
    address: Annotated[str, field("Address to listen on")] = "127.0.0.1"
    port: Annotated[Port, field("Port to listen on")] = 8090
    users_file: Annotated[
        str, field("File of further readers (lines made by: bedside-hub password NAME), beside bedside-hub user add")
    ] = ""
    idle: Annotated[
        float, field("A session that nobody used for so long asks for the password again", "minutes", ge=1, le=480)
    ] = 15.0
    proxy: Annotated[bool, field("A proxy in front speaks TLS; only then may a wider address go without one")] = False
    models: Annotated[str, field("Folder of the model bundles whose cards are shown; empty means those shipped")] = ""
    certificate_file: Annotated[str, field("PEM file of the web server's certificate; empty for none")] = ""
    key_file: Annotated[str, field("PEM file of the web server's private key; empty for none")] = ""
    allowed_hosts: Annotated[
        tuple[str, ...], field("Host names under which the pages are reached; empty means address and localhost")
    ] = ()


class LogConfig(Section, frozen=True, kw_only=True):
    """What is written to the log (standard error)."""

    level: Annotated[Literal["debug", "info", "warning", "error"], field("Least important line written")] = "info"
    format: Annotated[Literal["text", "json"], field("Form of a line")] = "text"


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    hub: HubConfig = HubConfig()
    storage: StorageConfig = StorageConfig()
    database: DatabaseConfig = DatabaseConfig()
    broker: BrokerConfig = BrokerConfig()
    ingest: IngestConfig = IngestConfig()
    outbox: OutboxConfig = OutboxConfig()
    escalation: EscalationConfig = EscalationConfig()
    authority: AuthorityConfig = AuthorityConfig()
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

    @property
    def reached_broker(self) -> BrokerConfig:
        """The broker with this hub's certificate: as configured, or the authority's where nothing is."""
        if not self.broker.tls or not self.authority.folder or self.broker.certificate_file:
            return self.broker
        folder = Path(self.authority.folder)
        files = {"certificate_file": str(folder / "hub.pem"), "key_file": str(folder / "hub.key")}
        ca_file = self.broker.ca_file or str(folder / "ca.pem")
        return msgspec.structs.replace(self.broker, ca_file=ca_file, **files)


def _cross_check(config: Config, name: str) -> None:
    broker, web, outbox = config.broker, config.web, config.outbox
    if broker.tls and not broker.ca_file and not config.authority.folder:
        raise ConfigError(
            f"{name}: broker.ca_file: empty while broker.tls is true; name the PEM file of the broker's authority"
        )
    if not config.authority.folder and not is_loopback(broker.host):
        raise ConfigError(
            f"{name}: authority.folder: empty while broker.host ({broker.host}) is not loopback: anybody who reaches the "
            "broker could send results in a box's name; make an authority with: bedside-hub ca init"
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
    if web.enabled and not web.certificate_file and not web.proxy and not is_loopback(web.address):
        raise ConfigError(
            f"{name}: web.certificate_file: empty while web.address ({web.address}) is not loopback: passwords would go in "
            "clear; make one with: bedside-hub ca server, or set web.proxy = true where a proxy speaks TLS"
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach ``address``."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


_FORM = Form(Config, _cross_check, headline="Bedside hub", command="bedside-hub config --example")
load = _FORM.load
parse = _FORM.parse
fields = _FORM.fields
example = _FORM.example
