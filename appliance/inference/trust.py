"""Who may vouch for a bundle: the program itself, or the owner of a trusted key.

What this module keeps true:

1. A bundle that came with the program is trusted as the program is: its ``bundle.toml`` is, byte for byte, one of those in the
   program's own folder, which only who installs programs (root) may write, and whose hashes the wheel's RECORD lists.
   A copy of it elsewhere (the last good one in the cache) is therefore trusted too, a changed one is not.
2. Any other bundle needs the signature of a trusted key: one in the configuration (``models.trusted_keys``), or one that
   ``bedside models trust`` added to the state folder.
3. Only where the configuration says ``models.require_signature = false`` may a bundle serve that nobody vouches for, and the
   answer then says so.

``Trust`` is the seam: roles, thresholds and expiry as in The Update Framework are another implementation of it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from appliance.config import Config, shipped_models
from appliance.inference import signature
from appliance.inference.bundle import DESCRIPTION, BundleError
from appliance.store.files import Files, RealFiles, durable

PROGRAM, NOBODY = "the program", "nobody"
FILE = "trusted-keys.json"
"""In the state folder."""


class Trust(Protocol):
    """Decides who vouches for a bundle."""

    def check(self, root: Path) -> str:
        """Who vouches for the bundle in ``root``, in words; raises ``BundleError`` when it may not serve."""
        ...

    def changed(self) -> int:
        """A number that changes when the answer may have."""
        ...


class TrustSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What ``TrustedKeys`` are made from, in another process too: ``keys`` raw, ``file`` and ``program`` paths."""

    required: bool
    file: str = ""
    program: str = ""
    keys: tuple[bytes, ...] = ()


class TrustedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key added on this box. ``key``: base64; ``added``: wall time."""

    name: str
    key: str
    added: str = ""

    @property
    def raw(self) -> bytes:
        """The key's 32 bytes."""
        return signature.public_key(self.key)


class TrustedKeys:
    """Trust by keys and by what came with the program.

    Args:
        file: Where ``add`` keeps keys; ``None``: nowhere.
        configured: Raw keys of the configuration.
        program: Folder of the bundles that came with the program; ``None``: none did.
        required: Whether a bundle that nobody vouches for is refused.
    """

    def __init__(
        self,
        file: Path | None = None,
        *,
        configured: Sequence[bytes] = (),
        program: Path | None = None,
        required: bool = True,
        files: Files | None = None,
    ) -> None:
        self._file = file
        self._configured = tuple(configured)
        self._program = program
        self._required = required
        self._files: Files = files or RealFiles()

    def check(self, root: Path) -> str:
        """See ``Trust``."""
        path = root / DESCRIPTION
        try:
            described = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: can't be read ({error.strerror}); install the bundle again") from error
        try:
            signed = (root / signature.SIGNATURE).read_bytes()
        except OSError:
            signed = b""
        return self.vouches(described, signed, root)

    def vouches(self, described: bytes, signed: bytes, where: Path) -> str:
        """``check`` of bytes: a ``bundle.toml`` and its signature (empty: none)."""
        if hashlib.sha256(described).hexdigest() in self._of_program():
            return PROGRAM
        keys = {one.raw: one.name for one in self.keys()}
        keys |= {raw: "the configuration's key" for raw in self._configured if raw not in keys}
        by = signature.signer(described, signed, keys) if signed else None
        if by is not None:
            return f"{keys[by]} ({signature.fingerprint(by)})"
        if not self._required:
            return NOBODY
        if not signed:
            raise BundleError(
                f"{where}: not signed (no {signature.SIGNATURE}); have its maker sign it with bedside models sign, or set "
                "models.require_signature to false"
            )
        known = (
            ", ".join(f"{name} {signature.fingerprint(raw)}" for raw, name in keys.items()) or "no key is trusted yet"
        )
        raise BundleError(
            f"{where}: signed by no trusted key, or changed after it was signed ({known}); if its maker is to be trusted: "
            "bedside models trust KEY, else get the bundle again"
        )

    def changed(self) -> int:
        """See ``Trust``."""
        try:
            return 0 if self._file is None else self._file.stat().st_mtime_ns
        except OSError:
            return 0

    def keys(self) -> tuple[TrustedKey, ...]:
        """The keys added on this box; raises ``BundleError`` when their file is damaged."""
        if self._file is None:
            return ()
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=tuple[TrustedKey, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError) as error:
            raise BundleError(f"{self._file}: can't be read ({error}); remove it and trust the keys again") from error

    def add(self, key: TrustedKey) -> bool:
        """Trust a key from now on; whether it is new. Raises ``BundleError`` (no such key) or ``OSError``."""
        mine = self.keys()
        if any(one.raw == key.raw for one in mine):
            return False
        self._write((*mine, key))
        return True

    def remove(self, which: str) -> TrustedKey:
        """Trust a key no more, named by its name, fingerprint or text; raises ``BundleError`` when there is none such."""
        mine = self.keys()
        for one in mine:
            if which in (one.name, one.key, signature.fingerprint(one.raw)):
                self._write(tuple(other for other in mine if other is not one))
                return one
        known = ", ".join(one.name for one in mine) or "none"
        raise BundleError(f"no trusted key is called {which!r}; these are trusted on this box: {known}")

    def _write(self, keys: Iterable[TrustedKey]) -> None:
        if self._file is None:
            raise BundleError("no state folder is set, so no key can be kept; name the configuration with --config")
        self._files.make_folder(self._file.parent)
        with durable(self._files, self._file) as file:
            file.write(msgspec.json.format(msgspec.json.encode(tuple(keys)), indent=1))

    def _of_program(self) -> set[str]:
        if self._program is None:
            return set()
        known = set()
        for path in self._program.glob(f"*/{DESCRIPTION}"):
            with contextlib.suppress(OSError):
                known.add(hashlib.sha256(path.read_bytes()).hexdigest())
        return known


def settings_of(config: Config) -> TrustSettings:
    """Whose bundles may serve on this box, as configured."""
    return TrustSettings(
        required=config.models.require_signature,
        file=str(config.state / FILE),
        program=str(shipped_models()),
        keys=tuple(signature.public_key(key) for key in config.models.trusted_keys),
    )


def trusted(settings: TrustSettings) -> TrustedKeys:
    """The trust that the settings say."""
    file, program = (Path(path) if path else None for path in (settings.file, settings.program))
    return TrustedKeys(file, configured=settings.keys, program=program, required=settings.required)


def of_config(config: Config) -> TrustedKeys:
    """The trust that the configuration says."""
    return trusted(settings_of(config))
