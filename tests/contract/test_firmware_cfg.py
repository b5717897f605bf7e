"""Each file of firmware_cfg is accepted by the tool that will read it, and the firewall does what its README says."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.provisioned import provisioned

FOLDER = Path(__file__).parents[2] / "firmware_cfg"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a site with everything gets, in a folder as root."""
    return provisioned(tmp_path_factory.mktemp("site"))


def tool(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install {package})")
    return found


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(one) for one in command], check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("folder", sorted(path.name for path in FOLDER.iterdir() if path.is_dir()))
def test_every_concern_says_why_and_stands_in_the_table(folder: str) -> None:
    readme = (FOLDER / folder / "README.md").read_text()
    assert "source" in readme.lower()
    assert f"({folder}/README.md)" in (FOLDER / "README.md").read_text()


def test_nft_takes_the_firewall(rendered: Path) -> None:
    done = run(tool("nft", "nftables"), "-c", "-f", rendered / "etc/nftables.d/bedside.nft")
    if "Operation not permitted" in done.stderr:
        pytest.skip("nft -c needs root or CAP_NET_ADMIN")
    assert (done.returncode, done.stderr) == (0, "")


def test_nft_would_not_take_a_broken_one(tmp_path: Path, rendered: Path) -> None:
    broken = tmp_path / "broken.nft"
    broken.write_text((rendered / "etc/nftables.d/bedside.nft").read_text().replace("policy drop", "policy dropp", 1))
    assert run(tool("nft", "nftables"), "-c", "-f", broken).returncode != 0


_TOWN = r"""
set -e
trap 'kill $box $hub 2>/dev/null || true' EXIT
mount -t tmpfs none /run
ip link set lo up
for peer in clinic modem; do ip netns add $peer; ip -n $peer link set lo up; done
ip link add eth0 type veth peer name eth0 netns clinic
ip link add wwan0 type veth peer name eth0 netns modem
ip addr add 192.168.50.1/24 dev eth0; ip link set eth0 up
ip addr add 10.64.0.1/24 dev wwan0; ip link set wwan0 up
ip -n clinic addr add 192.168.50.2/24 dev eth0; ip -n clinic link set eth0 up
ip -n modem addr add 10.64.0.2/24 dev eth0; ip -n modem link set eth0 up
"$1" -c "$3" & box=$!
ip netns exec modem "$1" -c "$3" & hub=$!
sleep 0.8
"$2" -f "$4"
p="$1"
for port in 11112 8080 8443 22 5432; do
  ip netns exec clinic "$p" -c "$5" clinic 192.168.50.1 $port
  ip netns exec modem "$p" -c "$5" modem 10.64.0.1 $port
done
for port in 8883 80 22 25; do "$p" -c "$5" box 10.64.0.2 $port; done
"""
_SERVE = """
import socket, time
held = [socket.create_server(("0.0.0.0", port)) for port in (11112, 8080, 8443, 22, 5432, 8883, 80, 25)]
time.sleep(60)
"""
_ASK = """
import socket, sys
who, address, port = sys.argv[1:]
try:
    socket.create_connection((address, int(port)), 0.6)
    print(who, port, "open")
except OSError:
    print(who, port, "shut")
"""


