"""A box becomes known by a one-time code and by nothing else, whoever carries, reads or answers."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import uvicorn
from cryptography import x509

from appliance.config import Config, DeviceConfig, StorageConfig
from appliance.protocol.enrolment import Code, EnrolmentError, make_answer, make_request, read_request
from appliance.protocol.signing import KeySigner
from appliance.protocol.topics import Address
from appliance.store.credentials import IdentityError, identity_of, install, new_keys
from appliance.store.files import RealFiles
from appliance.store.keys import open_key
from appliance.sync.enrolment import _pending, enrol, take_answer, write_request
from hub import tables
from hub.authority import Authority, AuthorityError, make_authority
from hub.blobs import BlobStore
from hub.database import Database
from hub.enrolment import ATTEMPTS, Enrolments, Told, active_keys
from hub.web.app import make_app
from hub.web.enrol import Door
from hub.web.site import Site

NOW = time.time_ns() // 1_000_000
HOUR = 3_600_000
BOX = Address("clinic-a", "box-1")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path / "authority", "Test hub")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/hub.sqlite")
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def enrolments(database: Database, authority: Authority) -> Enrolments:
    return Enrolments(database, authority, told=Told("hub.example:8883", "parcel"))


def box(tmp_path: Path, device: Address = BOX, folder: str = "box") -> Config:
    return Config(
        device=DeviceConfig(site=device.site, name=device.device),
        storage=StorageConfig(state=str(tmp_path / folder), refuse_below=16, reserve=4),
    )


def request(config: Config, code: str) -> bytes:
    return _pending(config, Code.parse(code)).request


def test_a_code_survives_how_people_type_it_and_no_wrong_letter(enrolments: Enrolments) -> None:
    text = enrolments.make_code(BOX, NOW, 1)
    code = Code.parse(text)
    assert code.text == text
    assert Code.parse(f"  {text.lower().replace('-', ' ')}\n") == code
    assert Code.parse(text.replace("0", "O").replace("1", "l")) == code
    letters = text.replace("-", "")
    for at in range(len(letters)):
        wrong = letters[:at] + ("2" if letters[at] != "2" else "3") + letters[at + 1 :]
        with pytest.raises(EnrolmentError, match="letter"):
            Code.parse(wrong)
    for nothing in ("", "-", letters[:-1], letters + "0", "ÄÖ" + letters[2:]):
        with pytest.raises(EnrolmentError):
            Code.parse(nothing)


def test_a_code_enrols_one_box_once_over_a_stick(tmp_path: Path, enrolments: Enrolments, authority: Authority) -> None:
    config = box(tmp_path)
    asked = write_request(config, tmp_path, enrolments.make_code(BOX, NOW, 1))
    answer = enrolments.enrol(asked.read_bytes(), NOW)
    assert enrolments.enrol(asked.read_bytes(), NOW) == answer, "the first answer may have been lost"
    asked.with_suffix(".enrolled").write_bytes(answer)
    done = take_answer(config, tmp_path)
    assert (done.device, done.broker, done.parcel_key) == ("clinic-a/box-1", "hub.example:8883", "parcel")
    found = identity_of(config.state, open_key(config.state, RealFiles()))
    assert found is not None
    assert found.hub_keys == (authority.signer.public,)
    certificate = x509.load_pem_x509_certificate(found.chain.read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=clinic-a/box-1"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["bedside:clinic-a/box-1"]
    assert (certificate.not_valid_after_utc - dt.datetime.now(dt.timezone.utc)).days in (729, 730)
    assert [one.state for one in enrolments.all()] == ["active"]
    with pytest.raises(EnrolmentError, match="asked for nothing"):
        take_answer(config, tmp_path)


def test_no_key_of_an_enrolled_box_lies_on_its_disk_in_the_open(tmp_path: Path, enrolments: Enrolments) -> None:
    config = box(tmp_path)
    code = enrolments.make_code(BOX, NOW, 1)
    asked = write_request(config, tmp_path, code)
    secret = Code.parse(code).secret
    held = b"".join(path.read_bytes() for path in (config.state / "identity").iterdir())
    assert secret not in held
    assert code.encode() not in held
    asked.with_suffix(".enrolled").write_bytes(enrolments.enrol(asked.read_bytes(), NOW))
    take_answer(config, tmp_path)
    held = b"".join(path.read_bytes() for path in (config.state / "identity").iterdir())
    assert b"ENCRYPTED PRIVATE KEY" in held
    assert b"BEGIN PRIVATE KEY" not in held
    (config.state / "box.key").write_bytes(bytes(32))
    with pytest.raises(IdentityError):
        identity_of(config.state, open_key(config.state, RealFiles()))


def test_another_request_with_a_used_code_is_refused(tmp_path: Path, enrolments: Enrolments) -> None:
    code = enrolments.make_code(BOX, NOW, 1)
    enrolments.enrol(request(box(tmp_path), code), NOW)
    with pytest.raises(EnrolmentError, match="used up"):
        enrolments.enrol(request(box(tmp_path, folder="thief"), code), NOW)


def test_a_code_ends(tmp_path: Path, enrolments: Enrolments) -> None:
    code = enrolments.make_code(BOX, NOW, 1)
    with pytest.raises(EnrolmentError, match="too old"):
        enrolments.enrol(request(box(tmp_path), code), NOW + HOUR + 1)


def test_a_code_is_for_the_box_it_was_made_for(tmp_path: Path, enrolments: Enrolments) -> None:
    code = enrolments.make_code(BOX, NOW, 1)
    with pytest.raises(EnrolmentError, match=r"clinic-a/box-1.*clinic-a/box-9"):
        enrolments.enrol(request(box(tmp_path, Address("clinic-a", "box-9")), code), NOW)


def test_wrong_proofs_use_a_code_up_and_a_restart_does_not_forgive_them(
    tmp_path: Path, enrolments: Enrolments, database: Database, authority: Authority
) -> None:
    code = Code.parse(enrolments.make_code(BOX, NOW, 1))
    right = request(box(tmp_path), code.text)
    for guess in range(ATTEMPTS):
        wrong = code._replace(secret=bytes([guess]) * 12)
        with pytest.raises(EnrolmentError, match="not known"):
            enrolments.enrol(request(box(tmp_path, folder=f"g{guess}"), wrong.text), NOW)
    again = Enrolments(database, authority)
    with pytest.raises(EnrolmentError, match="not known"):
        again.enrol(right, NOW)


@pytest.mark.parametrize("field", ["device", "signing_request", "signing_key", "signature", "proof"])
def test_a_request_that_was_changed_on_its_way_is_refused(tmp_path: Path, enrolments: Enrolments, field: str) -> None:
    code = enrolments.make_code(BOX, NOW, 1)
    asked = request(box(tmp_path), code)
    other = request(box(tmp_path, folder="other"), enrolments.make_code(BOX, NOW, 1))
    changed = msgspec.structs.replace(
        read_request(asked), **{field: "clinic-a/box-2" if field == "device" else getattr(read_request(other), field)}
    )
    with pytest.raises(EnrolmentError):
        enrolments.enrol(msgspec.json.encode(changed), NOW)
    assert enrolments.all() == []


def test_a_request_signed_with_another_key_than_it_names_is_refused(tmp_path: Path, enrolments: Enrolments) -> None:
    code = Code.parse(enrolments.make_code(BOX, NOW, 1))
    csr = read_request(request(box(tmp_path), code.text)).signing_request

    class Borrowed(KeySigner):
        """Names somebody else's public key."""

    signer = Borrowed(bytes(32))
    signer.public = KeySigner(b"\1" * 32).public
    with pytest.raises(EnrolmentError):
        enrolments.enrol(make_request(code, "clinic-a/box-1", csr, signer), NOW)


