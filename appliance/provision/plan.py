"""From a site file to what each file of the system should be, and how that differs from what it is.

What this module keeps true: planning writes nothing; the same site file gives the same plan; a file that is already so is
not in it. ``firmware_cfg/manifest.toml`` says which file goes where, for whom, and what is done once it has changed.
"""

from __future__ import annotations

import difflib
import re
import stat
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from appliance.provision.site import ConfigError, Site, check_bedside, check_secrets

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of the manifest.

    ``source`` (a template when it ends in ``.j2``) becomes ``target``; or ``words`` are added to the setting ``key`` of a
    ``target`` that is there; or ``key`` gets the ``value``. ``when`` names a field of the site file that must be set,
    ``platforms`` the systems it is for, ``then`` what is done after a change; ``create`` begins a file that is not there.
    """

    target: str
    source: str = ""
    key: str = ""
    words: str = ""
    value: str = ""
    mode: str = "0644"
    when: str = ""
    platforms: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    create: bool = False


class Action(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command after changes; ``reboot``: it only holds after the next start."""

    command: tuple[str, ...] = ()
    reboot: bool = False


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole manifest."""

    file: tuple[_Entry, ...]
    then: dict[str, Action]


class Change(NamedTuple):
    """One file as it is (``None``: not there) and as it should be; ``secret``: its content is never shown."""

    target: str
    before: str | None
    after: str
    mode: int
    mode_before: int | None
    then: tuple[str, ...]
    secret: bool

    @property
    def differs(self) -> Literal["", "missing", "content", "mode"]:
        """In what the file differs."""
        if self.before is None:
            return "missing"
        if self.before != self.after:
            return "content"
        return "mode" if self.mode_before != self.mode else ""

    def diff(self) -> str:
        """The difference as a unified diff; of a secret only that there is one."""
        if self.secret:
            return f"--- {self.target}\n+++ {self.target}\n(holds a secret: {self.differs})\n"
        before = (self.before or "").splitlines(keepends=True)
        lines = difflib.unified_diff(before, self.after.splitlines(keepends=True), self.target, self.target)
        text = "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
        if self.mode_before is not None and self.mode_before != self.mode:
            text += f"mode of {self.target}: {self.mode_before:04o} → {self.mode:04o}\n"
        return text


def firmware() -> Path:
    """The folder of templates: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_firmware"
    return inside if inside.is_dir() else package.parent / "firmware_cfg"


def units() -> Path:
    """The folder of units: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_systemd"
    return inside if inside.is_dir() else package.parent / "systemd"


def manifest() -> Manifest:
    """What goes where; raises ``ConfigError`` for a manifest that is none."""
    path = firmware() / "manifest.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Manifest)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}; install the program again") from error


def wanted(site: Site, folder: Path, root: Path) -> list[Change]:
    """Every file that the site file asks for, as it is under ``root`` and as it should be; raises ``ConfigError``.

    ``folder``: where the site file lies, for the files that it names.
    """
    secrets = check_secrets(site, folder)
    values = {**{name: getattr(site, name) for name in site.__struct_fields__}, **secrets}
    changes = []
    for entry in manifest().file:
        if not _is_for(entry, site):
            continue
        changes.append(_change(entry, values, root))
    bedside = check_bedside(site, folder)
    if bedside is not None:
        changes.append(_compared("/etc/bedside/bedside.toml", bedside, 0o640, ("bedside",), root))
    return changes


def _is_for(entry: _Entry, site: Site) -> bool:
    if entry.platforms and site.box.platform not in entry.platforms:
        return False
    if not entry.when:
        return True
    section, _, name = entry.when.partition(".")
    return bool(getattr(getattr(site, section), name))


def _change(entry: _Entry, values: dict[str, Any], root: Path) -> Change:
    mode = int(entry.mode, 8)
    if not entry.source:
        return _edited(entry, values, root)
    folder = units() if entry.source.startswith("systemd:") else firmware()
    path = folder / entry.source.removeprefix("systemd:")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); install the program again") from error
    if path.suffix == ".j2":
        text = _rendered(text, values)
    return _compared(entry.target, text, mode, entry.then, root)


def _edited(entry: _Entry, values: dict[str, Any], root: Path) -> Change:
    """A setting of a file that the system brings; a file that is not there is left out and said by ``audit``."""
    path = root / entry.target.lstrip("/")
    mode = int(entry.mode, 8)
    if not path.exists():
        line = f"{entry.key} {_rendered(entry.words or entry.value, values)}\n" if entry.create else ""
        return Change(entry.target, None, line, mode, None, entry.then, secret=False)
    before = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"^([ \t]*{re.escape(entry.key)}[ \t=]+)(.*)$", re.MULTILINE)
    if entry.words:
        words = _rendered(entry.words, values).split()

        def put(match: re.Match[str]) -> str:
            there = match[2].split()
            keys = {word.partition("=")[0] for word in words}
            kept = [word for word in there if word in words or word.partition("=")[0] not in keys]
            return match[1] + " ".join([*kept, *(word for word in words if word not in kept)])
    else:
        value = _rendered(entry.value, values)

        def put(match: re.Match[str]) -> str:
            return match[1] + value

    after, count = pattern.subn(put, before)
    if not count:
        above = f"{before.rstrip(chr(10))}\n" if before else ""
        after = f"{above}{entry.key} {_rendered(entry.words or entry.value, values)}\n"
    mode = stat.S_IMODE(path.stat().st_mode)
    return Change(entry.target, before, after, mode, mode, entry.then, secret=False)


def _compared(target: str, text: str, mode: int, then: tuple[str, ...], root: Path) -> Change:
    path = root / target.lstrip("/")
    try:
        before: str | None = path.read_text(encoding="utf-8", errors="surrogateescape")
        mode_before: int | None = stat.S_IMODE(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        before, mode_before = None, None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); run it as root") from error
    return Change(target, before, text, mode, mode_before, then, secret=mode & 0o077 == 0)


def _rendered(text: str, values: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - configuration files, no HTML
    )
    environment.filters["host"] = lambda address: address.partition("/")[0]
    return environment.from_string(text).render(values)
