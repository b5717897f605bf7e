"""The doctor's look at what the box talks to and through: the broker, the DICOM port, the console's port.

What this module keeps true: the box's session and what the broker keeps for it are not touched. The broker is asked with a
client id of its own and a session that ends at once; an enrolled box, whose certificate is its client id there, is only
asked for while no daemon runs, and its session goes on. Passwords and keys are read, never shown.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import secrets
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

from cryptography import x509

from appliance.config import Config, ConsoleConfig, LinkConfig
from appliance.health.check import Check, unsure, well, wrong
from appliance.health.check_box import is_running
from appliance.health.clock import kernel_synchronised
from appliance.store.credentials import FOLDER, IdentityError, identity_of, reached, why_not
from appliance.store.errors import StoreError
from appliance.store.files import RealFiles
from appliance.store.keys import open_key

_SECONDS = 10.0
_SESSION_EXPIRY = 30 * 24 * 3600  # the link's own
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - addresses to listen on, and where to ask
_LOOK_AT_THE_CLOCK = (
    "set the clock (see the point 'clock'), then try again; if the clock is right, a new certificate is due"
)
_TLS = {  # OpenSSL, x509_vfy.h
    7: (
        "the broker's certificate is of an authority of the same name with another key",
        "copy the hub's present CA certificate to link.ca_file",
    ),
    9: ("the broker's certificate is not valid yet", _LOOK_AT_THE_CLOCK),
    10: ("the broker's certificate has expired", _LOOK_AT_THE_CLOCK),
    18: ("the broker's certificate signed itself", "put that certificate, or its authority's, into link.ca_file"),
    19: ("the broker's certificate ends in an unknown authority", "put the hub's CA certificate into link.ca_file"),
    20: ("the broker's certificate is of another authority than link.ca_file", "copy the hub's CA certificate there"),
    62: ("the broker's certificate is for another name", "set link.host to the name in the certificate"),
    64: ("the broker's certificate is for another address", "set link.host to the name or address in the certificate"),
}


def check_broker(config: Config) -> Check:
    """The broker: name, TCP, TLS, MQTT 5 CONNECT, in that order; the first that fails is explained."""
    name, link = "broker", config.link
    if not link.enabled:
        return unsure(name, "not in use (link.enabled is false)")
    try:
        key = open_key(config.state, RealFiles()) if (config.state / FOLDER).is_dir() else None
        identity = identity_of(config.state, key) if key is not None else None
    except (IdentityError, StoreError) as error:
        return wrong(name, str(error), "enrol this box again: bedside enrol")
    problem = why_not(link, identity)
    link, password = reached(link, identity), identity.password if identity is not None else ""
    where = f"{link.host}:{link.port}"
    try:
        with socket.create_connection((link.host, link.port), timeout=_SECONDS) as connection:
            if problem:
                what, _, remedy = problem.partition("; ")
                return wrong(name, what, remedy)
            if link.tls:
                found = _shake_hands(link, connection, password)
                if found is not None and found[1] == _LOOK_AT_THE_CLOCK and kernel_synchronised() is None:
                    doubt = "says a clock that no time service keeps; the link itself judges by the best time it knows"
                    return unsure(name, f"{where}: {found[0]}, {doubt}", found[1])
                if found is not None:
                    return wrong(name, f"{where}: {found[0]}", found[1])
    except OSError as error:
        found = _explain_network(error, link)
        return wrong(name, f"{where}: {found[0]}", found[1])
    if identity is not None and is_running(config.state):
        return well(name, f"{where} shows its certificate and takes this box's; the running daemon speaks MQTT with it")
    said = _mqtt_connect(link, password, keep=identity is not None)
    if said is not None:
        return wrong(name, f"{where}: {said[0]}", said[1])
    return well(name, f"{where} takes MQTT 5 connections{' over TLS' if link.tls else ', not encrypted'}")


def _explain_network(error: OSError, link: LinkConfig) -> tuple[str, str]:
    offline = "the box works on without it and sends everything later"
    if isinstance(error, socket.gaierror):
        return "the name is not known", f"check link.host and the network's DNS (resolvectl status); {offline}"
    if isinstance(error, TimeoutError):
        return f"no answer within {_SECONDS:.0f} s", f"check the modem or cable, and the firewall on the way; {offline}"
    if error.errno == errno.ECONNREFUSED:
        return (
            "refused: nothing listens there",
            f"start the broker (systemctl start mosquitto) or check link.port; {offline}",
        )
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return "no way there", f"no network: check the modem or cable (ip route); {offline}"
    return error.strerror or str(error), f"check link.host {link.host!r} and link.port; {offline}"


def _shake_hands(link: LinkConfig, connection: socket.socket, password: str) -> tuple[str, str] | None:
    """TLS as the link does it; what is wrong and what to do, or ``None``."""
    for field in ("ca_file", "certificate_file", "key_file"):
        path = getattr(link, field)
        if path and not os.access(path, os.R_OK):
            return f"link.{field} {path} can't be read", "copy it from the hub and give it to the service's user"
    try:
        context = _context(link, password)
    except (ssl.SSLError, OSError) as error:
        files = "link.ca_file, link.certificate_file and link.key_file"
        return f"certificates can't be used: {error}", f"{files} must be PEM, and the key that of the certificate"
    try:
        with context.wrap_socket(connection, server_hostname=link.host) as secured:
            secured.settimeout(0.3)  # TLS 1.3: a refusal of our certificate comes after the handshake
            with contextlib.suppress(TimeoutError):
                secured.recv(1)
    except ssl.SSLCertVerificationError as error:
        return _TLS.get(error.verify_code, (error.verify_message, "check link.ca_file and link.host"))
    except ssl.SSLError as error:
        return _explain_tls(error)
    except ConnectionError:
        return "it closed the connection: that port speaks no TLS", "set link.port to the TLS port (8883 usually)"
    return None


def _context(link: LinkConfig, password: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=link.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if link.certificate_file:
        context.load_cert_chain(link.certificate_file, link.key_file, password or None)
    return context


def _explain_tls(error: ssl.SSLError) -> tuple[str, str]:
    reason = (error.reason or "").replace("_", " ").lower()
    if "certificate required" in reason or "handshake failure" in reason:
        return "it wants this device's certificate", "set link.certificate_file and link.key_file"
    if "alert" in reason and ("unknown ca" in reason or "certificate" in reason):
        return f"it does not accept this device's certificate ({reason})", "enrol the device at the hub again"
    if "wrong version" in reason or "record layer" in reason or "eof" in reason:
        return "that port speaks no TLS", "set link.port to the TLS port (8883 usually), or link.tls to false"
    return f"TLS fails: {reason or error}", "compare the broker's TLS settings with link.*"


def _mqtt_connect(link: LinkConfig, password: str, *, keep: bool) -> tuple[str, str] | None:
    """CONNECT; what is wrong and what to do, or ``None``. ``keep``: the broker takes us for the box, whose session goes on."""
    from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv5
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"bedside-doctor-{secrets.token_hex(6)}",
        protocol=MQTTv5,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = _SESSION_EXPIRY if keep else 0
    answered, answer = threading.Event(), []

    def on_connect(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        answer.append(str(reason) if reason.is_failure else "")
        answered.set()

    client.on_connect = on_connect
    client.on_disconnect = lambda *_: answered.set()
    try:
        if link.username:
            secret = Path(link.password_file).read_text().strip() if link.password_file else None
            client.username_pw_set(link.username, secret)
        if link.tls:
            client.tls_set_context(_context(link, password))
        client.connect_timeout = _SECONDS
        client.connect(link.host, link.port, keepalive=10, clean_start=not keep, properties=properties)
    except OSError as error:
        if error.filename:
            return f"{error.filename}: {error.strerror}", "link.password_file must be readable for the service's user"
        return f"the connection broke ({error})", "look at the broker's log"
    client.loop_start()
    answered.wait(_SECONDS)
    client.disconnect()
    client.loop_stop()
    return _explain_mqtt(answer)


def _explain_mqtt(answer: list[str]) -> tuple[str, str] | None:
    if not answer:
        return (
            "it does not answer MQTT",
            "another service listens on that port, or a broker older than MQTT 5: check link.port",
        )
    said = answer[0]
    if "authoriz" in said.lower() or "user name" in said.lower():
        return f"it refuses: {said}", "check link.username and link.password_file against the broker's users"
    return (f"it refuses: {said}", "look at the broker's log") if said else None


def check_dicom(config: Config, *, running: bool) -> Check:
    """The DICOM port: answering C-ECHO when the daemon runs, free when it doesn't."""
    name, dicom = "dicom", config.dicom
    if not dicom.enabled:
        return unsure(name, "not in use (dicom.enabled is false)")
    return _echo(name, config) if running else _is_free(name, dicom.address, dicom.port, "dicom.port")


