"""A console with a live probe: a made-up machine's screen behind the ultrasound door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec

from appliance.capture.video import VideoDoor
from appliance.config import ConsoleConfig, UltrasoundConfig
from appliance.console.server import ConsoleServer
from appliance.view import attaching
from tests.console_world import World
from tests.probe_movies import movie


class ScanWorld(World):
    """A ``World`` whose console shows ``source``, by default a movie of a sector for some seconds."""

    def __init__(self, folder: Path, source: str = "", **ultrasound: Any) -> None:
        super().__init__(folder)
        given = {"source": source or str(movie(folder, repeat=40)), "pre_roll": 1.0, **ultrasound}
        self.door = VideoDoor(UltrasoundConfig(**given), self.intake, attaching(self.store, self.clock.now))
        self.door.start()
        self.server.stop()
        self.client.close()
        self.context = msgspec.structs.replace(self.context, ultrasound=self.door)
        self.server = ConsoleServer(ConsoleConfig(port=0, sign_in="off"), self.context)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.client = httpx.Client(base_url=self.url, headers={"accept-language": "en"}, timeout=30)

    def close(self) -> None:
        self.door.stop()
        super().close()
