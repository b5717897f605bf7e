"""A capture whose files have left the box is still shown, and the console says where they are."""

from __future__ import annotations

from pathlib import Path

from appliance.records import Triage
from appliance.store.retention import Retention
from tests.console_world import World, finding, png


def test_a_removed_capture_keeps_its_answer_and_says_where_the_original_is(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        capture = world.keep(png(shade=7))
        world.read(capture, triage=Triage.URGENT, findings=(finding("Consolidation", 0.71),))
        world.report(capture, receipt=True)
        assert world.client.get(f"/api/captures/{capture}/original").status_code == 200
        retention = Retention(world.store, 3650)
        retention._short = lambda: 1  # type: ignore[method-assign]  # the disk is full
        assert retention.tend() == [capture]
        assert "Consolidation" in world.client.get(f"/captures/{capture}").text
        for what in ("original", "sound"):
            answer = world.client.get(f"/api/captures/{capture}/{what}")
            assert answer.status_code == 410
            assert "have left this box" in answer.json()["error"]
            assert "The hub has the original" in answer.json()["remedy"]
        assert world.client.get(f"/api/captures/{capture}/preview").status_code == 404
    finally:
        world.close()
