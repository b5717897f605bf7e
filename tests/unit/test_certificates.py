"""The broker's certificate on a box that may not know the time: none refused for the box's fault, none accepted for it."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.config import LinkConfig
from appliance.health.clock import rfc3339
from appliance.records import Moment
from appliance.sync.certificates import BUILT, floor, tls_context
from tests.strict_certificates import strict

DAY = dt.timedelta(days=1)
SYSTEM = dt.datetime.now(dt.timezone.utc)
ISSUED = SYSTEM - 400 * DAY  # the authority; so much is certain
FLOOR = max(BUILT, ISSUED)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def certificate(
    folder: Path,
    what: str,
    begins: dt.datetime,
    ends: dt.datetime,
    by: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer, signer = (by[0].subject, by[1]) if by else (name(what), key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(what))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    made = strict(builder, key, signer, ca=by is None).sign(signer, SHA256())
    (folder / f"{what}.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / f"{what}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made, key


def connects(folder: Path, begins: dt.datetime, ends: dt.datetime, known: Moment, host: str = "localhost") -> bool:
    """Whether the box's context takes a broker with a certificate of these dates."""
    authority = certificate(folder, "authority", ISSUED, SYSTEM + 4000 * DAY, None)
    certificate(folder, "broker", begins, ends, authority)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "broker.pem", folder / "broker.key")
    config = LinkConfig(tls=True, ca_file=str(folder / "authority.pem"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                with server.wrap_socket(listener.accept()[0], server_side=True) as one:
                    one.recv(1)
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with socket.create_connection(listener.getsockname()) as plain:
                tls_context(config, lambda: known).wrap_socket(plain, server_hostname=host).close()
        except ssl.SSLCertVerificationError:
            return False
        finally:
            thread.join()
        return True


def knows(when: dt.datetime, uncertainty: float | None) -> Moment:
    return Moment(boot_id="b", monotonic_ns=1, wall=rfc3339(when.timestamp()), uncertainty_s=uncertainty)


IN_1970 = knows(dt.datetime.fromtimestamp(0, dt.timezone.utc), None)
AHEAD = knows(SYSTEM + 3650 * DAY, None)
TRUSTED = knows(SYSTEM, 1.0)
PRESENT = (SYSTEM - 10 * DAY, SYSTEM + 10 * DAY)
ENDED_LATELY = (FLOOR + DAY, SYSTEM - 2 * DAY)
TO_COME = (SYSTEM + 2 * DAY, SYSTEM + 20 * DAY)
LONG_PAST = (FLOOR - 300 * DAY, FLOOR - DAY)


@pytest.mark.parametrize(
    ("dates", "known", "accepted"),
    [
        (PRESENT, IN_1970, True),
        (PRESENT, AHEAD, True),
        (PRESENT, TRUSTED, True),
        (ENDED_LATELY, TRUSTED, False),
        (TO_COME, TRUSTED, False),
        (ENDED_LATELY, IN_1970, True),  # nobody here can know that it ended
        (TO_COME, IN_1970, True),
        (LONG_PAST, IN_1970, False),
        (LONG_PAST, AHEAD, False),
        (ENDED_LATELY, knows(SYSTEM - 3 * DAY, 1.0), True),  # the system's clock is wrong, the hub's time is known
        (TO_COME, knows(SYSTEM + 3 * DAY, 1.0), True),
        (PRESENT, knows(SYSTEM + 11 * DAY, 1.0), False),
        (PRESENT, knows(SYSTEM - 11 * DAY, 1.0), False),
        (PRESENT, knows(SYSTEM + 10.5 * DAY, 86400.0), True),  # within what is doubtful
    ],
)
def test_dates_are_judged_by_what_the_box_knows(
    tmp_path: Path, dates: tuple[dt.datetime, dt.datetime], known: Moment, accepted: bool
) -> None:
    assert connects(tmp_path, *dates, known) is accepted


@pytest.mark.parametrize("known", [IN_1970, TRUSTED], ids=["unknown", "trusted"])
def test_name_and_authority_are_checked_whatever_the_time(tmp_path: Path, known: Moment) -> None:
    assert not connects(tmp_path, *PRESENT, known, host="another.example")
    other = tmp_path / "other"
    other.mkdir()
    certificate(other, "authority", ISSUED, SYSTEM + DAY, None)
    real = ssl.create_default_context

    def stranger(**_: object) -> ssl.SSLContext:
        return real(cafile=str(other / "authority.pem"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", stranger)
        assert not connects(tmp_path, *PRESENT, known)


def test_the_floor_is_the_latest_that_certificates_on_the_box_prove(tmp_path: Path) -> None:
    certificate(tmp_path, "authority", SYSTEM - 900 * DAY, SYSTEM + DAY, None)
    certificate(tmp_path, "own", SYSTEM - DAY, SYSTEM + DAY, None)
    files = {"ca_file": str(tmp_path / "authority.pem"), "key_file": str(tmp_path / "own.key")}
    assert floor(LinkConfig(tls=True, ca_file=files["ca_file"])) == max(
        BUILT, (SYSTEM - 900 * DAY).replace(microsecond=0)
    )
    own = floor(LinkConfig(tls=True, certificate_file=str(tmp_path / "own.pem"), **files))
    assert own == (SYSTEM - DAY).replace(microsecond=0)
