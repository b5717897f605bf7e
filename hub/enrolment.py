"""Who may send in a box's name: one-time codes, enrolled keys, their certificates, and their end.

What this module keeps true: a code is good for one box, one request and a limited time, and after a few wrong proofs for
nothing; asking again with the same request is answered the same, because the first answer may have been lost. A device
has one active key: enrolling it again ends the one before. What ends is revoked at the broker (revocation list) and here
(``keys``) alike, and each step is in the audit log.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Connection, func, select, update

from appliance.protocol.enrolment import (
    Answer,
    Code,
    EnrolmentError,
    answer_key,
    is_request_proven,
    make_answer,
    pin_of,
    read_request,
    request_key,
)
from appliance.protocol.signing import key_id
from appliance.protocol.topics import Address, TopicError, parse
from hub import audit, tables
from hub.authority import Authority, AuthorityError, Issued
from hub.database import Database

ATTEMPTS = 5
"""Wrong proofs after which a code is worth nothing."""

RENEWALS = 5
"""Certificates that a key gets within an hour at most."""
_HOUR_MS = 3_600_000

_code, _enrolled, _certificate = tables.enrolment_code.c, tables.enrolled.c, tables.certificate.c
_REFUSED = "this code is not known, used up or too old; make another with: bedside-hub ca code SITE DEVICE"


class Told(NamedTuple):
    """What a box is told beside its certificate: the broker as it reaches it, the key for parcels."""

    broker: str = ""
    parcel_key: str = ""


class Enrolment(NamedTuple):
    """A device's key, for people. Times in milliseconds since 1970; ``ends_ms``: of its longest certificate."""

    device: str
    key: str
    state: str
    created_ms: int
    ends_ms: int
    reason: str