def _echo(name: str, config: Config) -> Check:
    from pynetdicom import AE

    dicom = config.dicom
    host = _HERE.get(dicom.address, dicom.address)
    calling = dicom.allowed_ae_titles[0] if dicom.allowed_ae_titles else "BEDSIDE-DOCTOR"
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _SECONDS
    entity.add_requested_context("1.2.840.10008.1.1")  # Verification
    association = entity.associate(host, dicom.port, ae_title=dicom.ae_title)
    where = f"{dicom.ae_title} at {host}:{dicom.port}"
    if association.is_established:
        status = association.send_c_echo()
        association.release()
        if status and status.Status == 0x0000:
            return well(name, f"{where} answers C-ECHO")
        return wrong(name, f"{where} takes associations and does not answer C-ECHO", "look at the daemon's log")
    if association.is_rejected:
        found = f"{where} rejects this machine; devices that are allowed may be taken all the same"
        return unsure(name, found, "try C-ECHO from a sending device; see dicom.allowed_addresses")
    return wrong(
        name, f"{where} does not answer", "bedside status says why the door is closed; often its port is in use"
    )


def check_console(config: Config, *, running: bool) -> Check:
    """The console's port."""
    name, console = "console", config.console
    if not console.enabled:
        return unsure(name, "not in use (console.enabled is false)")
    if not running:
        return _is_free(name, console.address, console.port, "console.port")
    host = console.here
    try:
        socket.create_connection((host, console.port), timeout=_SECONDS).close()
    except OSError as error:
        return wrong(name, f"{host}:{console.port}: {error.strerror or error}", "look at the daemon's log")
    if console.is_bare:
        found = f"serves {console.address}:{console.port} in clear: PINs and patients can be read on the network"
        return wrong(name, found, 'set console.tls = "own" and let the tablets trust the box')
    return well(name, f"listens on {host}:{console.port}") if console.tls == "off" else _secure_console(console)


