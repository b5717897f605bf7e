"""Networks, disk, boot and slots of firmware_cfg, each accepted by the tool that will read it."""

from __future__ import annotations

import configparser
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.contract.test_firmware_cfg import FOLDER, run, tool
from tests.provisioned import provisioned


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a site with everything gets, in a folder as root."""
    return provisioned(tmp_path_factory.mktemp("site"))


def parsed(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    return parser


@pytest.mark.parametrize("name", ["bedside-modem", "bedside-tablets"])
def test_network_manager_reads_the_connections(rendered: Path, name: str) -> None:
    path = rendered / f"etc/NetworkManager/system-connections/{name}.nmconnection"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    command = [tool("nmcli", "network-manager"), "--offline", "connection", "modify", "connection.autoconnect", "yes"]

    def read(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, check=False, capture_output=True, text=True, input=text, timeout=60)

    done = read(path.read_text())
    if "--offline" in done.stderr:
        pytest.skip("nmcli is older than 1.40 and has no --offline")
    assert done.returncode == 0, done.stderr
    said = parsed(done.stdout)
    assert said["connection"]["id"] == name
    if name == "bedside-modem":
        assert (said["gsm"]["apn"], said["gsm"]["pin"]) == ("internet", "1234")
    else:
        assert (said["wifi"]["mode"], said["wifi-security"]["pmf"]) == ("ap", "2")
    assert read(path.read_text().replace("method=auto", "method=nonsense").replace("=ap", "=nonsense")).returncode != 0


def test_the_encrypted_partition_becomes_a_unit_and_the_mount_waits_for_it(rendered: Path, tmp_path: Path) -> None:
    generator = Path("/usr/lib/systemd/system-generators/systemd-cryptsetup-generator")
    if not generator.exists():
        pytest.skip("systemd-cryptsetup-generator is not here (apt-get install systemd-cryptsetup)")
    folders = [tmp_path / name for name in ("normal", "early", "late")]
    for folder in folders:
        folder.mkdir()
    environment = {**os.environ, "SYSTEMD_CRYPTTAB": str(rendered / "etc/crypttab"), "SYSTEMD_PROC_CMDLINE": "ro"}
    done = subprocess.run([generator, *folders], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    unit = (folders[0] / "systemd-cryptsetup@bedside\\x2dstate.service").read_text()
    assert "by-partlabel/BEDSIDE_STATE" in unit
    assert "tpm2-device=auto" in unit
    mount = (rendered / "etc/systemd/system/var-lib-bedside.mount").read_text()
    assert "systemd-cryptsetup@bedside\\x2dstate.service" in mount


def test_systemd_takes_the_mount_and_the_power_unit(rendered: Path, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze", "systemd")
    shutil.copytree("/usr/lib/systemd/system", tmp_path / "usr/lib/systemd/system", symlinks=True)
    shutil.copytree(rendered / "etc/systemd/system", tmp_path / "etc/systemd/system")
    crypt = tmp_path / "etc/systemd/system/systemd-cryptsetup@bedside\\x2dstate.service"
    crypt.write_text("[Service]\nExecStart=/bin/true\n")
    for name in ("bin/true", "usr/sbin/nvpmodel"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    for unit in ("var-lib-bedside.mount", "bedside-power.service"):
        path = tmp_path / "etc/systemd/system" / unit
        done = run(analyze, "verify", f"--root={tmp_path}", "--recursive-errors=no", "--man=no", path)
        assert (done.returncode, done.stderr) == (0, ""), unit


def test_words_for_the_kernel_are_added_once_and_replace_their_own_kind(rendered: Path) -> None:
    line = next(one for one in (rendered / "boot/extlinux/extlinux.conf").read_text().splitlines() if "APPEND" in one)
    words = line.split()
    assert words[:4] == ["APPEND", "${cbootargs}", "root=PARTUUID=1", "rw"]
    assert [word for word in words if word.startswith("panic=")] == ["panic=10"]
    assert words.count("fsck.repair=yes") == 1
    assert "FAN_DEFAULT_PROFILE cool\n" in (rendered / "etc/nvfancontrol.conf").read_text()


def test_grub_and_overlayroot_read_their_words() -> None:
    grub = f'GRUB_CMDLINE_LINUX_DEFAULT=quiet; . {FOLDER / "boot/bedside.cfg"}; echo "$GRUB_CMDLINE_LINUX_DEFAULT"'
    assert run("sh", "-ec", grub).stdout == "quiet panic=10 loglevel=4 fsck.repair=yes\n"
    root = f'. {FOLDER / "disk/overlayroot.conf"}; echo "$overlayroot"'
    assert run("sh", "-ec", root).stdout == "tmpfs:swap=1,recurse=0\n", "the state folder stays real"


_BOARD = """#!/bin/sh
# Stands in for nvbootctrl: the current slot is 0, the next one is in a file, a slot may be unbootable.
cd "$(dirname "$0")"
[ "$1 $2" = "-t rootfs" ] || exit 9
case $3 in
  get-current-slot) echo 0 ;;
  get-active-slot) cat next ;;
  set-active-boot-slot) echo "$4" > next ;;
  is-slot-bootable) [ ! -e "bad$4" ] ;;
  set-slot-as-unbootable) touch "bad$4" ;;
  mark-boot-successful) touch good ;;
  *) exit 9 ;;
