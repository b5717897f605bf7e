"""The box goes off in the middle of a recording: what was heard up to the last second is there at the next start."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from appliance.capture.intake import Intake
from appliance.capture.stethoscope import Stethoscope
from appliance.config import StethoscopeConfig, StorageConfig
from appliance.health.clock import Clock
from appliance.reading.listening import listener
from appliance.store.store import Store

RECORDER = """
import sys, time
import numpy as np
from appliance.capture.intake import Intake
from appliance.capture.stethoscope import Stethoscope
from appliance.config import StethoscopeConfig, StorageConfig
from appliance.health.clock import Clock
from appliance.reading.listening import listener
from appliance.store.store import Store
from tests.simulated_stethoscope import PlayedSource

class Paced(PlayedSource):
    def blocks(self):
        for number, block in enumerate(super().blocks()):
            time.sleep(0.1)
            print(number + 1, flush=True)  # tenths of a second that have been heard
            yield block

store = Store(StorageConfig(state=sys.argv[1], refuse_below=16, reserve=4), Clock().now)
samples = (np.arange(200000) << 16).astype(np.int32)
scope = Stethoscope(StethoscopeConfig(), Intake(store, "site/box"), listener, open_source=lambda _: Paced(samples))
scope.begin("mitral")
time.sleep(60)
"""


def test_a_kill_in_the_middle_of_a_recording_loses_less_than_a_second(tmp_path: Path) -> None:
    recorder = subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert recorder.stdout is not None
    heard = 0
    while heard < 25:
        heard = int(recorder.stdout.readline())
    recorder.send_signal(signal.SIGKILL)
    recorder.wait()
    heard = int((recorder.stdout.read().split() or [str(heard)])[-1])
    store = Store(StorageConfig(state=str(tmp_path), refuse_below=16, reserve=4), Clock().now)
    try:
        scope = Stethoscope(StethoscopeConfig(), Intake(store, "site/box"), listener)
        scope.start()
        (entry,) = store.captures.latest()
        samples = soundfile.read(io.BytesIO(store.vault.read(entry.capture.sha256)), dtype="int32")[0]
        assert heard * 400 - 4000 <= samples.size <= heard * 400
        assert np.array_equal(samples, (np.arange(samples.size) << 16).astype(np.int32))
        assert "interrupted" in entry.capture.description
        assert scope.spool.names() == []
    finally:
        store.close()
