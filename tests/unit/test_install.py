"""Claims about installing bundles: only what a trusted key signed, never backwards, and whole or not at all."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from appliance.cli import app
from appliance.config import Config, ModelsConfig, StorageConfig, shipped_models
from appliance.health.clock import Clock
from appliance.health.status import audit_of
from appliance.inference import package, signature
from appliance.inference.bundle import BundleError
from appliance.inference.catalogue import Catalogue
from appliance.inference.engine import EngineError
from appliance.inference.install import Installed, install
from appliance.inference.installing import distrust, install_here, trust
from appliance.inference.trust import PROGRAM, TrustedKeys, of_config
from appliance.store.notes import take
from tests.boxes import open_store
from tests.networks import description, network, quantised, seal, write_bundle

now = Clock().now


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised("mobilenet", tmp_path_factory.mktemp("networks"))[1]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signature.generate(tmp_path / "maker.key")
    return tmp_path / "maker.key"


@pytest.fixture
def config(tmp_path: Path, key: Path) -> Config:
    """A box whose own models are none and that trusts the maker's key."""
    (tmp_path / "none").mkdir()
    made = Config(
        storage=StorageConfig(state=str(tmp_path / "state"), refuse_below=16, reserve=4),
        models=ModelsConfig(directory=str(tmp_path / "none"), engine="cpu"),
    )
    trust(made, public(key), "maker", now)
    return made


def public(key: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(signature.private_key(key))
    return signature.public_text(private.public_key().public_bytes_raw())


@pytest.fixture
def made(tmp_path: Path, shipped: Path, key: Path) -> Callable[[str], Path]:
    """Makes a signed bundle of a version."""

    def make(version: str) -> Path:
        root = write_bundle(tmp_path / "handed" / version, shipped, version=version)
        signature.sign(root, signature.private_key(key))
        return root

    return make


def zipped(root: Path, inside: str = "") -> Path:
    path = root.parent / f"{root.name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in root.rglob("*"):
            if file.is_file():
                archive.write(file, inside + str(file.relative_to(root)))
    return path


def serving(config: Config) -> str:
    """The version that a restarted box serves."""
    folders = (config.models_directory, config.models_installed)
    catalogue = Catalogue(folders, config.models_cache, "cpu", of_config(config))
    catalogue.open()
    try:
        return catalogue.bundles["made-up"].bundle.version if "made-up" in catalogue.bundles else ""
    finally:
        catalogue.close()


def events(config: Config) -> list[tuple[str, str, str]]:
    entries, verdict = audit_of(config)
    assert verdict.broken is None
    return [(one["event"], one["subject"], one["detail"]) for one in entries if one["event"] != "start"]


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a folder"])
def test_a_signed_bundle_is_installed_and_serves(config: Config, made: Callable[[str], Path], form: str) -> None:
    root = made("1.0.0")
    source = root if form == "folder" else zipped(root, "chest/" if "with" in form else "")
    done = install_here(config, source, now)
    assert (done.id, done.version, done.before, done.news) == ("made-up", "1.0.0", "", True)
    assert done.signed_by.startswith("maker (")
    assert serving(config) == "1.0.0"
    assert not install_here(config, source, now).news
    what = [event for event in events(config) if event[0] == "bundle-installed"]
    assert len(what) == 1
    assert "none → 1.0.0" in what[0][2]
    assert "signed by maker (" in what[0][2]


def tampered(root: Path) -> None:
    path = root / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def reworded(root: Path) -> None:
    path = root / "bundle.toml"
    path.write_text(path.read_text().replace("see a doctor", "see no doctor"))


def unsigned(root: Path) -> None:
    (root / signature.SIGNATURE).unlink()


def of_a_stranger(root: Path) -> None:
    signature.generate(root.parent / "stranger.key")
    signature.sign(root, signature.private_key(root.parent / "stranger.key"))


def incomplete(root: Path) -> None:
    (root / "golden" / "golden.npz").unlink()


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (tampered, "model.onnx has sha256"),
        (reworded, "signed by no trusted key, or changed after"),
        (unsigned, "not signed.*models sign"),
        (of_a_stranger, "signed by no trusted key.*maker.*models trust"),
        (incomplete, "is not there; get the bundle again"),
    ],
)
@pytest.mark.parametrize("as_zip", [False, True])
def test_what_is_not_as_a_trusted_key_signed_it_is_refused_and_audited(
    config: Config, made: Callable[[str], Path], spoil: Callable[[Path], None], cause: str, as_zip: bool
) -> None:
    install_here(config, made("1.0.0"), now)
    root = made("2.0.0")
    spoil(root)
    with pytest.raises(BundleError, match=cause):
        install_here(config, zipped(root) if as_zip else root, now)
    assert serving(config) == "1.0.0"
    assert events(config)[-1][0] == "bundle-refused"
    assert not list(config.models_installed.glob(".partial-*"))


