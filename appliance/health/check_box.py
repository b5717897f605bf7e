"""The doctor's look at the box itself: state folder, journal, key, folder door, clock, memory, temperature.

What this module keeps true: nothing is changed but a file of its own, written and removed to see whether the disk takes
it; the journal is opened read-only; no content of the journal and no key is shown.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import sqlite3
import time
from pathlib import Path

from appliance.config import Config
from appliance.health.check import Check, unsure, well, wrong
from appliance.health.clock import kernel_synchronised, rfc3339
from appliance.health.telemetry import measure
from appliance.store.errors import StoreError
from appliance.store.files import RealFiles, durable
from appliance.store.keys import key_file, open_key
from appliance.store.schema import MIGRATIONS

_MB = 1 << 20
_SLOW_WRITE_S = 0.5
_EARLIEST = 1767225600  # 2026-01-01: no box with this program lived before
_HOT_C, _WARM_C = 85.0, 75.0


def is_running(state: Path) -> bool:
    """Whether a daemon holds the state folder (its advisory lock, see ``appliance.store.store``)."""
    try:
        fd = os.open(state / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def check_state(config: Config) -> Check:
    """The state folder: there, ours, closed to others, writable, with room."""
    name, folder = "state folder", config.state
    try:
        stat = folder.stat()
    except FileNotFoundError:
        return _not_there_yet(name, folder)
    except OSError as error:
        return wrong(name, f"{folder}: {error.strerror}", _as_the_owner(folder))
    me, owner = os.geteuid(), _user(stat.st_uid)
    if me not in (0, stat.st_uid):
        return wrong(name, f"{folder} belongs to {owner}, not to {_user(me)}", f"run: sudo -u {owner} bedside doctor")
    if stat.st_mode & 0o077:
        return wrong(name, f"{folder} is open to other users (mode {stat.st_mode & 0o777:o})", f"chmod 700 {folder}")
    problem, took = _try_write(folder)
    if problem:
        return wrong(name, f"{folder}: {problem}", "remount it writable, free space or replace the disk")
    if took > _SLOW_WRITE_S:
        found = f"writing 4 kB and waiting for the disk took {took:.1f} s"
        return wrong(name, found, "the flash is worn or overloaded: look at dmesg and replace the card or disk")
    return _room(name, config, f"{folder} of {owner}, a durable write takes {took * 1000:.0f} ms")


def _not_there_yet(name: str, folder: Path) -> Check:
    parent = next(one for one in folder.absolute().parents if one.exists())
    if os.access(parent, os.W_OK | os.X_OK):
        return unsure(name, f"{folder} is not there yet; the daemon makes it when it first starts")
    remedy = f"let systemd make it (StateDirectory=), or: install -d -m 700 -o bedside -g bedside {folder}"
    return wrong(name, f"{folder} is not there and {parent} can't be written by {_user(os.geteuid())}", remedy)


def _room(name: str, config: Config, found: str) -> Check:
    free = RealFiles().free(config.state) // _MB
    least = config.storage.refuse_below
    if free < least:
        remedy = "free space on its disk (other programs' files, not this folder's), or lower storage.refuse_below"
        return wrong(
            name, f"{free:,} MB free, less than storage.refuse_below ({least:,} MB): captures are refused", remedy
        )
    if free < 2 * least:
        return unsure(name, f"{found}; only {free:,} MB free, intake stops at {least:,} MB", "free space soon")
    return well(name, f"{found}; {free:,} MB free, intake stops at {least:,} MB")


def _try_write(folder: Path) -> tuple[str, float]:
    """Write 4 KiB as the store does; what was wrong, and seconds until it was durable."""
    target, files = folder / f".doctor-{os.getpid()}", RealFiles()
    began = time.monotonic()
    try:
        with durable(files, target) as file:
            file.write(bytes(4096))
        took = time.monotonic() - began
        files.remove(target)
    except OSError as error:
        return error.strerror or str(error), 0.0
    return "", took


def check_journal(config: Config) -> Check:
    """The journal opens, is of a schema this program knows, and is whole (``PRAGMA quick_check``, read-only)."""
    name, path = "journal", config.state / "journal.sqlite"
    if not path.exists():
        return unsure(name, f"{path} is not there yet")
    try:
        with contextlib.closing(_read_only(path)) as connection:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            faults = [row[0] for row in connection.execute("PRAGMA quick_check(5)")]
            captures = connection.execute("SELECT count(*) FROM capture").fetchone()[0] if version else 0
            aside = (
                connection.execute("SELECT count(*) FROM capture WHERE set_aside <> ''").fetchone()[0] if version else 0
            )
    except sqlite3.Error as error:
        return wrong(name, f"{path}: {error}", _restore(path))
    if version > len(MIGRATIONS):
        found = f"schema {version} is newer than this program's ({len(MIGRATIONS)})"
        return wrong(name, found, "install the newer program again")
    if faults != ["ok"]:
        return wrong(name, f"{path} is damaged: {faults[0]}", _restore(path))
    if aside:
        return unsure(
            name, f"whole, {captures} captures, {aside} set aside", "look at them in the console: a human decides"
        )
    return well(name, f"whole, schema {version}, {captures} captures")


def _restore(path: Path) -> str:
    return (
        f"stop the daemon, keep a copy of {path}* for support, restore the last backup; look at dmesg for disk errors"
    )


def _read_only(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
    connection.execute("PRAGMA query_only=ON")
    return connection


def check_writes(config: Config) -> Check:
    """What the daemon wrote to its disk a day, besides captures, within ``storage.write_budget``."""
    name, path, budget = "disk wear", config.state / "journal.sqlite", config.storage.write_budget
    try:
        with contextlib.closing(_read_only(path)) as connection:
            rows = connection.execute(
                "SELECT day, written - kept FROM usage WHERE written > 0 ORDER BY day DESC LIMIT 7"
            ).fetchall()
    except sqlite3.Error:
        rows = []
    if not rows:
        return unsure(name, "nothing is known yet of what is written in a day")
    day, most = max(rows, key=lambda row: int(row[1]))
    found = f"at most {most >> 20} MB a day besides captures in the last {len(rows)} days (on {day})"
    if budget and most > budget << 20:
        remedy = "send the log of that day to support: flash that is written so much wears out within years"
        return unsure(name, f"{found}; storage.write_budget is {budget}", remedy)
    return well(name, found)


def check_key(config: Config) -> Check:
    """The box key: there, closed to others, the one that sealed the journal."""
    name, path, journal = "box key", key_file(config.state), config.state / "journal.sqlite"
    if not path.exists():
        if journal.exists():
            return wrong(
                name,
                f"{path} is gone while its journal is there",
                "put the key back from its backup; never make a new one",
            )
        return unsure(name, f"{path} is not there yet; it is made when the daemon first starts")
    try:
        mode = path.stat().st_mode & 0o777
        mark = open_key(config.state, RealFiles()).blind("bedside journal")
    except OSError as error:
        return wrong(name, f"{path}: {error.strerror}", _as_the_owner(config.state))
    except StoreError as error:
        return wrong(name, str(error), f"put {path} back from its backup")
    if mode & 0o077:
        return wrong(name, f"{path} can be read by others (mode {mode:o})", f"chmod 600 {path}")
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_read_only(journal)) as connection:
        row = connection.execute("SELECT value FROM meta WHERE key = 'box-key'").fetchone()
        if row is not None and row[0] != mark:
            return wrong(name, "the journal was sealed with another key", f"put the right {path} back from its backup")
        return well(name, "there, closed to others, fits the journal")
    return well(name, "there, closed to others")


def check_folder(config: Config) -> Check:
    """The watched folder, if it is used."""
    name, path = "folder door", Path(config.folder.path)
    if not config.folder.enabled:
        return unsure(name, "not in use (folder.enabled is false)")
    if not path.is_dir():
        if not path.exists() and os.access(path.parent, os.W_OK):
            return unsure(name, f"{path} is not there yet", f"mkdir -p {path}")
        return wrong(name, f"{path} is not a folder", f"mkdir -p {path}, or mount what should be there")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        remedy = f"files are taken out of it: give it to the service's user (chown bedside {path})"
        return wrong(name, f"{path} can't be read and written by {_user(os.geteuid())}", remedy)
    return well(name, f"{path}, {sum(1 for _ in path.iterdir())} entries in it")


def check_clock(root: Path = Path("/")) -> Check:
    """The clock: plausible, disciplined by a time service, backed by a battery."""
    name, now, error = "clock", time.time(), kernel_synchronised()
    battery = _battery(root)
    if now < _EARLIEST:
        remedy = (
            "give it time from a network (systemctl status chrony) or set it once (date -s), and fit an RTC battery; "
            "captures are taken and kept in order meanwhile"
        )
        return wrong(name, f"it says {rfc3339(now)[:10]}: it woke without knowing the time; {battery}", remedy)
    if error is None:
        remedy = "install chrony or look at: chronyc tracking; until then times are marked as uncertain, nothing stops"
        return unsure(name, f"{rfc3339(now)[:19]}Z, not disciplined by a time service; {battery}", remedy)
    return well(name, f"{rfc3339(now)[:19]}Z, off by at most {error:.3g} s; {battery}")


def _battery(root: Path) -> str:
    clocks = sorted((root / "sys/class/rtc").glob("rtc*/since_epoch"))
    if not clocks:
        return "no hardware clock"
    try:
        kept = int(clocks[0].read_text())
    except (OSError, ValueError):
        return "the hardware clock does not answer"
    return "the hardware clock keeps time" if kept > _EARLIEST else "the hardware clock lost its time (no battery?)"


def check_memory(config: Config, root: Path = Path("/")) -> Check:
    """Memory: enough for the reading process as it is limited."""
    name, machine = "memory", measure(config.state, root)
    if machine.memory_available is None or machine.memory_total is None:
        return unsure(name, "/proc/meminfo says nothing")
    free, total, limit = machine.memory_available // _MB, machine.memory_total // _MB, config.models.memory_limit
    found = f"{free:,} of {total:,} MB free"
    if free < 256:
        return wrong(name, found, "stop other programs on this box; zram gives some room (firmware_cfg/zram)")
    if total < limit:
        remedy = f"set models.memory_limit to at most {total * 3 // 4} MB"
        return unsure(name, f"{found}; models.memory_limit ({limit:,} MB) is more than the box has", remedy)
    return well(name, found)


def check_temperature(config: Config, root: Path = Path("/")) -> Check:
    """The hottest sensor."""
    name, celsius = "temperature", measure(config.state, root).temperature_c
    if celsius is None:
        return unsure(name, "no sensor")
    found = f"{celsius:.0f} °C at the hottest sensor"
    if celsius >= _HOT_C:
        return wrong(name, f"{found}: it throttles or shuts down", "take it out of the sun and clean its fan")
    if celsius >= _WARM_C:
        return unsure(name, f"{found}: warm", "give it shade and air")
    return well(name, found)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _as_the_owner(folder: Path) -> str:
    try:
        return f"run: sudo -u {folder.owner()} bedside doctor"
    except (OSError, KeyError):
        return "run it as the service's user: sudo -u bedside bedside doctor"
