"""The parts that know who is who, made as the configuration says.

What this module keeps true: a hub without an authority says so when it starts, once, and serves this machine only.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from appliance.protocol.parcel import ParcelError
from hub.authority import Authority, AuthorityError
from hub.config import Config
from hub.database import Database
from hub.enrolment import Enrolments, Told
from hub.parcels import open_keys
from hub.trust import Voice

_LOG = structlog.get_logger("hub.identity")


def make_enrolments(config: Config, database: Database) -> Enrolments:
    """The enrolments of a configuration that names an authority; raises ``AuthorityError``."""
    settings = config.authority
    try:
        parcel_key = open_keys(Path(settings.parcel_key)).public if settings.parcel_key else ""
    except ParcelError as error:
        raise AuthorityError(f"authority.parcel_key: {error}") from error
    told = Told(settings.broker, parcel_key)
    return Enrolments(database, Authority(Path(settings.folder)), days=settings.days, told=told)


def make_voice(config: Config) -> Voice | None:
    """The hub's voice, ``None`` without an authority (and says so); raises ``AuthorityError``."""
    if not config.authority.folder:
        _LOG.warning("no authority: boxes are not enrolled and nothing is signed; for tests on this machine only")
        return None
    return Voice(Authority(Path(config.authority.folder)).signer)
