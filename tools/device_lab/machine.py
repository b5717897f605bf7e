"""A small machine under QEMU (software emulation): Debian's own kernel, this machine's files read only, a disk of its own.

What this module keeps true: nothing of the host is changed: its file system is mounted read only, and what the guest writes
lives in its memory or on its own disk image; the kernel comes from Debian's package of the host's release, unpacked, never
installed; a guest that says nothing for too long is killed and named.
"""

from __future__ import annotations

import gzip
import json
import os
import selectors
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "var" / "device-lab"
PACKAGES = ("qemu-system-x86", "busybox-static", "kmod", "dmsetup")
MODULES = (
    "virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "overlay", "ext4", "vivid", "snd-aloop", "softdog", "dm-flakey",
)  # fmt: skip
SAYS = "LAB: "
_MEMORY_MB = 2560
_QUIET = 240.0


class LabError(Exception):
    """The laboratory can't work here; the message names what is missing and what to do."""


class Said(NamedTuple):
    """A line that the guest said: a word and its values."""

    word: str
    values: dict[str, Any]


class Machine:
    """One start of the guest. Use as a context; leaving kills it as a power cut would."""

    def __init__(self, scenario: str, *, disk: Path | None = None, watchdog: bool = False) -> None:
        self._scenario, self._disk, self._watchdog = scenario, disk, watchdog
        self._process: subprocess.Popen[bytes] | None = None
        self.log: list[str] = []

    def __enter__(self) -> Self:
        kernel, initramfs = prepared()
        words = f"console=ttyS0 quiet panic=-1 lab.python={sys.executable} lab.dir={ROOT} lab.scenario={self._scenario}"
        command = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(_MEMORY_MB)),
            *("-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio", "-monitor", "none"),
            *("-kernel", str(kernel), "-initrd", str(initramfs), "-append", words),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
        ]
        if self._disk is not None:
            # Writes are in the guest's own cache until it flushes; killed, they are gone.
            command += ["-drive", f"file={self._disk},format=raw,if=virtio,cache=writeback"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()

    def cut_power(self) -> None:
        """End it at this instant."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def says(self, limit_s: float = 600.0) -> Iterator[Said]:
        """What the guest says until it stops; raises ``LabError`` when it is silent or takes longer than ``limit_s``."""
        process = self._process
        if process is None or process.stdout is None:
            raise LabError("the machine is not running")
        end = time.monotonic() + limit_s
        for line in _lines(process.stdout, lambda: min(_QUIET, end - time.monotonic())):
            self.log.append(line)
            if SAYS in line:
                said = json.loads(line.partition(SAYS)[2])
                yield Said(said.pop("word"), said)
        process.wait(timeout=30)

    @property
    def status(self) -> int | None:
        """QEMU's exit status, once it has ended."""
        return self._process.poll() if self._process else None


def _lines(stream: IO[bytes], patience: Callable[[], float]) -> Iterator[str]:
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left = patience()
            if left <= 0 or not selector.select(left):
                raise LabError("the machine said nothing for too long; its log tells what it did last")
            data = os.read(stream.fileno(), 65536)
            if not data:
                return
            *whole, pending = (pending + data).split(b"\n")
            yield from (line.decode(errors="replace").rstrip("\r") for line in whole)


def prepared() -> tuple[Path, Path]:
    """Kernel and initial file system, made on first use; raises ``LabError`` naming the packages that are missing."""
    missing = [name for name in ("qemu-system-x86_64", "busybox", "modprobe") if _program(name) is None]
    if missing:
        raise LabError(f"{', '.join(missing)} missing: apt-get install --no-install-recommends {' '.join(PACKAGES)}")
    unpacked = CACHE / "kernel"
    if not list(unpacked.glob("boot/vmlinuz-*")):
        _fetch_kernel(unpacked)
    kernel = next(iter(sorted(unpacked.glob("boot/vmlinuz-*"))))
    initramfs = CACHE / "initramfs.gz"
    if not initramfs.exists() or initramfs.stat().st_mtime < Path(__file__).stat().st_mtime:
        _write_initramfs(initramfs, unpacked)
    return kernel, initramfs


def _fetch_kernel(folder: Path) -> None:
    listed = _run("apt-cache", "depends", "linux-image-amd64")
    names = [line.split()[-1] for line in listed.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise LabError("apt knows no linux-image-amd64: run apt-get update")
    download = CACHE / "download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    _run("apt-get", "download", "-qq", names[0], folder=download)
    part = folder.with_name("kernel.part")
    shutil.rmtree(part, ignore_errors=True)
    _run("dpkg-deb", "-x", str(next(download.glob("*.deb"))), str(part))
    for modules in (part / "lib/modules").iterdir():
        _run("depmod", "-b", str(part), modules.name)
    part.rename(folder)
    shutil.rmtree(download)


_INIT = """#!/bin/busybox sh
set -e
b=/bin/busybox
$b mkdir -p /proc /sys /dev /host /rw /root
$b mount -t proc none /proc; $b mount -t sysfs none /sys; $b mount -t devtmpfs none /dev
$b mkdir -p /dev/shm /dev/pts; $b mount -t tmpfs none /dev/shm; $b mount -t devpts none /dev/pts
for module in $($b cat /modules/order); do
  case $module in
    vivid.ko) $b insmod /modules/$module n_devs=1 node_types=0x1 num_inputs=1 input_types=0x2 ;;
    softdog.ko) $b insmod /modules/$module soft_margin=8 ;;
    *) $b insmod /modules/$module || true ;;
  esac
done
$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose host /host
$b mount -t tmpfs -o size=1500m none /rw; $b mkdir /rw/upper /rw/work
$b mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work none /root
for name in proc sys dev; do $b mount --rbind /$name /root/$name; done
$b mount -t tmpfs -o size=1200m none /root/tmp; $b mount -t tmpfs none /root/run
for word in $($b cat /proc/cmdline); do
  case $word in
    lab.python=*) python=${word#*=} ;;
    lab.dir=*) dir=${word#*=} ;;
    lab.scenario=*) scenario=${word#*=} ;;
  esac
done
export HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1
$b ip link set lo up || true
$b chroot /root /bin/sh -c "cd $dir && exec $python -m tools.device_lab.guest $scenario" || true
$b poweroff -f
"""


def _write_initramfs(target: Path, unpacked: Path) -> None:
    version = next((unpacked / "lib/modules").iterdir()).name
    files: dict[str, tuple[int, bytes]] = {"init": (0o755, _INIT.encode())}
    busybox = _program("busybox")
    files["bin/busybox"] = (0o755, Path(busybox or "").read_bytes())
    order: list[str] = []
    for module in MODULES:
        for line in _run("modprobe", "-d", str(unpacked), "-S", version, "--show-depends", module).splitlines():
            path = Path(line.split()[1]) if line.startswith("insmod") else None
            if path is not None and path.name not in order:
                order.append(path.name)
                files[f"modules/{path.name}"] = (0o644, path.read_bytes())
    files["modules/order"] = (0o644, "\n".join(order).encode())
    part = target.with_suffix(".part")
    with gzip.open(part, "wb", compresslevel=3) as out:
        for folder in ("bin", "modules", "dev"):
            out.write(_entry(folder, stat.S_IFDIR | 0o755, b""))
        for name, (mode, data) in files.items():
            out.write(_entry(name, stat.S_IFREG | mode, data))
        out.write(_entry("TRAILER!!!", 0, b""))
    part.replace(target)


def _entry(name: str, mode: int, data: bytes) -> bytes:
    """One entry of a cpio archive of the form "newc" (cpio(5)): 13 numbers of 8 hex digits, padded to 4 bytes."""
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _run(*command: str, folder: Path | None = None) -> str:
    program = _program(command[0])
    if program is None:
        raise LabError(f"{command[0]} is missing: apt-get install --no-install-recommends {' '.join(PACKAGES)}")
    done = subprocess.run([program, *command[1:]], check=False, capture_output=True, text=True, cwd=folder, timeout=600)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
