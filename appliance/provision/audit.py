"""What a running box really is, held against its site file.

What this module keeps true: nothing is changed; a fact that can't be found out is ``unknown``, never ``ok``; everything that
differs says what to do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from appliance.provision.plan import Change, firmware
from appliance.provision.site import Site

Verdict = Literal["ok", "differs", "unknown"]


class Fact(NamedTuple):
    """One thing held against the site file, and the remedy if it differs."""

    what: str
    verdict: Verdict
    detail: str = ""
    remedy: str = ""


def audit(
    site: Site, changes: Iterable[Change], root: Path, run: Callable[..., str | None] | None = None
) -> Iterator[Fact]:
    """Every file of the plan, then what the running system says. ``run``: a command's output, ``None`` if it can't run."""
    again = "bedside provision SITE.toml"
    for change in changes:
        if change.before is None and not change.after:
            yield Fact(
                change.target, "unknown", "this system does not have it", "nothing, if another tool does its work here"
            )
        elif change.differs:
            yield Fact(change.target, "differs", change.differs, again)
        else:
            yield Fact(change.target, "ok")
    if root != Path("/"):
        return
    ask = run or _output
    yield from _kernel(root)
    yield from _services(site, ask)
    yield _firewall(ask)
    yield _watchdog(root)
    if site.disk.encrypted:
        yield _state(root)


def _kernel(root: Path) -> Iterator[Fact]:
    """Each sysctl as the kernel has it."""
    text = (firmware() / "sysctl/70-bedside.conf").read_text(encoding="utf-8")
    for name, wanted in re.findall(r"^([a-z0-9_.]+) = (\S+)$", text, re.MULTILINE):
        path = root / "proc/sys" / name.replace(".", "/")
        try:
            found = path.read_text(encoding="ascii").strip()
        except OSError as error:
            yield Fact(f"sysctl {name}", "unknown", error.strerror or "", "")
            continue
        same = found == wanted
        yield Fact(f"sysctl {name}", "ok" if same else "differs", "" if same else f"is {found}", "sysctl --system")


def _services(site: Site, ask: Callable[..., str | None]) -> Iterator[Fact]:
    wanted = ["bedside.service", "nftables.service", "chrony.service", "bedside-backup.timer", "bedside-check.timer"]
    wanted += ["bedside-kiosk.service"] if site.screen.kiosk else []
    for unit in wanted:
        said = ask("systemctl", "is-enabled", unit)
        if said is None:
            yield Fact(unit, "unknown", "systemctl does not answer", "")
            continue
        enabled = said.strip() in ("enabled", "enabled-runtime", "static")
        yield Fact(unit, "ok" if enabled else "differs", said.strip() or "not there", f"systemctl enable --now {unit}")


def _firewall(ask: Callable[..., str | None]) -> Fact:
    said = ask("nft", "list", "chain", "inet", "bedside", "input")
    if said is None:
        return Fact("firewall", "unknown", "nft does not answer", "run as root, with nftables installed")
    closed = "policy drop" in said
    return Fact(
        "firewall", "ok" if closed else "differs", "" if closed else "open", "nft -f /etc/nftables.d/bedside.nft"
    )


def _watchdog(root: Path) -> Fact:
    there = sorted((root / "sys/class/watchdog").glob("watchdog*/state"))
    if not there:
        remedy = "echo softdog > /etc/modules-load.d/softdog.conf, and start again"
        return Fact("hardware watchdog", "differs", "there is none", remedy)
    try:
        state = there[0].read_text(encoding="ascii").strip()
    except OSError as error:
        return Fact("hardware watchdog", "unknown", error.strerror or "", "")
    return Fact("hardware watchdog", "ok" if state == "active" else "differs", state, "systemctl daemon-reexec")


def _state(root: Path) -> Fact:
    """The state folder's device, by the mount table."""
    try:
        lines = (root / "proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        return Fact("state folder", "unknown", error.strerror or "", "")
    device = next((line.split()[0] for line in lines if line.split()[1] == "/var/lib/bedside"), "")
    encrypted = device.startswith("/dev/mapper/")
    detail = device or "not a partition of its own"
    return Fact(
        "state folder", "ok" if encrypted else "differs", detail, "firmware_cfg/disk/README.md says how it is made"
    )


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 or done.stdout else None