def test_a_bundle_that_fails_its_golden_check_here_is_refused(
    config: Config, tmp_path: Path, shipped: Path, key: Path
) -> None:
    import onnx

    root = write_bundle(tmp_path / "wrong", shipped, version="1.0.0")
    onnx.save(network("mobilenet", seed=99), root / "model.onnx")
    seal(root, description("made-up", "1.0.0", {"net": "model.onnx"}))
    signature.sign(root, signature.private_key(key))
    with pytest.raises(EngineError, match="refused by the golden check"):
        install_here(config, root, now)
    assert serving(config) == ""


def test_an_older_version_is_refused_unless_forced_and_forcing_is_audited_and_lasts(
    config: Config, made: Callable[[str], Path]
) -> None:
    old, new = made("1.9.0"), made("1.10.0")
    install_here(config, new, now)
    with pytest.raises(BundleError, match=r"1\.9\.0 is older than 1\.10\.0.*--force"):
        install_here(config, old, now)
    assert serving(config) == "1.10.0"
    assert install_here(config, old, now, force=True).forced
    assert events(config)[-1][2].endswith(", forced")
    assert serving(config) == "1.9.0"
    assert serving(config) == "1.9.0"
    assert not install_here(config, new, now).forced
    assert serving(config) == "1.10.0"