def test_the_clinic_gets_in_where_it_should_the_modem_nowhere_and_the_box_calls_only_the_hub(rendered: Path) -> None:
    nft, _ = tool("nft", "nftables"), tool("ip", "iproute2")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    command = ["unshare", "--net", "--mount", "sh", "-c", _TOWN, "sh"]
    done = run(*command, sys.executable, nft, _SERVE, rendered / "etc/nftables.d/bedside.nft", _ASK)
    unable = ("Operation not permitted", "not supported", "cannot change root filesystem propagation")
    if done.returncode != 0 and any(words in done.stderr for words in unable):
        pytest.skip(f"no network namespaces, veth or nf_tables here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    reached = {line.rsplit(" ", 1)[0] for line in done.stdout.splitlines() if line.endswith("open")}
    asked = {line.rsplit(" ", 1)[0] for line in done.stdout.splitlines()}
    assert len(asked) == 14
    assert reached == {"clinic 11112", "clinic 8080", "clinic 8443", "box 8883"}


def test_chronyd_takes_its_configuration(rendered: Path) -> None:
    done = run(tool("chronyd", "chrony"), "-p", "-f", rendered / "etc/chrony/chrony.conf")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert "makestep 1 -1" in lines
    assert "server time.example.org iburst minpoll 6 maxpoll 10" in lines
    assert not any(line.startswith(("local", "allow")) for line in lines), "a box that does not know must not tell"


def test_chronyd_would_not_take_a_broken_one(tmp_path: Path) -> None:
    broken = tmp_path / "chrony.conf"
    broken.write_text("makestep soon\n")
    assert run(tool("chronyd", "chrony"), "-p", "-f", broken).returncode != 0


def settings(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(path.read_text())
    return parser


@pytest.mark.parametrize(
    ("file", "section", "program"),
    [
        ("journald/bedside.conf", "Journal", "systemd-journald"),
        ("watchdog/bedside-watchdog.conf", "Manager", "systemd"),
    ],
)
def test_systemd_knows_every_setting(file: str, section: str, program: str) -> None:
    """The names of settings stand in the program that reads them; none of them is a word that it would ignore."""
    path = Path("/lib/systemd") / program
    if not path.exists():
        pytest.skip(f"{path} is not here (apt-get install systemd)")
    known = path.read_bytes()
    read = settings(FOLDER / file)
    assert read.sections() == [section]
    for name in read[section]:
        assert name.encode() in known, name
    assert b"SystemMaxUsage" not in known


def test_zram_is_asked_for_as_its_generator_reads_it() -> None:
    read = settings(FOLDER / "zram/zram-generator.conf")
    assert read.sections() == ["zram0"]
    assert set(read["zram0"]) <= {"zram-size", "compression-algorithm", "swap-priority", "max-zram-size", "fs-type"}


def test_every_sysctl_exists_and_takes_a_number() -> None:
    text = (FOLDER / "sysctl/70-bedside.conf").read_text()
    pairs = [line.split(" = ") for line in text.splitlines() if line and not line.startswith("#")]
    assert len(pairs) > 20
    assert len({name for name, _ in pairs}) == len(pairs)
    missing = []
    for name, value in pairs:
        path = Path("/proc/sys") / name.replace(".", "/")
        if not path.exists():
            missing.append(name)
            continue
        assert re.fullmatch(r"\d+", value) or name == "net.core.default_qdisc", name
    allowed = {
        "kernel.unprivileged_bpf_disabled",
        "kernel.sysrq",
        "net.ipv6.conf.all.accept_redirects",
        "net.core.default_qdisc",
    }
    assert set(missing) <= allowed, f"this kernel has no {missing}"


_KEY = r"(ACTION|SUBSYSTEMS?|KERNELS?|DRIVERS?|TEST|GROUP|MODE|OWNER|SYMLINK|TAG|GOTO|LABEL|(ENV|ATTRS?|IMPORT)\{[\w/.]+\})"
_RULE = re.compile(rf'^{_KEY}(==|!=|=|\+=|:=)"[^"]*"(, {_KEY}(==|!=|=|\+=|:=)"[^"]*")*$')


def test_the_udev_rules_are_grammatical() -> None:
    lines = (FOLDER / "udev/70-bedside.rules").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert len(rules) >= 8
    for rule in rules:
        assert _RULE.match(rule), rule
        assert re.search(r"(?<![=!+:])=(?!=)|\+=", rule), f"it changes nothing: {rule}"
    assert {one.group(1) for rule in rules if (one := re.search(r'GOTO="(\w+)"', rule))} <= {
        one.group(1) for rule in rules if (one := re.search(r'LABEL="(\w+)"', rule))
    }


def test_udevadm_takes_the_rules() -> None:
    done = run(tool("udevadm", "udev"), "verify", FOLDER / "udev/70-bedside.rules")
    if "Unknown" in done.stderr or "Invalid" in done.stderr.split("\n")[0]:
        version = run("udevadm", "--version").stdout.strip()
        pytest.skip(f"udevadm {version} has no verify (systemd 254 has)")
    assert done.returncode == 0, done.stdout + done.stderr
