"""The main job, end to end, as the README's first command runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(300)
def test_the_demonstration_delivers_everything_once_and_brings_a_review_back(tmp_path: Path) -> None:
    out = tmp_path / "summary.json"
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--exit", "--json", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(out.read_text())
    assert summary["captured"] == 7
    assert summary["delivered"] == 7
    assert (summary["lost"], summary["doubled"]) == (0, 0)
    assert summary["reviewed"] == 1
    assert summary["read"] + summary["refused"] == 7
    assert summary["read"] >= 4, "the three films of the chest and a sound at least"
    assert summary["refused"] >= 1, "the extremity is no chest"
    assert summary["bytes_sent"] > 1_000_000
