"""``bedside models install | trust`` on this box: the parts called with its configuration, each outcome in the audit log.

What this module keeps true: whatever changes which bundle may serve, or was refused to, stands in the audit log, with whose
signature it was; the golden check runs on the engine that is configured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from appliance.config import Config
from appliance.inference import choice, signature
from appliance.inference.bundle import Bundle, BundleError
from appliance.inference.cache import Cache
from appliance.inference.engine import EngineError
from appliance.inference.install import Installed, install
from appliance.inference.trust import TrustedKey, of_config
from appliance.records import Moment
from appliance.store.notes import note

Now = Callable[[], Moment]


def install_here(config: Config, source: Path, now: Now, *, force: bool = False) -> Installed:
    """Install a bundle (folder or zip) on this box.

    Raises:
        BundleError: It may not serve, or is older than what does; nothing has changed.
        EngineError: It fails its golden check here; nothing has changed.
        StoreError: It is installed, but the audit log could not be written.
        OSError: The disk refused; what was installed before serves.
    """
    from appliance.inference.catalogue import serve

    wanted, cache = choice.setting(config.models.engine), Cache(config.models_cache / "artefacts")

    def accept(found: Bundle) -> None:
        serve(found, wanted, cache).close()

    others = (config.models_directory,)
    try:
        done = install(source, config.models_installed, others, of_config(config), accept, force=force)
    except (BundleError, EngineError) as error:
        note(config.storage, now, "bundle-refused", source.name, str(error)[:500])
        raise
    if done.news:
        how = ", forced" if done.forced else ""
        detail = f"{done.before or 'none'} → {done.version} {done.sha256[:12]}, signed by {done.signed_by}{how}"
        note(config.storage, now, "bundle-installed", done.id, detail)
    return done


def trust(config: Config, key: str, name: str, now: Now) -> str:
    """Trust a public key (base64) from now on; its name and fingerprint.

    Raises ``BundleError`` (no such key), ``StoreError`` or ``OSError``.
    """
    raw = signature.public_key(key)
    mark = signature.fingerprint(raw)
    added = TrustedKey(name=name or mark, key=signature.public_text(raw), added=now().wall)
    if of_config(config).add(added):
        note(config.storage, now, "key-trusted", mark, added.name)
    return f"{added.name} {mark}"


def distrust(config: Config, which: str, now: Now) -> str:
    """Trust a key no more, named by name, fingerprint or text; its name and fingerprint. Raises as ``trust``."""
    gone = of_config(config).remove(which)
    mark = signature.fingerprint(gone.raw)
    note(config.storage, now, "key-distrusted", mark, gone.name)
    return f"{gone.name} {mark}"