def test_an_answer_of_another_hub_is_not_taken(tmp_path: Path, enrolments: Enrolments) -> None:
    config, code = box(tmp_path), enrolments.make_code(BOX, NOW, 1)
    asked = write_request(config, tmp_path, code)
    rogue_database = Database(f"sqlite:///{tmp_path}/rogue.sqlite")
    rogue_database.migrate()
    rogue = Enrolments(rogue_database, make_authority(tmp_path / "rogue", "Test hub"))
    real = enrolments.enrol(asked.read_bytes(), NOW)
    answer = msgspec.structs.replace(msgspec.json.decode(real, type=_answer_type()), authority=rogue.authority_pem)
    for forged in (msgspec.json.encode(answer), make_answer(answer, bytes(32)), b"{}", b"\xff" * 100):
        asked.with_suffix(".enrolled").write_bytes(forged)
        with pytest.raises(EnrolmentError):
            take_answer(config, tmp_path)
    assert identity_of(config.state, open_key(config.state, RealFiles())) is None
    rogue_database.close()


def _answer_type() -> type:
    from appliance.protocol.enrolment import Answer

    return Answer


def test_a_certificate_for_another_key_or_name_is_not_installed(
    tmp_path: Path, enrolments: Enrolments, authority: Authority
) -> None:
    from appliance.store.credentials import Granted, signing_request

    config = box(tmp_path)
    key = open_key(_made(config.state), RealFiles())
    mine = signing_request(config.state, "clinic-a/box-1", key)
    theirs = signing_request(tmp_path / "other", "clinic-a/box-1", key)
    hub = [authority.signer.public]
    for pem in (
        authority.for_device(BOX, theirs, 10).pem,
        authority.for_device(Address("clinic-a", "box-2"), mine, 10).pem,
        make_authority(tmp_path / "rogue", "Test hub").for_device(BOX, mine, 10).pem,
        "nothing",
    ):
        with pytest.raises(IdentityError, match="nothing was changed"):
            install(config.state, "clinic-a/box-1", Granted(pem, authority.pem, hub), key)
    install(config.state, "clinic-a/box-1", Granted(authority.for_device(BOX, mine, 10).pem, authority.pem, hub), key)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_enrolling_again_ends_the_key_before_and_revokes_its_certificates(
    tmp_path: Path, enrolments: Enrolments, database: Database, authority: Authority
) -> None:
    config = box(tmp_path)
    for _ in range(2):
        asked = write_request(config, tmp_path, enrolments.make_code(BOX, NOW, 1))
        asked.with_suffix(".enrolled").write_bytes(enrolments.enrol(asked.read_bytes(), NOW))
        take_answer(config, tmp_path)
        new_keys(config.state, open_key(config.state, RealFiles()))
    assert sorted(one.state for one in enrolments.all()) == ["active", "replaced"]
    with database.read() as connection:
        assert len(active_keys(connection)) == 1
    assert len(revoked(authority)) == 1
    assert enrolments.revoke("clinic-a/box-1", "stolen", NOW) == 1
    assert len(revoked(authority)) == 2
    assert enrolments.revoke("clinic-a/box-1", "stolen", NOW) == 0