class Enrolments:
    """The statements about codes, keys and certificates. May be used from several threads."""

    def __init__(self, database: Database, authority: Authority, *, days: int = 730, told: Told | None = None) -> None:
        """``days``: how long a box's certificate is valid."""
        self._database = database
        self._authority = authority
        self._days = days
        self._told = told or Told()
        secret = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"bedside enrolment code 1")
        self._seal = AESGCM(secret.derive(authority.sealing_secret()))

    @property
    def authority_pem(self) -> str:
        """The authority's certificate, for whoever asks."""
        return self._authority.pem

    def make_code(self, device: Address, now_ms: int, hours: float) -> str:
        """A one-time code for ``device``, as text; raises ``AuthorityError`` for a name that can't be one."""
        try:
            parse(device.up("status"))
        except TopicError as error:
            raise AuthorityError("names are lower case letters, digits and hyphens, up to 32 of them") from error
        code = Code(secrets.token_bytes(4), secrets.token_bytes(12), pin_of(self._authority.pem))
        nonce, number = os.urandom(12), code.number.hex()
        row = {
            "number": number,
            "device": device.key,
            "sealed": nonce + self._seal.encrypt(nonce, code.secret, code.number),
            "created_ms": now_ms,
            "ends_ms": now_ms + round(hours * 3_600_000),
            "attempts": 0,
        }
        with self._database.write() as connection:
            connection.execute(tables.enrolment_code.delete().where(_code.ends_ms < now_ms - 30 * 86_400_000))
            connection.execute(tables.enrolment_code.insert(), row)
            audit.note(connection, "operator", "code", device.key, now_ms, number)
        return code.text

    def enrol(self, data: bytes, now_ms: int) -> bytes:
        """The answer to a request; raises ``EnrolmentError``, which says no more to one who guesses than to one who is late."""
        request = read_request(data)
        digest = hashlib.sha256(data).digest()
        with self._database.write() as connection:
            row = connection.execute(select(tables.enrolment_code).where(_code.number == request.number)).first()
            if row is None or row.ends_ms < now_ms or row.attempts >= ATTEMPTS:
                raise EnrolmentError(_REFUSED)
            secret = self._secret(row)
            proven = is_request_proven(request, request_key(secret))
            if not proven:  # counted in a transaction that is committed, not rolled back by the refusal
                counted = update(tables.enrolment_code).where(_code.number == request.number)
                connection.execute(counted.values(attempts=_code.attempts + 1))
                audit.note(connection, "unknown", "wrong proof", row.device, now_ms, request.number)
        if not proven:
            raise EnrolmentError(_REFUSED)
        if row.device != request.device:
            raise EnrolmentError(
                f"the code is for {row.device}, the box is configured as {request.device[:80]}; set [device]"
            )
        if row.request is not None:
            if row.request != digest:
                raise EnrolmentError(_REFUSED)
            return bytes(row.answer)
        return self._take(
            request.number, row.device, request.signing_request, request.signing_key, digest, secret, now_ms
        )

    def renew(self, device: Address, key: str, signing_request: str, now_ms: int) -> Answer:
        """A new certificate for an enrolled box whose request was signed with its key; raises ``AuthorityError``."""
        issued = self._authority.for_device(device, signing_request, self._days)
        with self._database.write() as connection:
            active = select(_enrolled.key_id).where(
                _enrolled.key_id == key, _enrolled.device == device.key, _enrolled.state == "active"
            )
            if connection.execute(active).first() is None:
                raise AuthorityError(f"{device.key} has no such active key; enrol it again")
            since = (_certificate.key_id == key) & (_certificate.issued_ms > now_ms - _HOUR_MS)
            issued_lately = connection.execute(select(func.count()).select_from(tables.certificate).where(since))
            if issued_lately.scalar_one() >= RENEWALS:  # somebody says an old request again and again
                raise AuthorityError(f"{device.key} has had {RENEWALS} certificates within an hour")
            self._remember(connection, device.key, key, issued, now_ms)
            audit.note(connection, device.key, "renewed", device.key, now_ms, issued.serial)
        return self._answer(device.key, b"\0" * 32, issued)

    def revoke(self, device: str, reason: str, now_ms: int) -> int:
        """End the keys and certificates of ``device``; how many keys. The broker needs a reload to know of it."""
        with self._database.write() as connection:
            count = self._end(connection, device, "revoked", reason, now_ms)
            closing = update(tables.enrolment_code).where(_code.device == device, _code.ends_ms > now_ms)
            connection.execute(closing.values(ends_ms=now_ms))
            audit.note(connection, "operator", "revoked", device, now_ms, reason)
        self.write_revocations(now_ms)
        return count

    def write_revocations(self, now_ms: int) -> None:
        """Write the authority's revocation list from what is revoked."""
        query = select(_certificate.serial).where(_certificate.revoked_ms.is_not(None), _certificate.ends_ms > now_ms)
        with self._database.read() as connection:
            serials = [row.serial for row in connection.execute(query)]
        self._authority.revoke(serials, dt.datetime.fromtimestamp(now_ms / 1000, dt.timezone.utc))

    def all(self) -> list[Enrolment]:
        """Every key that ever was, by device."""
        with self._database.read() as connection:
            ends: dict[str, int] = {}
            for row in connection.execute(select(_certificate.key_id, _certificate.ends_ms)):
                ends[row.key_id] = max(ends.get(row.key_id, 0), row.ends_ms)
            rows = connection.execute(select(tables.enrolled).order_by(_enrolled.device, _enrolled.created_ms)).all()
        return [
            Enrolment(row.device, row.key_id, row.state, row.created_ms, ends.get(row.key_id, 0), row.reason)
            for row in rows
        ]

    def _take(
        self, number: str, device: str, signing_request: str, public: bytes, digest: bytes, secret: bytes, now_ms: int
    ) -> bytes:
        site, _, name = device.partition("/")
        try:
            issued = self._authority.for_device(Address(site, name), signing_request, self._days)
        except AuthorityError as error:
            raise EnrolmentError(str(error)) from error
        answer = make_answer(self._answer(device, digest, issued), answer_key(secret))
        with self._database.write() as connection:
            used = update(tables.enrolment_code).where(_code.number == number, _code.request.is_(None))
            if connection.execute(used.values(request=digest, answer=answer)).rowcount == 0:
                raise EnrolmentError(_REFUSED)  # another request was quicker
            self._end(connection, device, "replaced", "enrolled again", now_ms)
            self._activate(connection, device, public, now_ms)
            self._remember(connection, device, key_id(public), issued, now_ms)
            audit.note(connection, device, "enrolled", device, now_ms, key_id(public))
        self.write_revocations(now_ms)
        return answer

    def _activate(self, connection: Connection, device: str, public: bytes, now_ms: int) -> None:
        row = {"key_id": key_id(public), "device": device, "public": public, "state": "active", "created_ms": now_ms}
        before = connection.execute(
            select(_enrolled.device, _enrolled.state).where(_enrolled.key_id == row["key_id"])
        ).first()
        if before is None:
            connection.execute(tables.enrolled.insert(), {**row, "reason": ""})
        elif before.device != device or before.state == "revoked":
            raise EnrolmentError(
                "this box's key was another's or was revoked; make a new one with: bedside enrol --new-key"
            )
        else:
            change = update(tables.enrolled).where(_enrolled.key_id == row["key_id"])
            connection.execute(change.values(state="active", ended_ms=None, reason=""))

    def _end(self, connection: Connection, device: str, state: str, reason: str, now_ms: int) -> int:
        ended = update(tables.enrolled).where(_enrolled.device == device, _enrolled.state == "active")
        count = connection.execute(ended.values(state=state, ended_ms=now_ms, reason=reason)).rowcount
        revoked = update(tables.certificate).where(_certificate.device == device, _certificate.revoked_ms.is_(None))
        connection.execute(revoked.values(revoked_ms=now_ms))
        return count

    def _remember(self, connection: Connection, device: str, key: str, issued: Issued, now_ms: int) -> None:
        row = {"serial": issued.serial, "device": device, "key_id": key, "issued_ms": now_ms, "ends_ms": issued.ends_ms}
        connection.execute(tables.certificate.insert(), row)

    def _answer(self, device: str, request: bytes, issued: Issued) -> Answer:
        return Answer(
            device=device,
            request=request,
            certificate=issued.pem,
            authority=self._authority.pem,
            hub_keys=[self._authority.signer.public],
            broker=self._told.broker,
            parcel_key=self._told.parcel_key,
        )

    def _secret(self, row: Any) -> bytes:
        try:
            return self._seal.decrypt(row.sealed[:12], row.sealed[12:], bytes.fromhex(row.number))
        except InvalidTag as error:
            raise EnrolmentError("the code was made by another authority; make it again") from error


def active_keys(connection: Connection, devices: Sequence[str] = ()) -> dict[tuple[str, str], bytes]:
    """(device, short key name) → public key, of every active enrolment, or of those of ``devices``."""
    query = select(_enrolled.device, _enrolled.key_id, _enrolled.public).where(_enrolled.state == "active")
    if devices:
        query = query.where(_enrolled.device.in_(devices))
    return {(row.device, row.key_id): bytes(row.public) for row in connection.execute(query)}
