"""A console whose stethoscope plays what a test gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.capture.stethoscope import Stethoscope
from appliance.capture.stethoscope_messages import Failure, Wanted
from appliance.config import StethoscopeConfig
from appliance.reading.listening import listener
from appliance.view import attaching
from tests.console_world import World
from tests.simulated_stethoscope import PlayedSource, int32
from tools.simulate import sounds


class ListeningWorld(World):
    """A box with a stethoscope. ``sound``: what it hears; ``failure``: what then goes wrong; ``sources``: each recording's."""

    def __init__(self, folder: Path, **console: Any) -> None:
        super().__init__(folder, **console)
        self.sound: npt.NDArray[np.int32] = int32(sounds.heart(20.0, 4000)[0])
        self.failure: Failure | None = None
        self.waits: int | None = None
        self.sources: list[PlayedSource] = []
        self.stethoscope = Stethoscope(
            StethoscopeConfig(longest=30),
            self.intake,
            listener,
            attach=attaching(self.store, self.clock.now),
            open_source=self._open,
        )
        self.context = msgspec.structs.replace(self.context, stethoscope=self.stethoscope)
        self.server._app.state.site.context = self.context

    def close(self) -> None:
        self.stethoscope.stop()
        super().close()

    def _open(self, _wanted: Wanted) -> PlayedSource:
        self.sources.append(PlayedSource(self.sound, failure=self.failure, waits=self.waits))
        return self.sources[-1]