def test_going_back_behind_a_bundle_of_the_program_needs_force_too(
    config: Config, made: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(made("3.0.0"), tmp_path / "none" / "made-up")
    old = made("2.0.0")
    with pytest.raises(BundleError, match="older than"):
        install_here(config, old, now)
    install_here(config, old, now, force=True)
    assert serving(config) == "2.0.0"
    install_here(config, made("3.1.0"), now)
    assert serving(config) == "3.1.0"


def test_one_version_never_has_two_contents(
    config: Config, made: Callable[[str], Path], key: Path, tmp_path: Path
) -> None:
    install_here(config, made("1.0.0"), now)
    other = tmp_path / "handed" / "1.0.0"
    reworded(other)
    signature.sign(other, signature.private_key(key))
    with pytest.raises(BundleError, match="a version never changes"):
        install_here(config, other, now)


class PowerCutError(BaseException):
    """The box is gone: nothing that comes after it happens."""


OPERATIONS = ("fsync", "rename", "replace", "symlink", "unlink", "rmdir", "mkdir")


def cut_at(patch: pytest.MonkeyPatch, moment: int) -> list[str]:
    """Let operation number ``moment`` on the disk, and all after it, not happen; the operations seen before."""
    seen: list[str] = []

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def operation(*given: Any, **named: Any) -> Any:
            if len(seen) >= moment:
                raise PowerCutError
            seen.append(name)
            return real(*given, **named)

        return operation

    for name in OPERATIONS:
        patch.setattr(os, name, wrap(name))
    return seen


@pytest.mark.parametrize("forced", [False, True])
def test_a_power_cut_at_any_instruction_leaves_a_whole_bundle_and_the_next_try_succeeds(
    made: Callable[[str], Path], tmp_path: Path, key: Path, forced: bool
) -> None:
    """The old one or the new one, never none; what is left over is cleared away."""
    before, after = (made("2.0.0"), made("1.0.0")) if forced else (made("1.0.0"), made("2.0.0"))
    keys = TrustedKeys(configured=[signature.public_key(public(key))])

    def put(source: Path, folder: Path) -> Installed:
        return install(source, folder, (), keys, lambda _: None, force=forced)

    put(before, tmp_path / "base")
    moments, versions = 0, set()
    while True:
        folder = tmp_path / f"box-{moments}"
        shutil.copytree(tmp_path / "base", folder, symlinks=True)
        with pytest.MonkeyPatch.context() as patch:
            seen = cut_at(patch, moments)
            try:
                put(after, folder)
                break
            except PowerCutError:
                assert len(seen) == moments
        versions.add(there(folder, keys))
        assert put(after, folder).version == after.name
        assert there(folder, keys) == after.name
        assert not list(folder.glob(".partial-*"))
        moments += 1
    assert moments > 12
    assert versions == {"1.0.0", "2.0.0"}


def there(folder: Path, keys: TrustedKeys) -> str:
    """The version of the one bundle in the folder, after everything of it was checked."""
    from appliance.inference.bundle import load

    (link,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    assert keys.check(link).startswith("the configuration's key")
    return load(link).version


def hostile(path: Path, root: Path, change: Callable[[zipfile.ZipFile], None]) -> Path:
    shutil.copy(zipped(root), path)
    with zipfile.ZipFile(path, "a") as archive:
        change(archive)
    return path


def link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("card.md")
    entry.external_attr = 0o120777 << 16
    archive.writestr(entry, "/etc/passwd")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda archive: archive.writestr("../outside", "x"), "leads outside"),
        (lambda archive: archive.writestr("/etc/outside", "x"), "leads outside"),
        (lambda archive: archive.writestr("a/../../outside", "x"), "leads outside"),
        (lambda archive: archive.writestr("C:\\outside", "x"), "leads outside"),
        (link, "is a link"),
        (lambda archive: archive.writestr("model.onnx", "another"), "twice"),
        (lambda archive: archive.writestr("packed", "x", zipfile.ZIP_LZMA), "packed in a way"),
        (lambda archive: [archive.writestr(f"{n}", "") for n in range(package.MOST_FILES)], "entries"),
    ],
)
def test_a_hostile_zip_is_refused_as_a_whole(
    config: Config, made: Callable[[str], Path], tmp_path: Path, change: Callable[[zipfile.ZipFile], None], cause: str
) -> None:
    source = hostile(tmp_path / "hostile.zip", made("1.0.0"), change)
    before = {path for path in tmp_path.rglob("*") if "state" not in path.parts}
    with pytest.raises(BundleError, match=cause):
        install_here(config, source, now)
    assert {path for path in tmp_path.rglob("*") if "state" not in path.parts} == before
    assert serving(config) == ""


def test_a_zip_bomb_is_refused_before_it_fills_the_disk(
    config: Config, made: Callable[[str], Path], key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MOST_BYTES", 200_000)
    root = made("1.0.0")
    (root / "model.onnx").write_bytes(bytes(5_000_000))
    seal(root, description("made-up", "1.0.0", {"net": "model.onnx"}))
    signature.sign(root, signature.private_key(key))
    source = zipped(root)
    assert source.stat().st_size < 300_000
    with pytest.raises(BundleError, match="unpacks to more than"):
        install_here(config, source, now)
    assert sum(path.stat().st_size for path in config.models_installed.rglob("*") if path.is_file()) == 0


def test_a_link_in_a_folder_that_leads_outside_is_refused(config: Config, made: Callable[[str], Path]) -> None:
    root = made("1.0.0")
    shutil.move(root / "model.onnx", root.parent / "elsewhere.onnx")
    (root / "model.onnx").symlink_to(root.parent / "elsewhere.onnx")
    with pytest.raises(BundleError, match="lies outside"):
        install_here(config, root, now)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"plain text"])
