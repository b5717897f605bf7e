"""The box's certificate is renewed over the link before it ends, without anybody asking.

What this module keeps true: a new key is made for each certificate; the present one serves until the new one is whole on
the disk. It is asked for when a third of its time is left, again every ``ASK_EVERY`` seconds until there is an answer, and only
when the time is known.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from appliance.protocol import messages
from appliance.protocol.messages import Certificate, MessageError, Renewal, make_id
from appliance.records import Moment
from appliance.store.credentials import Granted, Identity, IdentityError, identity_of, install, signing_request
from appliance.store.keys import BoxKey

_log = structlog.get_logger(__name__)
ASK_EVERY = 3600.0
_SHARE = 3


class Renewals:
    """``say(leaf, payload)`` publishes; ``note(event, subject, detail)`` writes to the audit log."""

    def __init__(
        self,
        state: Path,
        key: BoxKey,
        now: Callable[[], Moment],
        say: Callable[[str, bytes], None],
        note: Callable[[str, str, str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state, self._key = state, key
        self._now = now
        self._say = say
        self._note = note
        self._monotonic = monotonic
        self._asked_at = -ASK_EVERY
        self._asked = ""

    def identity(self) -> Identity | None:
        """Who this box is, as it is on the disk now; raises ``IdentityError``."""
        return identity_of(self._state, self._key)

    def tend(self) -> None:
        """Ask, if it is time to. Raises ``IdentityError`` or ``OSError``."""
        identity = self.identity()
        if identity is None or self._monotonic() - self._asked_at < ASK_EVERY or not self._is_due(identity):
            return
        self._asked_at = self._monotonic()
        request = signing_request(self._state, identity.device, self._key)
        self._asked = make_id("renewal", identity.device, request)
        self._say("renewal", messages.encode(Renewal(id=self._asked, signing_request=request)))
        _log.info("asked for a new certificate", ends=f"{identity.ends:%Y-%m-%d}")

    def taken(self, payload: bytes) -> None:
        """The hub's answer; one that is not to the last question changes nothing."""
        try:
            answer = messages.decode(payload, Certificate)
            identity = self.identity()
            if identity is None or answer.id != self._asked:
                return
            granted = Granted(answer.certificate, answer.authority, answer.hub_keys, answer.broker, answer.parcel_key)
            install(self._state, identity.device, granted, self._key)
        except (MessageError, IdentityError) as error:
            _log.warning("the new certificate can't be used", error=str(error)[:200])
            return
        self._asked = ""
        self._note("renewed", "certificate", "")

    def problem(self) -> str:
        """What a technician should know of the certificate; empty when all is well."""
        try:
            identity = self.identity()
        except IdentityError as error:
            return str(error)
        time_left = self._time_left(identity) if identity is not None else None
        if identity is None or time_left is None or time_left > (identity.ends - identity.begins) / (2 * _SHARE):
            return ""
        ends = "has ended" if time_left < dt.timedelta(0) else f"ends on {identity.ends:%Y-%m-%d}"
        return f"This box's certificate {ends} and was not renewed: enrol it again (bedside enrol)."

    def _is_due(self, identity: Identity) -> bool:
        time_left = self._time_left(identity)
        return time_left is not None and time_left <= (identity.ends - identity.begins) / _SHARE

    def _time_left(self, identity: Identity) -> dt.timedelta | None:
        now = self._now()
        if now.uncertainty_s is None:
            return None
        return identity.ends - dt.datetime.fromisoformat(now.wall.replace("Z", "+00:00"))