def _secure_console(console: ConsoleConfig) -> Check:
    """How long the certificate that tablets are shown still holds; whether they trust it is theirs to say."""
    name, host = "console", _HERE.get(console.address, console.address)
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, console.tls_port), timeout=_SECONDS) as bare,
            blind.wrap_socket(bare) as link,
        ):
            shown = x509.load_der_x509_certificate(link.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError) as error:
        return wrong(name, f"{host}:{console.tls_port} gives no TLS ({error})", "look at the daemon's log")
    ends, now = shown.not_valid_after_utc, dt.datetime.now(dt.timezone.utc)
    if ends < now + dt.timedelta(days=14):
        remedy = "put new files at console.certificate_file and console.key_file, or look at the daemon's log"
        return wrong(name, f"its certificate ends on {ends:%Y-%m-%d}", remedy)
    return well(name, f"listens on {host}:{console.tls_port} with TLS; its certificate holds until {ends:%Y-%m-%d}")


def _is_free(name: str, address: str, port: int, field: str) -> Check:
    where = f"port {port} of {address}"
    try:
        family, kind, _, _, target = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return wrong(
                name,
                f"{where} is taken by another program",
                f"find it with: ss -ltnp 'sport = :{port}'; or set {field}",
            )
        if error.errno == errno.EACCES:
            return wrong(
                name, f"{where} is reserved for root", f"set {field} to 1024 or more; let the firewall forward {port}"
            )
        return wrong(name, f"{where}: {error.strerror or error}", f"check {field.partition('.')[0]}.address")
    return well(name, f"{where} is free for the daemon")