def test_a_revoked_key_does_not_come_back_with_a_new_code(tmp_path: Path, enrolments: Enrolments) -> None:
    config = box(tmp_path)
    enrolments.enrol(request(config, enrolments.make_code(BOX, NOW, 1)), NOW)
    enrolments.revoke("clinic-a/box-1", "stolen", NOW)
    with pytest.raises(EnrolmentError, match="--new-key"):
        enrolments.enrol(request(config, enrolments.make_code(BOX, NOW, 1)), NOW)


def revoked(authority: Authority) -> list[int]:
    crl = x509.load_pem_x509_crl((authority.folder / "crl.pem").read_bytes())
    assert crl.is_signature_valid(x509.load_pem_x509_certificate(authority.pem.encode()).public_key())  # type: ignore[arg-type]
    return [one.serial_number for one in crl]


def test_an_authority_is_made_once_and_its_keys_are_the_owners_alone(tmp_path: Path, authority: Authority) -> None:
    for name in ("ca.key", "hub.key", "signing.key"):
        assert (authority.folder / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(AuthorityError, match="already"):
        make_authority(authority.folder, "Test hub")
    with pytest.raises(AuthorityError, match="ca init"):
        Authority(tmp_path / "nowhere")


def test_a_database_alone_opens_no_code(enrolments: Enrolments, database: Database) -> None:
    secret = Code.parse(enrolments.make_code(BOX, NOW, 1)).secret
    with database.read() as connection:
        row = connection.execute(tables.enrolment_code.select()).one()
    assert secret not in bytes(row.sealed)


class Served:
    """The hub's pages over TLS on a free port; ``posts`` counts what was sent to it."""

    def __init__(self, tmp_path: Path, database: Database, enrolments: Enrolments, shown: Authority) -> None:
        certificate, key = shown.for_server("web", ["localhost"])
        app = make_app(Site(database, BlobStore(tmp_path / "blobs")), doors=Door(enrolments, shown.pem).routes())
        self.posts = 0

        async def counting(scope: dict, receive: Callable, send: Callable) -> None:
            self.posts += scope.get("method") == "POST"
            await app(scope, receive, send)

        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                counting, log_config=None, lifespan="off", ssl_certfile=str(certificate), ssl_keyfile=str(key)
            )
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def test_a_box_enrols_over_https_and_sends_nothing_to_whom_the_code_does_not_name(
    tmp_path: Path, enrolments: Enrolments, database: Database, authority: Authority
) -> None:
    config, code = box(tmp_path), enrolments.make_code(BOX, NOW, 1)
    impostor = Served(tmp_path, database, enrolments, make_authority(tmp_path / "rogue", "Test hub"))
    try:
        with pytest.raises(EnrolmentError, match="not the hub that made this code"):
            enrol(config, impostor.url, code)
        assert impostor.posts == 0
    finally:
        impostor.stop()
    hub = Served(tmp_path, database, enrolments, authority)
    try:
        assert enrol(config, hub.url, code).device == "clinic-a/box-1"
        with pytest.raises(EnrolmentError, match=r"https://"):
            enrol(config, "http://hub.example", code)
        with pytest.raises(EnrolmentError, match="the hub refused: this code is not known"):
            enrol(box(tmp_path, folder="second"), hub.url, code)
    finally:
        hub.stop()


def test_one_in_between_who_shows_the_real_authority_learns_nothing(
    tmp_path: Path, enrolments: Enrolments, authority: Authority
) -> None:
    """The certificate is public: showing it is no proof, and the second connection finds that out before anything is sent."""
    rogue = make_authority(tmp_path / "rogue", "Test hub")
    certificate, key = rogue.for_server("web", ["localhost"])
    received: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                plain, _address = listener.accept()
                try:
                    with context.wrap_socket(plain, server_side=True) as secured:
                        received.append(secured.recv(65536))
                        body = authority.pem.encode()
                        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                        secured.sendall(head.encode() + body)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(EnrolmentError, match="certificate verify failed"):
            enrol(box(tmp_path), f"https://localhost:{listener.getsockname()[1]}", enrolments.make_code(BOX, NOW, 1))
        thread.join()
    assert len(received) == 1
    assert b"POST" not in received[0]
