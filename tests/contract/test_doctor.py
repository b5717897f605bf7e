"""The doctor against real brokers, ports, journals and keys: what fails is named, and what to do is said."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.capture.dicom import DicomDoor
from appliance.config import Config, parse
from appliance.health import check_box, check_link, check_models, telemetry
from appliance.health.check import Check
from appliance.health.doctor import run_checks
from appliance.store.schema import MIGRATIONS
from tests import boxes, networks
from tests.servers import Mosquitto, free_port, running_mosquitto
from tests.simulated_intake import SimulatedIntake
from tests.strict_certificates import strict


@pytest.fixture
def config(tmp_path: Path) -> Config:
    text = f"""
        [storage]
        state = "{tmp_path / "state"}"
        refuse_below = 16
        reserve = 4
        [dicom]
        address = "127.0.0.1"
        port = {free_port()}
        [console]
        port = {free_port()}
        [link]
        port = {free_port()}
    """
    return parse(text)


def with_link(config: Config, **fields: Any) -> Config:
    return msgspec.structs.replace(config, link=msgspec.structs.replace(config.link, **fields))


def with_dicom(config: Config, **fields: Any) -> Config:
    return msgspec.structs.replace(config, dicom=msgspec.structs.replace(config.dicom, **fields))


@pytest.fixture
def state(config: Config) -> Path:
    store = boxes.open_store(config.state)
    boxes.keep(store, b"a film")
    store.close()
    return config.state


def fails(check: Check, found: str, remedy: str) -> None:
    assert check.ok is False, check
    assert found in check.found
    assert remedy in check.remedy


class TestStateFolder:
    def test_a_good_one_is_ours_writable_and_has_room(self, config: Config, state: Path) -> None:
        check = check_box.check_state(config)
        assert check.ok, check
        assert "MB free" in check.found
        assert not [path for path in state.iterdir() if "doctor" in path.name], "it leaves nothing behind"

    def test_too_little_room_is_a_failure_that_says_captures_are_refused(self, config: Config, state: Path) -> None:
        large = msgspec.structs.replace(config.storage, refuse_below=1_000_000)
        fails(
            check_box.check_state(msgspec.structs.replace(config, storage=large)),
            "captures are refused",
            "free space",
        )

    def test_one_that_others_can_open_is_a_failure(self, config: Config, state: Path) -> None:
        state.chmod(0o755)
        fails(check_box.check_state(config), "open to other users (mode 755)", f"chmod 700 {state}")

    def test_one_of_another_user_is_a_failure(
        self, config: Config, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
        fails(check_box.check_state(config), "belongs to", "sudo -u")

    def test_one_that_is_not_there_yet_is_no_failure_where_it_can_be_made(self, config: Config) -> None:
        assert check_box.check_state(config).ok is None
        nowhere = msgspec.structs.replace(config.storage, state="/proc/bedside/state")
        if os.geteuid():
            fails(
                check_box.check_state(msgspec.structs.replace(config, storage=nowhere)),
                "can't be written",
                "install -d",
            )


class TestJournal:
    def test_a_good_one_is_whole(self, config: Config, state: Path) -> None:
        before = sorted(path.name for path in state.iterdir())
        check = check_box.check_journal(config)
        assert check.ok, check
        assert check.found == f"whole, schema {len(MIGRATIONS)}, 1 captures"
        assert {"journal.sqlite"} <= set(before)

    def test_one_in_use_by_a_running_box_can_be_examined(self, config: Config) -> None:
        store = boxes.open_store(config.state)
        try:
            boxes.keep(store, b"a film")
            assert check_box.check_journal(config).ok
            assert check_box.is_running(config.state)
        finally:
            store.close()
        assert not check_box.is_running(config.state)

    def test_damage_is_found(self, config: Config, state: Path) -> None:
        path = state / "journal.sqlite"
        data = bytearray(path.read_bytes())
        data[4096 * 3 :] = os.urandom(len(data) - 4096 * 3)
        path.write_bytes(data)
        fails(check_box.check_journal(config), "", "restore the last backup")

    def test_a_file_that_is_no_journal_is_found(self, config: Config, state: Path) -> None:
        (state / "journal.sqlite").write_bytes(b"hello" * 1000)
        fails(check_box.check_journal(config), "not a database", "restore the last backup")

    def test_one_of_a_newer_program_is_refused(self, config: Config, state: Path) -> None:
        with sqlite3.connect(state / "journal.sqlite") as connection:
            connection.execute("PRAGMA user_version=99")
        connection.close()
        fails(check_box.check_journal(config), "newer than this program's", "install the newer program")


class TestKey:
    def test_the_right_one_fits_the_journal(self, config: Config, state: Path) -> None:
        assert check_box.check_key(config).found == "there, closed to others, fits the journal"

    def test_another_boxs_key_is_found_and_none_is_shown(self, config: Config, state: Path) -> None:
        (state / "box.key").write_bytes(b"K" * 32)
        check = check_box.check_key(config)
        fails(check, "sealed with another key", "backup")
        assert "KKKK" not in check.found + check.remedy

    def test_a_lost_key_is_never_made_anew(self, config: Config, state: Path) -> None:
        (state / "box.key").unlink()
        fails(check_box.check_key(config), "is gone", "never make a new one")
        assert not (state / "box.key").exists()

    def test_a_readable_one_and_a_short_one_are_failures(self, config: Config, state: Path) -> None:
        (state / "box.key").chmod(0o644)
        fails(check_box.check_key(config), "read by others (mode 644)", "chmod 600")
        (state / "box.key").write_bytes(b"short")
        fails(check_box.check_key(config), "32 bytes", "backup")


def _certificate(
    name: str,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    *,
    days: tuple[int, int] = (-1, 30),
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
    )
    builder = strict(builder, key, issuer[1] if issuer else key, ca=issuer is None)
    if issuer:
        names: list[x509.GeneralName] = [x509.DNSName("localhost")]
        if name != "other":
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign((issuer or (None, key))[1], hashes.SHA256()), key


class Authority:
    """A small CA that writes PEM files into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = _certificate("authority")
        self.ca = self.write("ca", self.root)[0]

    def write(self, name: str, pair: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(pair[0].public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        key.write_bytes(pair[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        return certificate, key

    def issue(self, name: str, days: tuple[int, int] = (-1, 30)) -> tuple[Path, Path]:
        return self.write(name, _certificate(name, self.root, days=days))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "pki"
    folder.mkdir()
    return Authority(folder)


def tls_broker(authority: Authority, days: tuple[int, int] = (-1, 30), name: str = "broker", *more: str) -> Any:
    certificate, key = authority.issue(name, days)
    return running_mosquitto(f"cafile {authority.ca}", f"certfile {certificate}", f"keyfile {key}", *more)


def over_tls(config: Config, broker: Mosquitto, authority: Authority, **fields: Any) -> Config:
    return with_link(config, **{"port": broker.port, "tls": True, "ca_file": str(authority.ca), **fields})


class TestBroker:
    def test_a_broker_that_takes_us_is_well_and_keeps_no_session(self, config: Config, mosquitto: Mosquitto) -> None:
        check = check_link.check_broker(with_link(config, port=mosquitto.port))
        assert check.ok, check
        assert "not encrypted" in check.found

    def test_nobody_listening_is_told_from_a_name_nobody_knows(self, config: Config) -> None:
        fails(check_link.check_broker(config), "refused: nothing listens there", "systemctl start mosquitto")
        unknown = check_link.check_broker(with_link(config, host="broker.invalid"))
        fails(unknown, "the name is not known", "DNS")

    def test_a_service_that_is_no_broker_is_told(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(check_link, "_SECONDS", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            check = check_link.check_broker(with_link(config, port=silent.getsockname()[1]))
        fails(check, "does not answer MQTT", "link.port")

    def test_a_wrong_password_is_told(self, config: Config, tmp_path: Path) -> None:
        users = tmp_path / "users"
        users.write_text("")
        users.chmod(0o700)
        secret = tmp_path / "password"
        secret.write_text("guess")
        with running_mosquitto("allow_anonymous false", f"password_file {users}") as broker:
            check = check_link.check_broker(
                with_link(config, port=broker.port, username="box", password_file=str(secret))
            )
        fails(check, "refuses", "link.password_file")
        assert "guess" not in check.found + check.remedy

    def test_tls_with_the_hubs_authority_is_well(self, config: Config, authority: Authority) -> None:
        with tls_broker(authority) as broker:
            check = check_link.check_broker(over_tls(config, broker, authority))
        assert check.ok, check
        assert "over TLS" in check.found

    def test_an_expired_and_a_future_certificate_point_to_the_clock(
        self, config: Config, authority: Authority, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for days, said in (((-30, -1), "has expired"), ((1, 30), "is not valid yet")):
            with tls_broker(authority, days) as broker:
                monkeypatch.setattr(check_link, "kernel_synchronised", lambda: 0.01)
                fails(check_link.check_broker(over_tls(config, broker, authority)), said, "set the clock")
                monkeypatch.setattr(check_link, "kernel_synchronised", lambda: None)
                doubtful = check_link.check_broker(over_tls(config, broker, authority))
                assert doubtful.ok is None, "a clock that nobody keeps proves nothing about a certificate"
                assert "best time it knows" in doubtful.found

    def test_another_authority_and_another_name_are_told_apart(
        self, config: Config, authority: Authority, tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        other = Authority(tmp_path / "other")
        with tls_broker(authority) as broker:
            fails(
                check_link.check_broker(over_tls(config, broker, authority, ca_file=str(other.ca))),
                "ends in an unknown authority",
                "put the hub's CA certificate into link.ca_file",
            )
        with tls_broker(authority, name="other") as broker:
            fails(check_link.check_broker(over_tls(config, broker, authority)), "for another address", "link.host")

    def test_a_broker_that_wants_our_certificate_is_told(self, config: Config, authority: Authority) -> None:
        with tls_broker(authority, (-1, 30), "broker", "require_certificate true") as broker:
            without = over_tls(config, broker, authority)
            fails(check_link.check_broker(without), "this device's certificate", "link.certificate_file")
            certificate, key = authority.issue("box-1")
            check = check_link.check_broker(with_link(without, certificate_file=str(certificate), key_file=str(key)))
            assert check.ok, check

    def test_tls_towards_a_port_without_it_is_told(
        self, config: Config, authority: Authority, mosquitto: Mosquitto
    ) -> None:
        fails(check_link.check_broker(over_tls(config, mosquitto, authority)), "no TLS", "8883")

    def test_a_certificate_file_that_is_not_there_is_named(
        self, config: Config, authority: Authority, mosquitto: Mosquitto
    ) -> None:
        check = check_link.check_broker(over_tls(config, mosquitto, authority, ca_file="/nowhere/ca.pem"))
        fails(check, "link.ca_file /nowhere/ca.pem can't be read", "copy it")

    def test_a_link_that_is_not_used_is_no_failure(self, config: Config) -> None:
        assert check_link.check_broker(with_link(config, enabled=False)).ok is None


@pytest.fixture
def door(config: Config) -> Iterator[DicomDoor]:
    one = DicomDoor(config.dicom, SimulatedIntake())  # type: ignore[arg-type]  # the intake's interface
    one.start()
    yield one
    one.stop()


class TestPorts:
    def test_a_running_box_answers_the_echo(self, config: Config, door: DicomDoor) -> None:
        check = check_link.check_dicom(config, running=True)
        assert check.ok, check
        assert "C-ECHO" in check.found

    def test_a_box_that_should_run_and_does_not_answer_is_a_failure(self, config: Config) -> None:
        fails(check_link.check_dicom(config, running=True), "does not answer", "port is in use")

    def test_a_door_that_rejects_this_machine_is_not_called_broken(self, config: Config) -> None:
        closed = with_dicom(config, allowed_addresses=("192.0.2.0/24",))
        one = DicomDoor(closed.dicom, SimulatedIntake())  # type: ignore[arg-type]
        one.start()
        try:
            assert check_link.check_dicom(closed, running=True).ok is not True
        finally:
            one.stop()

    def test_a_port_taken_by_another_program_is_found_before_the_box_starts(self, config: Config) -> None:
        assert check_link.check_dicom(config, running=False).ok
        with socket.create_server(("127.0.0.1", config.dicom.port)):
            fails(check_link.check_dicom(config, running=False), "taken by another program", "ss -ltnp")

    def test_the_consoles_port_is_examined_the_same_way(self, config: Config) -> None:
        assert check_link.check_console(config, running=False).ok
        fails(check_link.check_console(config, running=True), "refused", "log")
        with socket.create_server(("127.0.0.1", config.console.port)):
            assert check_link.check_console(config, running=True).ok
            fails(check_link.check_console(config, running=False), "taken", "console.port")


class TestAudioEnginesModels:
    def test_missing_portaudio_is_explained_with_the_line_to_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Missing:
            def find_spec(self, name: str, *_: object) -> None:
                if name == "sounddevice":
                    raise OSError("PortAudio library not found")

        monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
        fails(check_models.check_audio(), "PortAudio is missing", "apt-get install libportaudio2")

    def test_an_engine_that_was_asked_for_and_is_not_there_is_a_failure(self, config: Config) -> None:
        assert check_models.check_engines(config).ok
        models = msgspec.structs.replace(config.models, engine="tensorrt-ort")
        check = check_models.check_engines(msgspec.structs.replace(config, models=models))
        fails(check, "has no TensorrtExecutionProvider", "models.engine")

    def test_bundles_are_really_loaded_and_checked(self, config: Config, tmp_path: Path) -> None:
        folder = tmp_path / "models"
        folder.mkdir()
        models = msgspec.structs.replace(config.models, directory=str(folder), require_signature=False)
        mine = msgspec.structs.replace(config, models=models)
        fails(check_models.check_models(mine), "no model bundle", "bedside models install")
        _, int8 = networks.quantised("resnet", tmp_path)
        networks.write_bundle(folder / "made-up", int8)
        check = check_models.check_models(mine)
        assert check.ok, check
        assert check.found == "golden check passed: made-up 1.0.0 (CPUExecutionProvider)"
        model = next((folder / "made-up").glob("*.onnx"))
        model.write_bytes(model.read_bytes()[:-1] + b"!")
        assert check_models.check_models(mine).ok is False


class TestClockAndMachine:
    def test_a_box_that_woke_in_1970_is_told_what_it_lacks(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(check_box.time, "time", lambda: 120.0)  # type: ignore[attr-defined]
        check = check_box.check_clock(tmp_path)
        fails(check, "1970-01-01", "RTC battery")
        assert "no hardware clock" in check.found

    def test_a_disciplined_clock_is_well_and_a_free_running_one_is_not_a_failure(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        rtc = tmp_path / "sys/class/rtc/rtc0"
        rtc.mkdir(parents=True)
        (rtc / "since_epoch").write_text("200\n")
        monkeypatch.setattr(check_box, "kernel_synchronised", lambda: 0.012)
        check = check_box.check_clock(tmp_path)
        assert check.ok
        assert "0.012 s" in check.found
        assert "lost its time" in check.found
        monkeypatch.setattr(check_box, "kernel_synchronised", lambda: None)
        assert check_box.check_clock(tmp_path).ok is None

    def test_heat_and_want_of_memory_are_told(self, config: Config, tmp_path: Path) -> None:
        zones = tmp_path / "sys/class/thermal"
        for number, value in enumerate(("-256000", "91500", "40000", "broken")):
            (zones / f"thermal_zone{number}").mkdir(parents=True)
            (zones / f"thermal_zone{number}/temp").write_text(value + "\n")
        fails(check_box.check_temperature(config, tmp_path), "92 °C", "out of the sun and clean")
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/meminfo").write_text("MemTotal:  8000000 kB\nMemAvailable:  100000 kB\n")
        fails(check_box.check_memory(config, tmp_path), "97 of 7,812 MB", "zram")

    def test_telemetry_leaves_out_what_the_box_has_no_sensor_for(self, tmp_path: Path) -> None:
        values = telemetry.message(telemetry.measure(tmp_path, tmp_path), {"captures": 3}).values
        assert set(values) == {"disk_total", "disk_free", "captures"}
        here = telemetry.message(telemetry.measure(tmp_path), {}).values
        assert here["memory_total"] > here["memory_available"] > 0
        assert here["uptime_s"] > 0


def test_every_point_that_fails_says_what_to_do(config: Config, tmp_path: Path) -> None:
    checks = run_checks(config)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names) == 16
    assert {"broker"} <= {check.name for check in checks if check.ok is False}
    assert all(check.remedy for check in checks if check.ok is False)
    assert not config.state.exists(), "a doctor changes nothing"


def test_a_point_that_cannot_be_examined_does_not_hide_the_others(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Config) -> Check:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(check_box, "check_journal", broken)
    checks = {check.name: check for check in run_checks(config)}
    fails(checks["journal"], "ZeroDivisionError", "report it")
    assert len(checks) == 16


def test_the_doctor_leaves_no_threads_behind(config: Config, mosquitto: Mosquitto) -> None:
    before = threading.active_count()
    check_link.check_broker(with_link(config, port=mosquitto.port))
    assert threading.active_count() == before
