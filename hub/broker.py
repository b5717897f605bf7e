"""The broker's configuration: mosquitto with TLS 1.3 both ways, where a box can only be itself.

What this module keeps true: without a certificate of the authority nobody speaks to the broker; the common name of a box's
certificate is its user name *and* its client id, so that it can neither publish nor read under another's topics nor take
another's session over; revoked certificates are refused (after a reload). The hub has a port of its own, where its one
certificate may open several sessions and no box's is taken.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from appliance.protocol.topics import ROOT
from hub.authority import HUB_NAME, Authority, AuthorityError


class Ports(NamedTuple):
    """Where the broker listens: for boxes on ``address``, for hubs on ``hub_address``."""

    boxes: int = 8883
    hub: int = 8884
    address: str = "0.0.0.0"  # noqa: S104 - boxes come from outside
    hub_address: str = "127.0.0.1"


def write_broker(
    folder: Path, authority: Authority, names: Sequence[str], ports: Ports, user: str = "mosquitto"
) -> Path:
    """Write all that mosquitto needs into ``folder``, with a new certificate for ``names``; the configuration's path.

    The folder is given to ``user``, as whom mosquitto reads it; the revocation list is kept up to date there from then on.
    Raises ``OSError``.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "data").mkdir(mode=0o700, exist_ok=True)
    certificate, key = authority.for_server("broker", [*names, "localhost"], folder)
    authority.publish_to(folder)
    acl, configuration = folder / "acl", folder / "mosquitto.conf"
    acl.write_text(_ACL, encoding="utf-8")
    acl.chmod(0o600)
    security = [
        f"certfile {certificate.absolute()}",
        f"keyfile {key.absolute()}",
        "tls_version tlsv1.3",
        "require_certificate true",
        "use_identity_as_username true",
        "max_connections 10000",
    ]
    lines = [
        "# Made by `bedside-hub broker`; made again, it is overwritten.",
        "per_listener_settings false",
        "allow_anonymous false",
        f"acl_file {acl.absolute()}",
        f"user {user}",
        "persistence true",
        f"persistence_location {(folder / 'data').absolute()}/",
        "max_inflight_messages 1000",
        "max_queued_messages 100000",
        "max_packet_size 1000000",
        "persistent_client_expiration 60d",
        "",
        f"listener {ports.boxes} {ports.address}",
        "use_username_as_clientid true",
        f"cafile {(folder / 'ca.pem').absolute()}",
        f"crlfile {(folder / 'crl.pem').absolute()}",
        *security,
        "",
        f"listener {ports.hub} {ports.hub_address}",
        f"cafile {(folder / 'hub.pem').absolute()}",
        *security,
    ]
    configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if os.getuid() == 0:
        _give(folder, user)
    return configuration


def _give(folder: Path, user: str) -> None:
    try:
        owner = pwd.getpwnam(user)
    except KeyError as error:
        raise AuthorityError(f"there is no user {user}; install mosquitto or name its user with --user") from error
    for path in (folder, folder / "data", *folder.glob("*.*"), folder / "acl"):
        os.chown(path, owner.pw_uid, owner.pw_gid)


_ACL = f"""# The hub reads what all boxes send and writes what all boxes are told.
user {HUB_NAME}
topic read {ROOT}/+/+/up/#
topic write {ROOT}/+/+/down/#

# A box: %u is the common name of its certificate, site/device.
pattern write {ROOT}/%u/up/#
pattern read {ROOT}/%u/down/#
"""
