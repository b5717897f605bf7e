"""The whole system under kills and cuts: see ``tools.torture``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def torture(folder: Path, *arguments: str) -> dict[str, int]:
    out = folder / "torture.json"
    done = subprocess.run(
        [sys.executable, "-m", "tools.torture", "--json", str(out), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.exists(), done.stdout + done.stderr
    outcome: dict[str, int] = json.loads(out.read_text())
    return outcome


@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_doubled_or_corrupt_after_25_kills(tmp_path: Path) -> None:
    outcome = torture(tmp_path, "--kills", "25", "--seed", "25")
    assert outcome["acknowledged"] > 20
    assert (outcome["lost"], outcome["doubled"], outcome["corrupt"]) == (0, 0, 0)
    assert outcome["delivered"] == outcome["acknowledged"]


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_nothing_acknowledged_is_lost_doubled_or_corrupt_after_2000_kills(tmp_path: Path) -> None:
    outcome = torture(tmp_path, "--kills", "2000", "--seed", "2000")
    assert outcome["acknowledged"] > 1000
    assert (outcome["lost"], outcome["doubled"], outcome["corrupt"]) == (0, 0, 0)
