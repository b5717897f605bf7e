"""TLS for DICOM: the contexts of the door and of what the box asks others, after the BCP 195 profile (PS3.15, B.12; RFC 9325).

What this module keeps true: TLS 1.2 with ephemeral keys and authenticated ciphers, or 1.3, and nothing below; with an authority
set a peer without a certificate of it gets no association. The dates of certificates are judged only while the box knows the
time: a box that wakes in 1970 turns no X-ray machine away for that (chain and key are judged always).
"""

from __future__ import annotations

import ssl

from appliance.config import DicomConfig
from appliance.records import Moment

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, openssl/x509_vfy.h


def server_context(config: DicomConfig) -> ssl.SSLContext:
    """The door's context; raises ``OSError`` when a file can't be used."""
    context = _bcp195(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.load_cert_chain(config.certificate_file, config.key_file)
    if config.ca_file:
        context.load_verify_locations(config.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(config: DicomConfig, now: Moment) -> ssl.SSLContext:
    """The context for asking a server, whose name and chain are checked; raises ``OSError`` when a file can't be used."""
    context = _bcp195(ssl.create_default_context(cafile=config.ca_file or None))
    if config.certificate_file:
        context.load_cert_chain(config.certificate_file, config.key_file)
    return dated(context, now)


def dated(context: ssl.SSLContext, now: Moment) -> ssl.SSLContext:
    """The same context, for connections from ``now`` on: dates count only while the time is known."""
    flags = int(context.verify_flags) & ~_NO_CHECK_TIME
    context.verify_flags = ssl.VerifyFlags(flags | (_NO_CHECK_TIME if now.uncertainty_s is None else 0))
    return context


def _bcp195(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context
