"""The ways in that are pages of the console: stethoscope and live ultrasound, unplugged in the middle; a nurse who looks."""

from __future__ import annotations

import html
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from appliance.capture.stethoscope_positions import PLACES
from appliance.console.listen_words import TROUBLE
from tools.programs import Programs
from tools.simulate import sounds
from tools.simulate.sound_device import SoundDevice
from tools.soak.ways import Owed, Way

_RATE_HZ = 4000


class Console(Way):
    """What a nurse's browser does: forms and the state of a page, as a script asks for them."""

    def __init__(self, programs: Programs, owed: Owed, seed: int) -> None:
        super().__init__(programs, owed, seed)
        self.browser = httpx.Client(base_url=programs.bedside_url, headers={"accept-language": "en"}, timeout=60)

    def post(self, path: str, **fields: str) -> httpx.Response:
        """Send a form from the console's own page."""
        return self.browser.post(path, data=fields, headers={"origin": self.programs.bedside_url})

    def state(self, path: str) -> dict[str, Any]:
        """The first event of a page."""
        with self.browser.stream("GET", path) as answer:
            line = next(one for one in answer.iter_lines() if one.startswith("data: "))
        found: dict[str, Any] = json.loads(line.removeprefix("data: "))
        return found


class Nurse(Console):
    """Looks at the list, at answers and pictures."""

    def once(self) -> None:
        """One look."""
        self.browser.get("/").raise_for_status()
        lines = self.browser.get("/api/captures?limit=100").raise_for_status().json()["captures"]
        if lines:
            one = self.chance.choice(lines)["id"]
            self.browser.get(f"/captures/{one}").raise_for_status()
            self.browser.get(f"/api/captures/{one}/preview")
            self.counts["looks"] += 1


class Listening(Console):
    """Records with the stethoscope; pulled out in one recording of three."""

    def __init__(self, programs: Programs, owed: Owed, seed: int, device: SoundDevice) -> None:
        super().__init__(programs, owed, seed)
        self._device = device

    def once(self) -> None:
        """One recording, kept."""
        place = self.chance.choice(list(PLACES))
        if not self._began(place):
            return
        made = sounds.heart if PLACES[place].modality == "heart-sound" else sounds.lung
        samples = made(20.0, _RATE_HZ, seed=self.chance.randrange(1 << 30))[0]
        player = self._device.play((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
        pulled = self.chance.random() < 0.35
        try:
            time.sleep(self.chance.uniform(2.0, 8.0))
            if pulled:
                self._device.pull_out()
            else:
                self.post("/listen/end", place=place)
            live = self.until("a recording ends", lambda: self._now("stopped", "idle"))
            if live["phase"] == "stopped":
                self._keep(live["recording"], place)
        finally:
            player.kill()
            player.wait()
            if pulled:
                self._device.plug_in()
                self.counts["pulled out"] += 1

    def _began(self, place: str) -> bool:
        """Whether it records; a refusal whose reason stands on the page is no fault of the box, but it is counted."""
        answer = self.post("/listen/begin", place=place, ticket="")
        if answer.status_code != httpx.codes.SEE_OTHER:
            raise ConnectionError(f"begin: {answer.status_code}")
        live = self.until("a recording begins", lambda: self._now("recording", "idle"))
        if live["phase"] == "recording":
            return True
        page = html.unescape(self.browser.get("/listen").text)
        code = next((code for code, words in TROUBLE.items() if words in page), "")
        if not code:
            raise ConnectionError("nothing was recorded, and the page does not say why")
        self.counts[f"not begun: {code}"] += 1
        return False

    def _now(self, *phases: str) -> dict[str, Any] | None:
        live = self.state("/listen/events")
        return live if live["phase"] in phases else None

    def _keep(self, recording: str, place: str) -> None:
        answer = self.post("/listen/keep", recording=recording, place=place, ticket="")
        if answer.status_code != httpx.codes.SEE_OTHER:
            raise ConnectionError(f"keep: {answer.status_code}")
        self.owed.captures.add(answer.headers["location"].rpartition("kept=")[2])
        self.counts["recordings"] += 1


class Cable:
    """A made-up ultrasound machine's screen as a transport stream over UDP; ``pull`` and ``plug`` as a cable."""

    def __init__(self, movie: Path, port: int) -> None:
        self._stream = movie.with_suffix(".ts")
        self._port = port
        encode = ["ffmpeg", "-v", "error", "-y", "-i", str(movie), "-c:v", "mpeg2video", "-q:v", "3", "-g", "12"]
        subprocess.run([*encode, str(self._stream)], check=True, stdin=subprocess.DEVNULL)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def source(self) -> str:
        """For ``ultrasound.source``."""
        return f"udp://127.0.0.1:{self._port}?fifo_size=100000"

    def plug(self) -> None:
        """The picture comes."""
        command = ["ffmpeg", "-v", "quiet", "-re", "-stream_loop", "-1", "-i", str(self._stream), "-c", "copy"]
        command += ["-f", "mpegts", f"udp://127.0.0.1:{self._port}?pkt_size=1316"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def pull(self) -> None:
        """The picture stops."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Scanning(Console):
    """Freezes and clips of live ultrasound; the cable is pulled in one clip of three."""

    def __init__(self, programs: Programs, owed: Owed, seed: int, cable: Cable) -> None:
        super().__init__(programs, owed, seed)
        self._cable = cable

    def once(self) -> None:
        """One freeze or clip, kept."""
        self.until("a live picture", lambda: self.state("/scan/events")["able"])
        still, pulled = self.chance.random() < 0.3, False
        self._post("/scan/freeze" if still else "/scan/clip", number="0")
        if not still:
            time.sleep(self.chance.uniform(1.0, 4.0))
            if pulled := self.chance.random() < 0.35:
                self._cable.pull()
                time.sleep(self.chance.uniform(0.5, 8.0))
            self._post("/scan/end", allowed=(204, 409))
        try:
            takes = self.until("a take", lambda: self.state("/scan/events")["takes"])
            for take in takes.split():
                kept = self._post(f"/scan/takes/{take}/keep", allowed=(200,)).json()["go"]
                self.owed.captures.add(kept.rpartition("/")[2])
                self.counts["stills" if still else "clips"] += 1
        finally:
            if pulled:
                self._cable.plug()
                self.counts["pulled out"] += 1

    def _post(self, path: str, allowed: tuple[int, ...] = (204,), **fields: str) -> httpx.Response:
        answer = self.post(path, quiet="1", **fields)
        if answer.status_code not in allowed:
            raise ConnectionError(f"{path}: {answer.status_code} {answer.text[:100]}")
        return answer
