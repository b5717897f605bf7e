"""TLS towards the broker on a box whose clock may be wrong (promise 7).

What this module keeps true: chain, name and key of the broker's certificate are always checked by OpenSSL. Its dates are
checked by OpenSSL too while the system's clock agrees with what the box knows; otherwise here, against what the box knows:
the trusted time with its uncertainty or, without any, the latest moment that must have passed (``floor``). So a box that wakes
in 1970 or ten years ahead refuses no certificate for that, and one that ended before the floor is never accepted.
"""

from __future__ import annotations

import datetime as dt
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509

from appliance.config import LinkConfig
from appliance.records import Moment

BUILT = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
"""No box of this program runs before it."""

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, openssl/x509_vfy.h
_AGREES = dt.timedelta(minutes=5)


def tls_context(config: LinkConfig, now: Callable[[], Moment], password: str = "") -> ssl.SSLContext:
    """The context for one connection as configured; ``now`` is the box's clock, ``password`` opens the key.

    Raises ``OSError`` or ``ValueError``.
    """
    context = ssl.create_default_context(cafile=config.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if config.certificate_file:
        context.load_cert_chain(config.certificate_file, config.key_file, password or None)
    known = now()
    if known.uncertainty_s is None or abs(_time(known) - _system()) > _AGREES:
        context.verify_flags |= _NO_CHECK_TIME
        context.sslsocket_class = _dated(known, floor(config))
    return context


def floor(config: LinkConfig) -> dt.datetime:
    """The latest moment that must have passed: the program's own, or when the certificates on this box were issued."""
    files = [Path(name) for name in (config.ca_file, config.certificate_file) if name]
    issued = [one.not_valid_before_utc for file in files for one in x509.load_pem_x509_certificates(file.read_bytes())]
    return max([BUILT, *issued])


def problem_of(certificate: x509.Certificate, known: Moment, earliest: dt.datetime) -> str:
    """Why the dates of a certificate can't be right, in words; empty when they can."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if known.uncertainty_s is None:
        return f"it ended on {ends:%Y-%m-%d}, and it is later than {earliest:%Y-%m-%d}" if ends < earliest else ""
    doubt = dt.timedelta(seconds=known.uncertainty_s)
    if ends < _time(known) - doubt:
        return f"it ended on {ends:%Y-%m-%d}"
    return f"it begins on {begins:%Y-%m-%d}" if begins > _time(known) + doubt else ""


def _dated(known: Moment, earliest: dt.datetime) -> type[ssl.SSLSocket]:
    class Dated(ssl.SSLSocket):
        """Looks at the dates before the first byte of the program's own goes over the connection."""

        def do_handshake(self, *arguments: Any, **options: Any) -> None:
            super().do_handshake(*arguments, **options)
            der = self.getpeercert(binary_form=True)
            problem = problem_of(x509.load_der_x509_certificate(der), known, earliest) if der else "there is none"
            if problem:
                raise ssl.SSLCertVerificationError(1, f"the broker's certificate can't be valid: {problem}; renew it")

    return Dated


def _time(moment: Moment) -> dt.datetime:
    return dt.datetime.fromisoformat(moment.wall.replace("Z", "+00:00"))


def _system() -> dt.datetime:
    """What OpenSSL takes for the time."""
    return dt.datetime.fromtimestamp(time.time(), dt.timezone.utc)
