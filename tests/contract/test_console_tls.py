"""The console over TLS, seen by real TLS clients: what a tablet may trust, what it may not, and what is said in clear."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509 import verification
from typer.testing import CliRunner

from appliance.cli import app
from appliance.config import parse
from appliance.console import certificate
from appliance.console.certificate import FOLDER, OwnCertificate, authority_pem, box_addresses, fingerprint
from appliance.console.listener import ConsoleError, PlainDoor, is_from_here
from appliance.health.check_link import check_console
from appliance.store.files import RealFiles
from appliance.store.keys import BoxKey
from appliance.store.people import Role
from tests.console_world import World

PIN = "739204"
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.timezone.utc)
KEY = BoxKey(b"k" * 32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("box"), tls="own", tls_port=0, sign_in="on")
    made.store.people.enter("Amina", Role.ADMINISTRATOR, PIN)
    yield made
    made.close()


def trusting(world: World, **versions: ssl.TLSVersion) -> ssl.SSLContext:
    """What a tablet has that trusts this box and nobody else."""
    pem = authority_pem(world.store.folder)
    assert pem is not None
    context = ssl.create_default_context(cadata=pem.decode())
    for name, version in versions.items():
        setattr(context, name, version)
    return context


def secure(world: World) -> str:
    return f"https://127.0.0.1:{world.server.tls_port}"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_tablet_that_trusts_the_box_is_answered_by_name_and_by_address(world: World, version: ssl.TLSVersion) -> None:
    context = trusting(world, minimum_version=version, maximum_version=version)
    for host in ("127.0.0.1", "localhost"):
        with (
            socket.create_connection(("127.0.0.1", world.server.tls_port)) as bare,
            context.wrap_socket(bare, server_hostname=host) as link,
        ):
            cipher = link.cipher()
            assert cipher is not None
            assert cipher[0].startswith("TLS_" if version is ssl.TLSVersion.TLSv1_3 else "ECDHE-")
            assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]
    with httpx.Client(verify=context) as client:
        assert client.get(f"{secure(world)}/sign-in").status_code == 200


def test_who_trusts_only_the_world_s_authorities_does_not_trust_the_box(world: World) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{secure(world)}/sign-in")


def test_the_box_is_not_trusted_under_another_s_name(world: World) -> None:
    with (
        socket.create_connection(("127.0.0.1", world.server.tls_port)) as bare,
        pytest.raises(ssl.SSLCertVerificationError, match="mismatch"),
    ):
        trusting(world).wrap_socket(bare, server_hostname="bank.example")


def test_tls_1_1_and_suites_without_forward_secrecy_are_refused(world: World) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    weak = trusting(world, maximum_version=ssl.TLSVersion.TLSv1_2)
    weak.set_ciphers("ECDHE-ECDSA-AES128-SHA256:AES128-GCM-SHA256:AES128-SHA")
    for context in (old, weak):
        with (
            socket.create_connection(("127.0.0.1", world.server.tls_port)) as bare,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(bare, server_hostname="localhost")


def test_the_session_s_cookie_never_goes_in_clear_once_it_was_given_over_tls(world: World) -> None:
    person = world.store.people.all()[0].id
    with httpx.Client(verify=trusting(world), headers={"origin": secure(world)}) as client:
        answer = client.post(f"{secure(world)}/sign-in", data={"person": person, "pin": PIN})
        chosen = client.post(f"{secure(world)}/language", data={"language": "fr"})
    assert answer.status_code == chosen.status_code == 303
    for one in (answer, chosen):
        cookie = next(iter(SimpleCookie(one.headers["set-cookie"]).values()))
        assert cookie["secure"]
        assert cookie["httponly"]
        assert cookie["samesite"].lower() == "strict"


def test_a_page_in_clear_can_t_write_over_tls(world: World) -> None:
    with httpx.Client(verify=trusting(world), headers={"origin": world.url}) as client:
        assert client.post(f"{secure(world)}/language", data={"language": "fr"}).status_code == 403


def test_the_box_s_own_screen_is_served_in_clear_and_shows_the_fingerprint(world: World) -> None:
    pem = authority_pem(world.store.folder)
    assert pem is not None
    page = world.client.get("/certificate")
    shown = re.sub(r"\s", "", re.search(r"(?s)<pre[^>]*><code>(.*?)</code>", page.text)[1])  # type: ignore[index]
    assert shown.replace(":", "") == fingerprint(pem).replace(":", "")
    assert world.client.get("/bedside-ca.crt").content == pem
    assert "/certificate" in world.client.get("/sign-in").text


def away(world: World, method: str, path: str, **headers: str) -> httpx.Response:
    """What somebody else than this box gets in clear."""
    door = world.server._app
    pem = authority_pem(world.store.folder)
    plain = PlainDoor(door, {"bedside.local"}, lambda: 8443, lambda: pem)
    transport = httpx.ASGITransport(plain, client=("10.0.0.7", 40000))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.1:8080") as client:
            return await client.request(
                method, path, headers=headers, content=b"pin=480615" if method == "POST" else None
            )

    return asyncio.run(ask())


def test_others_get_in_clear_only_what_to_trust_and_where_to_go(world: World) -> None:
    page = away(world, "GET", "/patients")
    assert (page.status_code, page.headers["location"]) == (307, "https://10.0.0.1:8443/patients")
    write = away(world, "POST", "/sign-in")
    assert (write.status_code, write.headers["location"]) == (303, "https://10.0.0.1:8443/")
    assert not write.content
    assert not page.content
    named = away(world, "GET", "/", host="bedside.local:8080")
    assert named.headers["location"] == "https://bedside.local:8443/"
    sixth = away(world, "GET", "/", host="[fe80::1]:8080")
    assert sixth.headers["location"] == "https://[fe80::1]:8443/"
    assert away(world, "GET", "/bedside-ca.crt").content == authority_pem(world.store.folder)
    assert away(world, "GET", "/", host="elsewhere.example").status_code == 421


def test_only_both_ends_on_the_loopback_count_as_the_box_s_own_screen() -> None:
    here = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}
    assert is_from_here(here)
    for end in ("client", "server"):
        for other in (("10.0.0.7", 1), None, ("", 1), ("localhost", 1)):
            assert not is_from_here({**here, end: other})


def test_an_authority_that_is_stolen_can_t_speak_for_other_names(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path, KEY, RealFiles(), "site-1/box-1")
    own.renew(["localhost", "127.0.0.1"], NOW)
    root, key = own._authority([])
    forged = certificate._server([x509.DNSName("bank.example")], key, root, key, NOW)
    store = verification.Store([root])
    verifier = verification.PolicyBuilder().store(store).time(NOW)
    with pytest.raises(verification.VerificationError):
        verifier.build_server_verifier(x509.DNSName("bank.example")).verify(forged, [])
    context = ssl.create_default_context(cadata=(tmp_path / FOLDER / "ca.pem").read_text())
    assert not accepted(context, forged, key, "bank.example", tmp_path)


def accepted(
    context: ssl.SSLContext, made: x509.Certificate, key: EllipticCurvePrivateKey, name: str, folder: Path
) -> bool:
    """Whether OpenSSL's client takes this certificate for ``name``, in memory."""
    file = folder / "shown.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(made.public_bytes(Encoding.PEM) + private)
    served = certificate.tls_context()
    served.load_cert_chain(file)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(down, up, server_hostname=name)
    server = served.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True


