"""The box key sealed to a token, with SoftHSM for the token: who has the disk and not the token has nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.store import token
from appliance.store.erase import erase, seal_to_token
from appliance.store.errors import StoreError
from appliance.store.files import RealFiles
from appliance.store.keys import open_key
from tests.boxes import keep, open_store

MODULES = [Path(one) for one in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")]
pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")


class Token:
    """A token of SoftHSM in a folder of its own."""

    def __init__(self, folder: Path, module: Path) -> None:
        self.module = str(module)
        self.pin_file = folder / "pin"
        self.pin_file.write_text("1234\n")

    def seal(self, state: Path) -> None:
        seal_to_token(state, module=self.module, label="bedside", pin_file=self.pin_file)


@pytest.fixture(scope="module")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    module = next((one for one in MODULES if one.exists()), None)
    if module is None:
        pytest.skip("SoftHSM is not installed (apt-get install softhsm2)")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))  # the module reads it once, when it is loaded
        command = ["softhsm2-util", "--init-token", "--free", "--label", "bedside", "--pin", "1234", "--so-pin", "5678"]
        subprocess.run(command, check=True, capture_output=True)
        yield Token(folder, module)


def test_a_sealed_box_goes_on_and_its_key_is_nowhere_on_the_disk(tmp_path: Path, softhsm: Token) -> None:
    store = open_store(tmp_path)
    kept = keep(store, b"an image")
    store.close()
    secret = (tmp_path / "box.key").read_bytes()
    softhsm.seal(tmp_path)
    assert not (tmp_path / "box.key").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]
    store = open_store(tmp_path)
    blob = store.captures.get(kept.capture_id).capture.sha256
    assert b"".join(store.vault.frames(blob)) == b"an image"
    store.close()
    with pytest.raises(StoreError, match="sealed already"):
        softhsm.seal(tmp_path)


def test_without_its_token_or_pin_a_box_says_so_and_makes_no_new_key(tmp_path: Path, softhsm: Token) -> None:
    open_store(tmp_path).close()
    softhsm.seal(tmp_path)
    held = (tmp_path / token.FILE).read_bytes()
    for wrong, words in (
        (held.replace(b'"token":"bedside"', b'"token":"another"'), "another"),
        (held.replace(b"box key", b"box kex"), "can't be used"),
        (held.replace(softhsm.module.encode(), b"/nowhere.so"), "nowhere"),
        (held.replace(str(softhsm.pin_file).encode(), b"/no/pin"), "PIN must be readable"),
        (held[:-9] + b'"', "can't be read"),
    ):
        assert wrong != held
        (tmp_path / token.FILE).write_bytes(wrong)
        with pytest.raises(StoreError, match=words):
            open_store(tmp_path)
        assert not (tmp_path / "box.key").exists()
    (tmp_path / token.FILE).write_bytes(held)
    open_store(tmp_path).close()


def test_a_wrong_pin_leaves_the_key_where_it_was(tmp_path: Path, softhsm: Token) -> None:
    open_store(tmp_path).close()
    (tmp_path / "wrong-pin").write_text("0000")
    with pytest.raises(StoreError, match="can't be used"):
        seal_to_token(tmp_path, module=softhsm.module, label="bedside", pin_file=tmp_path / "wrong-pin")
    assert (tmp_path / "box.key").exists()
    assert not (tmp_path / token.FILE).exists()


def test_another_tokens_key_is_not_taken_for_the_boxs(tmp_path: Path, softhsm: Token) -> None:
    for name in ("one", "two"):
        open_store(tmp_path / name).close()
        softhsm.seal(tmp_path / name)
    one, two = ((tmp_path / name / token.FILE).read_text() for name in ("one", "two"))
    key = [text.partition('"key":"')[2].partition('"')[0] for text in (one, two)]
    (tmp_path / "one" / token.FILE).write_text(one.replace(key[0], key[1]))
    with pytest.raises(StoreError, match="belongs to another box"):
        open_key(tmp_path / "one", RealFiles())


def test_erasing_a_sealed_box_leaves_nothing(tmp_path: Path, softhsm: Token) -> None:
    open_store(tmp_path).close()
    softhsm.seal(tmp_path)
    erase(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"lock"}
