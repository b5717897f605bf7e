"""From the probe's screen to an answer: a whole daemon, the shipped models, a clip."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from appliance import config
from appliance.capture.video_takes import Whose
from appliance.daemon import Daemon
from appliance.records import Modality
from tests.probe_movies import live, movie

CONFIG = """
[storage]
state = "{state}"
refuse_below = 16
reserve = 4
[dicom]
enabled = false
[console]
enabled = false
[link]
enabled = false
[ultrasound]
source = "{source}"
pre_roll = 1
"""


@pytest.mark.slow
def test_a_clip_from_the_screen_is_read_like_any_capture(tmp_path: Path) -> None:
    source = movie(tmp_path, repeat=5)
    daemon = Daemon(config.parse(CONFIG.format(state=tmp_path / "state", source=source)))
    daemon.start()
    try:
        door = daemon.ultrasound
        assert door is not None
        live(door, 20)
        door.record(Whose())
        time.sleep(1.0)
        take = door.finish()
        assert take is not None
        kept = door.keep(take.id)
        end = time.monotonic() + 120
        while (reading := daemon.store.captures.reading(kept.capture_id)) is None:
            assert time.monotonic() < end, daemon.problems()
            time.sleep(0.2)
        assert reading.modality is Modality.LUNG_ULTRASOUND
        assert reading.bundle, "a model has judged it"
        assert reading.status == "read" or reading.refusal is not None
    finally:
        daemon.stop()
