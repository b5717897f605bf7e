"""Areas that were confirmed are remembered; a damaged file of them is none, and stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.capture.video_area import rectangle
from appliance.capture.video_regions import Regions
from appliance.store.files import RealFiles


def test_an_area_is_remembered_until_it_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "ring/regions.json"
    area = rectangle(100, 200, (0.1, 0.2, 0.8, 0.9))
    Regions(RealFiles(), path).remember("grabber", area)
    assert Regions(RealFiles(), path).known() == {"grabber": area}
    Regions(RealFiles(), path).forget("grabber")
    assert Regions(RealFiles(), path).known() == {}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b"\xff\xfe\x00", b'{"\xc3\x28": {}}', b"[" * 100_000])
def test_a_damaged_file_means_that_no_area_is_known(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "regions.json"
    path.write_bytes(content)
    assert Regions(RealFiles(), path).known() == {}