def test_a_certificate_is_made_anew_before_it_ends_and_for_a_new_address_only(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path, KEY, RealFiles(), "site-1/box-1")
    names = ["localhost", "bedside.local", "192.168.4.1"]
    assert own.renew(names, NOW)
    root, first = (tmp_path / FOLDER / "ca.pem").read_bytes(), own.server.read_bytes()
    assert not own.renew(names, NOW + dt.timedelta(days=certificate.SERVER_DAYS - certificate.RENEW_DAYS - 1))
    assert not own.renew(names[:2], NOW), "an address that went away is no reason"
    assert own.renew([*names, "10.1.2.3"], NOW)
    assert own.renew(
        [*names, "10.1.2.3"], NOW + dt.timedelta(days=certificate.SERVER_DAYS - certificate.RENEW_DAYS + 1)
    )
    assert own.server.read_bytes() != first
    assert (tmp_path / FOLDER / "ca.pem").read_bytes() == root, "tablets trust it on"


def test_a_wrong_clock_costs_no_trust(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path, KEY, RealFiles(), "site-1/box-1")
    own.renew(["localhost"], dt.datetime(1970, 1, 3, tzinfo=dt.timezone.utc))
    root = (tmp_path / FOLDER / "ca.pem").read_bytes()
    for year in (2026, 1980, 2090, 2026):
        assert own.renew(["localhost"], dt.datetime(year, 1, 1, tzinfo=dt.timezone.utc)), year
    assert (tmp_path / FOLDER / "ca.pem").read_bytes() == root
    assert x509.load_pem_x509_certificate(root).not_valid_before_utc < NOW


def test_no_key_lies_on_the_disk_in_clear(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path, KEY, RealFiles(), "site-1/box-1")
    own.renew(["localhost"], NOW)
    for path in (tmp_path / FOLDER).iterdir():
        data = path.read_bytes()
        assert b"BEGIN PRIVATE" not in data, path
        assert b"BEGIN EC PRIVATE" not in data, path
        assert path.stat().st_mode & 0o077 == 0, path
    with pytest.raises(ssl.SSLError):
        certificate.tls_context().load_cert_chain(own.server, password=lambda: "wrong")
    damaged = (tmp_path / FOLDER / "server.pem").read_bytes()[:200]
    (tmp_path / FOLDER / "server.pem").write_bytes(damaged)
    assert own.renew(["localhost"], NOW), "what can't be read is made anew"


