"""The benchmark of the DICOM door: what its ratios say, and that it does without the right to run before others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tools.bench import _precedence, ingest


def test_a_ratio_is_the_median_of_those_of_the_rounds_with_its_quartiles_beside_it() -> None:
    work = ingest.Work("512x512", Path("none"), 100, 5, {"stock": 1.3}, "REALTIME")
    made = ingest._rates(work, "stock", [1.0, 1.0, 1.0, 2.0, 4.0], [1.0, 1.5, 2.0, 6.0, 40.0])
    assert made.ratio == 2.0
    assert "1.50 to 3.00" in made.peer_name
    assert (made.ours, made.limit, made.n, made.passed) == (100.0, 1.3, 5, True)
    assert ingest._rates(work, "orthanc", [1.0, 1.0], [1.0, 1.0]).limit is None


@pytest.mark.parametrize("precedence", ["REALTIME", "AHEAD"])
def test_without_the_right_to_precedence_a_program_runs_and_it_is_said_once(
    precedence: _precedence.Precedence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    monkeypatch.setattr(os, "setpriority", refused)
    monkeypatch.setattr(_precedence, "_noted", set())
    for _ in range(2):
        assert _precedence.start([sys.executable, "-c", ""], precedence).wait(20) == 0
    assert capsys.readouterr().err.count("Operation not permitted") == 1


def test_the_disk_alone_keeps_what_it_is_asked_to(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(1000))
    work = ingest.Work("tiny", tmp_path / "image", 3, 1, {}, "AHEAD")
    keep = ingest._disk_alone(tmp_path / "alone", work)
    keep()
    keep()
    kept = [path for path in (tmp_path / "alone").iterdir() if path.name != "log"]
    assert [path.stat().st_size for path in kept] == [1000] * 6
