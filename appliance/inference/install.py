"""Installs bundles on this box: one that is trusted, newer and passes its golden check takes over at one instant.

What this module keeps true: a bundle's name in the folder is a link to a folder that is whole and durable; it is switched by
one rename, so whatever interrupts an installation (a power cut at any instruction) leaves the bundle that was installed
before. That one stays beside the new one, until the next. An older version than serves now is refused unless forced, and
forcing is remembered, so that it then goes before a newer one that came with the program.

    models/made-up → .store/made-up/2.0.0-1f6b3c4d5e6f       the one that serves
    models/.store/made-up/1.0.0-77aa01c2d3e4                 the one before
    models/.forced-made-up                                   SHA-256 of a description that was forced
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from appliance.inference import bundle as bundles
from appliance.inference import package
from appliance.inference.bundle import Bundle, BundleError
from appliance.inference.trust import TrustedKeys
from appliance.store.files import RealFiles, sync_folder

_STORE, _PARTIAL, _FORCED = ".store", ".partial-", ".forced-"


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What an installation did. ``before``: the version that was there, empty when none; ``news``: whether anything changed."""

    id: str
    version: str
    sha256: str
    signed_by: str
    before: str
    forced: bool
    news: bool


def install(
    source: Path,
    folder: Path,
    others: Sequence[Path],
    trust: TrustedKeys,
    accept: Callable[[Bundle], object],
    *,
    force: bool = False,
) -> Installed:
    """Install the bundle in ``source``, a folder or a zip.

    Args:
        source: What was handed over.
        folder: Where bundles are installed on this box.
        others: Folders of bundles that serve beside those (what came with the program).
        trust: Whose bundles may serve.
        accept: Runs the golden check on the engine that will serve; raises when the bundle fails it.
        force: Take an older version, or another of the same version, all the same.

    Raises:
        BundleError: It may not serve, or is older; nothing has changed.
        EngineError: From ``accept``: it failed its golden check here; nothing has changed.
        OSError: The disk refused; what was installed before serves.
    """
    RealFiles().make_folder(folder / _STORE)
    with _alone(folder), _staging(folder) as staging:
        by: list[str] = []
        package.unpack(source, staging, lambda words, signed, where: by.append(trust.vouches(words, signed, where)))
        found = bundles.load(staging)
        before = _before(found, (folder, *others))
        backwards = _backwards(found, before)
        version = "" if before is None else before.version
        outcome = Installed(
            id=found.id,
            version=found.version,
            sha256=found.sha256,
            signed_by=by[0],
            before=version,
            forced=bool(backwards and force),
            news=before is None or before.sha256 != found.sha256,
        )
        if not outcome.news:
            return outcome
        if backwards and not force:
            raise BundleError(f"{source}: {backwards}; install a newer one, or say --force if you must go back")
        accept(found)
        _switch(found, staging, folder, forced=outcome.forced)
        return outcome


def forced(folder: Path) -> set[str]:
    """SHA-256 of the descriptions that were forced: they go before newer versions."""
    found = set()
    for path in folder.glob(f"{_FORCED}*"):
        with contextlib.suppress(OSError):
            found.add(path.read_text().strip())
    return found


def _before(found: Bundle, folders: Sequence[Path]) -> Bundle | None:
    """The bundle of the same id that serves now: the forced one, else the newest."""
    pinned = forced(folders[0])
    same = [one for one in bundles.load_all(*folders) if not isinstance(one, BundleError) and one.id == found.id]
    return max(same, key=lambda one: (one.sha256 in pinned, bundles.order(one)), default=None)


def _backwards(found: Bundle, before: Bundle | None) -> str:
    """Why this bundle is no step forward, in words; empty when it is one."""
    if before is None or bundles.order(found) > bundles.order(before):
        return ""
    if found.version == before.version:
        return f"{found.id} {found.version} is installed with other content, and a version never changes"
    return f"{found.id} {found.version} is older than {before.version}, which is installed"


def _switch(found: Bundle, staging: Path, folder: Path, *, forced: bool) -> None:
    """Put the staged bundle in its place; the last rename decides."""
    link, pin = folder / found.id, folder / f"{_FORCED}{found.id}"
    if link.exists() and not link.is_symlink():
        raise BundleError(
            f"{link}: is a folder that was not installed by this command; move it away, then install again"
        )
    last = link.readlink().name if link.is_symlink() else ""
    store = folder / _STORE / found.id
    RealFiles().make_folder(store)
    kept = _stored(found, staging, store)
    if forced:
        _replace_text(pin, found.sha256)
    new = folder / f"{_PARTIAL}link"
    new.symlink_to(Path(_STORE) / found.id / kept)
    new.replace(link)
    sync_folder(folder)
    if not forced:
        pin.unlink(missing_ok=True)
    for old in store.iterdir():
        if old.name not in (kept, last):
            shutil.rmtree(old, ignore_errors=True)


def _stored(found: Bundle, staging: Path, store: Path) -> str:
    """The name under which the staged bundle now lies in ``store``, whole and durable."""
    name = base = f"{found.version}-{found.sha256[:12]}"
    number = 1
    while (store / name).exists():  # it was installed before, or an installation was cut short
        with contextlib.suppress(BundleError):
            if bundles.load(store / name).sha256 == found.sha256:
                return name
        number += 1
        name = f"{base}-{number}"
    for path in (staging, *(one for one in staging.rglob("*") if one.is_dir())):
        sync_folder(path)
    staging.rename(store / name)
    sync_folder(store)
    return name


def _replace_text(path: Path, text: str) -> None:
    new = path.with_name(f"{_PARTIAL}{path.name}")
    with new.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One installation at a time; what an interrupted one left is cleared away."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BundleError(f"{folder}: another installation is running; wait until it is done") from error
        for path in folder.glob(f"{_PARTIAL}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        yield
    finally:
        os.close(fd)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
