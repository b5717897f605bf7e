"""What attackers get of the real box, broker and hub: nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.attack.__main__ import ATTACKERS, attack
from tools.attack.report import planted
from tools.servers import MissingServer

SHORT = ("thief", "guest", "device")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "names",
    [pytest.param(SHORT, id="short"), pytest.param(tuple(ATTACKERS), id="all", marks=pytest.mark.slow)],
)
def test_no_attacker_gets_anything_and_every_control_holds(tmp_path: Path, names: tuple[str, ...]) -> None:
    try:
        tries = list(attack(tmp_path, names))
    except MissingServer as error:
        pytest.skip(str(error))
    assert [one for one in tries if one.got] == []
    assert {one.who for one in tries if one.what.startswith("control")} == {one.who for one in tries}


@pytest.mark.parametrize("way", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_planted_name_would_be_found(way: str) -> None:
    assert planted(b"\x00\xff" + "NKOSAZANA".encode(way) + b"\xff")
    assert planted("Zubeida^Nkosazana")
    assert not planted(b"nobody")