def test_a_renewed_certificate_is_shown_without_a_restart(world: World) -> None:
    def serial() -> int:
        pem = ssl.get_server_certificate(("127.0.0.1", world.server.tls_port))
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    before = serial()
    (world.store.folder / FOLDER / "server.pem").unlink()
    world.server.tend()
    assert serial() == before, "looked at now and then, not at each turn"
    world.server._tended = float("-inf")
    world.server.tend()
    assert serial() != before
    with httpx.Client(verify=trusting(world)) as client:
        assert client.get(f"{secure(world)}/sign-in").status_code == 200


def test_a_clinic_s_own_certificate_is_shown_and_a_missing_one_named(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path, KEY, RealFiles(), "clinic")
    own.renew(["localhost", "127.0.0.1"], dt.datetime.now(dt.timezone.utc))
    certificate_file, key_file = tmp_path / "clinic.pem", tmp_path / "clinic.key"
    shutil.copy(own.server, certificate_file)
    key = load_pem_private_key(own.server.read_bytes(), own.password.encode())
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    given = {"tls": "files", "tls_port": 0, "certificate_file": str(certificate_file), "key_file": str(key_file)}
    world = World(tmp_path / "box", **given)
    try:
        context = ssl.create_default_context(cafile=str(tmp_path / FOLDER / "ca.pem"))
        with httpx.Client(verify=context) as client:
            assert client.get(f"{secure(world)}/").status_code == 200
            assert client.get(f"{secure(world)}/bedside-ca.crt").status_code == 404
    finally:
        world.close()
    key_file.unlink()
    with pytest.raises(ConsoleError, match=r"console\.key_file"):
        World(tmp_path / "other", **given)


def test_the_command_prints_the_fingerprint_and_writes_the_certificate(world: World, tmp_path: Path) -> None:
    file, out = tmp_path / "bedside.toml", tmp_path / "ca.pem"
    file.write_text(f'[storage]\nstate = "{world.store.folder}"\n')
    result = CliRunner().invoke(app, ["console-certificate", "--config", str(file), "--out", str(out)])
    pem = authority_pem(world.store.folder)
    assert pem is not None
    assert (result.exit_code, result.output.strip()) == (0, fingerprint(pem))
    assert out.read_bytes() == pem
    file.write_text(f'[storage]\nstate = "{tmp_path}"\n')
    assert CliRunner().invoke(app, ["console-certificate", "--config", str(file)]).exit_code == 1


def test_the_doctor_tells_a_console_in_clear_and_how_long_a_certificate_holds(world: World, tmp_path: Path) -> None:
    config = parse(f'[storage]\nstate = "{tmp_path}"\n[console]\ntls = "own"')
    console = msgspec.structs.replace(config.console, port=world.server.port, tls_port=world.server.tls_port)
    seen = check_console(msgspec.structs.replace(config, console=console), running=True)
    assert seen.ok
    assert "with TLS; its certificate holds until" in seen.found
    dead = msgspec.structs.replace(console, tls_port=world.server.port)
    assert check_console(msgspec.structs.replace(config, console=dead), running=True).ok is False
    bare = msgspec.structs.replace(console, tls="off", address="0.0.0.0", plain_http=True)  # noqa: S104 - only asked
    told = check_console(msgspec.structs.replace(config, console=bare), running=True)
    assert (told.ok, "in clear" in told.found, "tls" in told.remedy) == (False, True, True)


def test_the_box_s_addresses_are_those_of_the_kernel(tmp_path: Path) -> None:
    assert "127.0.0.1" in box_addresses()
    assert box_addresses(tmp_path / "none") == []


OTHERS = [one for one in box_addresses() if not one.startswith("127.")]


@pytest.mark.skipif(not OTHERS, reason="this machine has no address but loopback")
@pytest.mark.parametrize("listening", ["0.0.0.0", *OTHERS[:1]])  # noqa: S104 - what a clinic sets
def test_a_box_on_the_network_serves_tls_there_and_clear_text_to_itself(tmp_path: Path, listening: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = World(tmp_path, address=listening, port=port, tls="own", tls_port=0)
    try:
        assert world.client.get("/").status_code == 200, "the kiosk"
        outside = f"http://{OTHERS[0]}:{port}"
        assert httpx.get(f"{outside}/bedside-ca.crt").content == authority_pem(world.store.folder)
        sent = httpx.get(f"{outside}/patients")
        assert sent.headers["location"] == f"https://{OTHERS[0]}:{world.server.tls_port}/patients"
        assert not sent.content
        with httpx.Client(verify=trusting(world)) as tablet:
            page = tablet.get(f"https://{OTHERS[0]}:{world.server.tls_port}/")
        assert page.status_code == 200
    finally:
        world.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((OTHERS[0], port), timeout=2)