esac
"""


def test_rauc_speaks_to_the_boards_slots(tmp_path: Path) -> None:
    board = tmp_path / "nvbootctrl"
    board.write_text(_BOARD)
    board.chmod(0o755)
    (tmp_path / "next").write_text("0\n")

    def slots(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "NVBOOTCTRL": str(board)}
        command = ["sh", str(FOLDER / "rauc/slots"), *words]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)

    assert slots("get-primary").stdout == "A\n"
    assert slots("set-primary", "B").returncode == 0
    assert slots("get-primary").stdout == "B\n"
    assert slots("get-current").stdout == "A\n"
    assert slots("get-state", "B").stdout == "good\n"
    assert slots("set-state", "B", "bad").returncode == 0
    assert slots("get-state", "B").stdout == "bad\n"
    assert slots("set-state", "A", "good").returncode == 0
    assert (tmp_path / "good").exists()
    for wrong in (("get-state", "C"), ("set-state", "A", "great"), ("dance",)):
        assert slots(*wrong).returncode != 0


def test_rauc_reads_a_bundle_that_is_signed_for_this_box_and_no_other(rendered: Path, tmp_path: Path) -> None:
    rauc, _ = tool("rauc", "rauc"), tool("mksquashfs", "squashfs-tools")
    config = parsed((rendered / "etc/rauc/system.conf").read_text())
    assert {"slot.rootfs.0", "slot.rootfs.1"} <= set(config.sections())
    for name in ("ours", "other"):
        subject = ["-subj", f"/CN={name}", "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem"]
        made = run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject)
        assert made.returncode == 0, made.stderr
    image = tmp_path / "image"
    image.mkdir()
    (image / "rootfs.ext4").write_bytes(os.urandom(8192))
    (image / "manifest.raucm").write_text(
        f"[update]\ncompatible={config['system']['compatible']}\nversion=1\n[bundle]\nformat=verity\n"
        "[image.rootfs]\nfilename=rootfs.ext4\n"
    )
    signer = [f"--cert={tmp_path / 'ours.pem'}", f"--key={tmp_path / 'ours.key'}"]
    bundle = tmp_path / "update.raucb"
    made = run(rauc, "bundle", *signer, image, bundle)
    assert made.returncode == 0, made.stderr
    told = run(rauc, "info", f"--keyring={tmp_path / 'ours.pem'}", bundle)
    assert told.returncode == 0, told.stderr
    assert "bedside-jetpack-6" in told.stdout
    assert run(rauc, "info", f"--keyring={tmp_path / 'other.pem'}", bundle).returncode != 0