def test_what_is_no_bundle_is_refused_with_a_remedy(config: Config, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "thing.zip").write_bytes(content)
    with pytest.raises(BundleError, match="no zip that can be read"):
        install_here(config, tmp_path / "thing.zip", now)
    with pytest.raises(BundleError, match="is not there"):
        install_here(config, tmp_path / "nothing.zip", now)
    with pytest.raises(BundleError, match=r"has no bundle\.toml"):
        install_here(config, tmp_path, now)


def test_a_key_that_is_trusted_no_more_lets_its_bundles_serve_no_more(
    config: Config, made: Callable[[str], Path]
) -> None:
    install_here(config, made("1.0.0"), now)
    assert serving(config) == "1.0.0"
    distrust(config, "maker", now)
    assert serving(config) == ""
    assert [event[0] for event in events(config)] == ["key-trusted", "bundle-installed", "key-distrusted"]
    with pytest.raises(BundleError, match="no trusted key is called"):
        distrust(config, "maker", now)


def test_the_bundles_of_the_program_need_no_key_and_a_changed_copy_of_them_does(tmp_path: Path) -> None:
    keys = TrustedKeys(program=shipped_models())
    for root in shipped_models().glob("*/bundle.toml"):
        assert keys.check(root.parent) == PROGRAM
    shutil.copytree(shipped_models() / "heart-sound", tmp_path / "copy")
    assert keys.check(tmp_path / "copy") == PROGRAM
    (tmp_path / "copy" / "bundle.toml").open("a").write("\n")
    with pytest.raises(BundleError, match="not signed"):
        keys.check(tmp_path / "copy")


def test_where_signatures_are_not_required_the_log_says_that_nobody_vouches(
    tmp_path: Path, made: Callable[[str], Path], config: Config
) -> None:
    import msgspec

    loose = msgspec.structs.replace(config, models=msgspec.structs.replace(config.models, require_signature=False))
    root = made("1.0.0")
    unsigned(root)
    assert install_here(loose, root, now).signed_by == "nobody"
    assert "signed by nobody" in events(loose)[-1][2]
    assert serving(loose) == "1.0.0"
    assert serving(config) == ""


def test_beside_a_running_daemon_the_entry_waits_for_it(config: Config, made: Callable[[str], Path]) -> None:
    daemon = open_store(Path(config.storage.state))
    try:
        install_here(config, made("1.0.0"), now)
        assert take(daemon) == 1
        assert take(daemon) == 0
    finally:
        daemon.close()
    assert events(config)[-1][:2] == ("bundle-installed", "made-up")


def test_the_commands_make_sign_trust_and_install(tmp_path: Path, shipped: Path) -> None:
    (tmp_path / "none").mkdir()
    settings = tmp_path / "bedside.toml"
    settings.write_text(
        f'[storage]\nstate = "{tmp_path / "state"}"\nrefuse_below = 16\nreserve = 4\n'
        f'[models]\ndirectory = "{tmp_path / "none"}"\nengine = "cpu"\n'
    )
    root = write_bundle(tmp_path / "made", shipped)

    def bedside(*words: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, ["models", *words])
        assert done.exit_code == status, done.output
        return done.output

    text = bedside("keygen", str(tmp_path / "k.key")).strip()
    assert (tmp_path / "k.key").stat().st_mode & 0o777 == 0o600
    bedside("keygen", str(tmp_path / "k.key"), status=1)
    bedside("sign", str(root), "--key", str(tmp_path / "k.key"))
    box = ["--config", str(settings)]
    assert "no key is trusted yet" in bedside("install", str(root), *box, status=1)
    assert "is no public key" in bedside("trust", "nonsense", *box, status=1)
    assert "trusted: Ministry" in bedside("trust", text, "--name", "Ministry", *box)
    assert "Ministry" in bedside("trust", *box)
    assert "made-up 1.0.0 is installed; signed by Ministry" in bedside("install", str(root), *box)
    assert "serves already" in bedside("install", str(root), *box)
    assert "made-up" in bedside("list", *box)
    assert "trusted no more: Ministry" in bedside("trust", "--remove", "Ministry", *box)
