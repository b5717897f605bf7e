"""One site file sets a box's system: the same again and again, shown before it is done, held against what is."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from appliance.cli import app
from appliance.provision import site as sites
from appliance.provision.apply import _do_all, apply
from appliance.provision.audit import audit
from appliance.provision.plan import Action, firmware, manifest, units, wanted
from appliance.provision.site import ConfigError, load, parse
from tests.provisioned import SITE, provisioned, site

RUN = CliRunner()


def test_the_example_is_valid_and_holds_every_default() -> None:
    assert parse(sites.example()) == sites.Site()
    shown = RUN.invoke(app, ["provision", "--example"])
    assert shown.output == sites.example()


def test_applying_twice_changes_nothing_the_second_time(tmp_path: Path) -> None:
    root = provisioned(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    said: list[str] = []
    assert apply(wanted(load(tmp_path / "site.toml"), tmp_path, root), root, said.append) == (0, False)
    assert not said
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before


def test_a_dry_run_shows_the_difference_changes_nothing_and_tells_no_secret(tmp_path: Path) -> None:
    path = site(tmp_path)
    shown = RUN.invoke(app, ["provision", str(path), "--dry-run", "--root", str(tmp_path / "root")])
    assert shown.exit_code == 0, shown.output
    assert '+define uplinks = { "wwan0", "wwan1", "ppp0", "usb0", "eth1" }' in shown.output
    assert "-      APPEND ${cbootargs} root=PARTUUID=1 panic=0 rw rootwait" in shown.output
    assert "a long enough one" not in shown.output
    assert "1234" not in shown.output
    assert not (tmp_path / "root/etc/nftables.d").exists()


def test_what_was_changed_by_hand_is_found_and_set_back(tmp_path: Path) -> None:
    root = provisioned(tmp_path)
    command = ["provision", str(tmp_path / "site.toml"), "--root", str(root)]
    assert RUN.invoke(app, [*command, "--check"]).exit_code == 0
    (root / "etc/nftables.d/bedside.nft").write_text("table inet open {}\n")
    (root / "etc/NetworkManager/system-connections/bedside-tablets.nmconnection").chmod(0o644)
    (root / "etc/sysctl.d/70-bedside.conf").unlink()
    checked = RUN.invoke(app, [*command, "--check"])
    assert checked.exit_code == 1
    for words in ("bedside.nft: content", "bedside-tablets.nmconnection: mode", "70-bedside.conf: missing"):
        assert words in checked.output
    assert "3 of" in RUN.invoke(app, command).output
    assert RUN.invoke(app, [*command, "--check"]).exit_code == 0
    secret = root / "etc/NetworkManager/system-connections/bedside-tablets.nmconnection"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_site_without_extras_gets_no_secrets_no_slots_and_no_screen(tmp_path: Path) -> None:
    root = provisioned(tmp_path, "")
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert "etc/systemd/system/bedside.service" in there
    for name in ("rauc", "crypttab", "kiosk", "system-connections", "overlayroot", "nvpmodel", "power"):
        assert not [path for path in there if name in path], name
    assert 'iifname "wlan0"' not in (root / "etc/nftables.d/bedside.nft").read_text()


def test_the_programs_configuration_is_checked_before_it_is_put_into_place(tmp_path: Path) -> None:
    path = site(tmp_path, SITE.replace("[box]", '[box]\nbedside = "bedside.toml"'))
    (tmp_path / "bedside.toml").write_text("[device]\nsite = 'Not A Name'\n")
    refused = RUN.invoke(app, ["provision", str(path), "--root", str(tmp_path / "root")])
    assert refused.exit_code == 1
    assert "device.site" in refused.output
    (tmp_path / "bedside.toml").write_text('[device]\nsite = "aba"\n')
    assert RUN.invoke(app, ["provision", str(path), "--root", str(tmp_path / "root")]).exit_code == 0
    assert (tmp_path / "root/etc/bedside/bedside.toml").read_text() == '[device]\nsite = "aba"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[wifi]\naddress = "192.168.77.1"\nssid = "x"\n', "wifi.address"),
        ('[wifi]\naddress = "nonsense"\n', "wifi.address"),
        ('[network]\nuplinks = ["wlan0"]\n[wifi]\nssid = "x"\n', "uplink"),
        ('[network]\nuplinks = ["eth0\\"; flush ruleset"]\n', "network.uplinks"),
        ("[disk]\nslots = true\n", "disk.slots"),
        ("[disk]\nslots = true\nread_only_root = true\n", "disk.slots"),
        ("[power]\nmode = 99\n", "power.mode"),
        ('[box]\nplatform = "windows"\n', "box.platform"),
        ("[boks]\n", "known here: box"),
        ("[network]\nclinic = []\n", r"network\.clinic: empty"),
        ('[network]\nclinic = ["999.1.1.0/24"]\n', r"network\.clinic"),
        ('[network]\nclinic = ["10.0.0.0/64"]\n', r"network\.clinic"),
        ('[network]\nservers = ["10.0.0.5:70000"]\n', "a port is from"),
        ('[network]\nservers = ["10.0.0:104"]\n', r"network\.servers"),
    ],
)
def test_a_wrong_site_file_names_the_field(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(text)


@pytest.mark.parametrize("password", ["short", "x" * 64, "with\nline", "ünïcode is not ascii"])
def test_a_password_that_is_none_is_refused(tmp_path: Path, password: str) -> None:
    path = site(tmp_path)
    (tmp_path / "wifi.password").write_text(password)
    with pytest.raises(ConfigError, match=r"wifi\.password"):
        wanted(load(path), tmp_path, tmp_path / "root")


@given(ssid=st.text(max_size=32), apn=st.text(max_size=20), name=st.text(max_size=15))
def test_no_text_of_a_site_file_becomes_a_setting_of_its_own(ssid: str, apn: str, name: str) -> None:
    import msgspec

    fields = {"wifi": {"ssid": ssid}, "modem": {"apn": apn}, "network": {"uplinks": [name]}}
    try:
        made = msgspec.convert(fields, sites.Site)
    except msgspec.ValidationError:
        return
    for value in (made.wifi.ssid, made.modem.apn, *made.network.uplinks):
        assert not set(value) & set('\n\r"\\')


def test_every_source_of_the_manifest_exists_and_every_file_is_in_it() -> None:
    rows = manifest()
    sources = {row.source for row in rows.file if row.source}
    for source in sources:
        folder = units() if source.startswith("systemd:") else firmware()
        assert (folder / source.removeprefix("systemd:")).exists(), source
    here = {str(path.relative_to(firmware())) for path in firmware().rglob("*") if path.is_file()}
    used = {source for source in sources if not source.startswith("systemd:")}
    assert {name for name in here - used if not name.endswith("README.md")} == {"manifest.toml"}
    assert {name for row in rows.file for name in row.then} | {"bedside"} == set(rows.then)
    box = {path.name for path in units().glob("bedside*") if "hub" not in path.name}
    assert box <= {source.rpartition("/")[2].removeprefix("systemd:") for source in sources}


def test_the_running_box_is_held_against_the_site_file(tmp_path: Path) -> None:
    path = site(tmp_path, "")
    answers = {"systemctl": "disabled\n", "nft": "chain input { policy accept; }"}

    def run(*command: str) -> str | None:
        return answers.get(command[0])

    facts = {fact.what: fact for fact in audit(load(path), [], Path("/"), run)}
    assert (facts["firewall"].verdict, facts["bedside.service"].verdict) == ("differs", "differs")
    assert facts["bedside.service"].remedy == "systemctl enable --now bedside.service"
    answers = {"systemctl": "enabled\n", "nft": "chain input { policy drop; }"}
    facts = {fact.what: fact for fact in audit(load(path), [], Path("/"), run)}
    assert (facts["firewall"].verdict, facts["bedside.service"].verdict) == ("ok", "ok")
    answers = {}
    facts = {fact.what: fact for fact in audit(load(path), [], Path("/"), run)}
    assert facts["firewall"].verdict == "unknown", "what can't be found out is never ok"
    assert [name for name in facts if name.startswith("sysctl ")]


def test_a_command_that_fails_keeps_no_other_from_running_and_is_named() -> None:
    said: list[str] = []
    pending = {
        "first": Action(command=("sh", "-c", "echo no such table >&2; exit 1")),
        "second": Action(command=("no-such-command-here",)),
        "third": Action(command=("true",)),
    }
    with pytest.raises(ConfigError, match=r"first: .*no such table.*second: .*could not run.*by hand"):
        _do_all(pending, said.append)
    assert said[-1] == "run true"


def test_what_can_not_be_read_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "root/etc/chrony/chrony.conf").mkdir(parents=True)
    done = RUN.invoke(app, ["provision", str(site(tmp_path, "")), "--dry-run", "--root", str(tmp_path / "root")])
    assert done.exit_code == 1
    assert "can't be read" in done.output
    assert "Traceback" not in done.output


def test_the_worklist_and_the_hubs_page_are_called_only_where_the_site_names_them(tmp_path: Path) -> None:
    for number, (text, there) in enumerate((("", False), ('[network]\nservers = ["192.168.50.9:104"]\n', True))):
        folder = tmp_path / str(number)
        folder.mkdir()
        changes = wanted(load(site(folder, text)), folder, folder / "root")
        (firewall,) = [one.after for one in changes if one.target.endswith("bedside.nft")]
        assert ("ip daddr 192.168.50.9 tcp dport 104 accept" in firewall) is there


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    path = site(tmp_path, "")
    (tmp_path / "root/etc/udev").write_text("a file where a folder must be")
    done = RUN.invoke(app, ["provision", str(path), "--root", str(tmp_path / "root")])
    assert done.exit_code == 1
    assert "can't be written" in done.output
