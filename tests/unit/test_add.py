"""``bedside add`` beside a running daemon: through the console's door, whoever is signed in there."""

from __future__ import annotations

from pathlib import Path

import httpx

from appliance.capture.add import add_files
from appliance.config import Config, ConsoleConfig, StorageConfig
from appliance.records import Modality
from appliance.store.people import local_secret
from tests.console_world import World, png


def test_files_are_kept_beside_a_daemon_that_asks_people_to_sign_in(tmp_path: Path) -> None:
    world = World(tmp_path, sign_in="on")
    picture = tmp_path / "film.png"
    picture.write_bytes(png())
    config = Config(
        storage=StorageConfig(state=str(world.store.folder)),
        console=ConsoleConfig(port=int(httpx.URL(world.url).port or 0)),
    )
    try:
        missing, kept = add_files(config, [tmp_path / "nothing.png", picture], Modality.CHEST_XRAY, world.store.now)
        assert (missing.kept, kept.kept) == (False, True), kept.outcome
        assert "No such file" in missing.outcome
        assert len(world.store.captures.latest()) == 1
    finally:
        world.close()


def test_the_boxs_own_token_is_worth_nothing_at_another_box_or_for_an_administrators_pages(tmp_path: Path) -> None:
    one, other = World(tmp_path / "one", sign_in="on"), World(tmp_path / "other", sign_in="on")
    try:
        for world, status in ((one, 200), (other, 401)):
            headers = {"authorization": f"Bearer {local_secret(one.store.key)}"}
            assert httpx.get(f"{world.url}/api/captures", headers=headers).status_code == status
            assert httpx.get(f"{world.url}/people", headers=headers).status_code == 303, "a page asks for a PIN"
    finally:
        one.close()
        other.close()
