"""Puts what is planned into place.

What this module keeps true: each file is whole or as it was (temporary name, fsync, rename); what is already so is not
touched; commands run only for the files that changed, only on this machine's own root. One that fails keeps none of the others
from running, and each is named with the command, because it will not run again by itself: the files are so now.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from appliance.provision.plan import Action, Change, manifest
from appliance.provision.site import ConfigError
from appliance.store.files import sync_folder


def apply(changes: Iterable[Change], root: Path, say: Callable[[str], None]) -> tuple[int, bool]:
    """Write what differs and run what follows; how many files, and whether a restart is needed.

    Raises ``ConfigError`` naming the file or command; files before it stay as they were set.
    """
    written, pending = 0, dict[str, Action]()
    actions = manifest().then
    for change in changes:
        if not change.differs or (change.before is None and not change.after):
            continue
        _put(root / change.target.lstrip("/"), change)
        say(f"set {change.target}")
        written += 1
        pending.update({name: actions[name] for name in change.then})
    if root == Path("/"):
        _do_all(pending, say)
    return written, any(action.reboot for action in pending.values())


def _put(path: Path, change: Change) -> None:
    part = path.with_name(f".{path.name}.bedside")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, change.mode), "w", encoding="utf-8") as file:  # noqa: PTH123 - the mode from the first byte on
            os.fchmod(file.fileno(), change.mode)
            file.write(change.after)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ConfigError(f"{path}: can't be written ({error.strerror}); run it as root") from error


def _do_all(pending: dict[str, Action], say: Callable[[str], None]) -> None:
    failed = [words for name, action in pending.items() if (words := _do(name, action, say))]
    if failed:
        raise ConfigError("; ".join(failed) + "; the files are in place: mend it, then run this by hand")


def _do(name: str, action: Action, say: Callable[[str], None]) -> str:
    """Run the command; why it failed, in words."""
    if not action.command:
        return ""
    command = " ".join(action.command)
    say(f"run {command}")
    try:
        done = subprocess.run(action.command, check=False, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{name}: {command} could not run ({error})"
    if done.returncode == 0:
        return ""
    last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"status {done.returncode}"]
    return f"{name}: {command} failed ({last[0]})"
