"""The ways in of a clinic, each used over and over by a thread of its own, and unplugged in the middle.

What this module keeps true: only what the box said was kept is owed (status 0x0000, a file that it took away, the number of
the capture that a page leads to); everything else that goes wrong is in ``troubles``, nothing is swallowed.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import json
import random
import shutil
import subprocess
import threading
import time
import zipfile
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pydicom
import soundfile
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from pynetdicom import AE

from appliance.capture.stethoscope_positions import PLACES
from appliance.console.listen_words import TROUBLE
from tools.fault_proxy import FaultProxy
from tools.programs import Programs
from tools.simulate import sounds
from tools.simulate.sound_device import SoundDevice
from tools.torture import Sender

_PATIENCE_S = 90.0
_CHEST_RATE_HZ = 4000


class Owed(msgspec.Struct):
    """What the hub must have in the end: SOP instances with the hash of their pixels, files by hash, captures by id."""

    instances: dict[str, str] = {}
    files: set[str] = set()
    captures: set[str] = set()


class Way(threading.Thread):
    """One way in. ``counts`` says what was done, ``troubles`` what should not have happened."""

    pause_s = (2.0, 12.0)

    def __init__(self, programs: Programs, owed: Owed, seed: int) -> None:
        super().__init__(name=type(self).__name__.lower(), daemon=True)
        self.programs, self.owed = programs, owed
        self.chance = random.Random(f"{self.name} {seed}")
        self.counts: Counter[str] = Counter()
        self.troubles: list[str] = []
        self._end = threading.Event()

    @abstractmethod
    def once(self) -> None:
        """Use it once."""

    def run(self) -> None:
        """Use it until ``stop``."""
        while not self._end.wait(self.chance.uniform(*self.pause_s)):
            try:
                self.once()
            except Exception as error:  # noqa: BLE001 - the edge of a task; every one of them is reported and fails the soak
                self.troubles.append(f"{self.name}: {type(error).__name__}: {error}"[:300])

    def finish(self) -> None:
        """Begin nothing more."""
        self._end.set()

    def stop(self) -> None:
        """Wait for what is going on."""
        self.join(2 * _PATIENCE_S)
        if self.is_alive():
            self.troubles.append(f"{self.name}: did not end")

    def until(self, what: str, done: Callable[[], Any]) -> Any:
        """The first true answer; ``TimeoutError`` with ``what`` when there is none in time."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            if answer := done():
                return answer
            time.sleep(0.2)
        raise TimeoutError(what)


class Films(Way):
    """Computed radiographs by C-STORE: noise of many sizes, a real chest now and then, and transfers cut in the middle."""

    pause_s = (0.5, 5.0)

    def __init__(self, programs: Programs, owed: Owed, seed: int) -> None:
        super().__init__(programs, owed, seed)
        self._sender = Sender(programs.dicom, seed)
        self._cable = FaultProxy(programs.dicom)
        self._cable.start()
        self._film = pydicom.dcmread(str(get_testdata_file("RG1_UNCR.dcm")))

    def once(self) -> None:
        """One image, acknowledged or cut."""
        kind = self.chance.random()
        if kind < 0.8:
            self._sender.send()
            self.owed.instances |= self._sender.acknowledged
            self.counts["sent"] += 1
            self.counts["refused"] = self._sender.sent - len(self._sender.acknowledged)
            return
        self._film.SOPInstanceUID = self._film.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        self._send_film(cut=kind > 0.95)

    def _send_film(self, *, cut: bool) -> None:
        entity = AE(ae_title="SOAK")
        entity.add_requested_context(self._film.SOPClassUID, self._film.file_meta.TransferSyntaxUID)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
        association = entity.associate("127.0.0.1", self._cable.port, ae_title="BEDSIDE")
        if not association.is_established:
            raise ConnectionError("the box did not accept the association")
        if cut:
            threading.Timer(self.chance.uniform(0.0, 0.1), self._cable.cut).start()
        status = association.send_c_store(self._film).get("Status", -1)
        if association.is_established:
            association.release()
        if status == 0:
            self.owed.instances[str(self._film.SOPInstanceUID)] = hashlib.sha256(self._film.PixelData).hexdigest()
        elif not cut:
            raise ConnectionError(f"status {status:#06x}")
        self.counts["films" if status == 0 else "cut"] += 1


class Stick(Way):
    """Sounds, archives of images and junk in the watched folder, and a folder that is pulled away like a stick."""

    pause_s = (3.0, 15.0)

    def __init__(self, programs: Programs, owed: Owed, seed: int) -> None:
        super().__init__(programs, owed, seed)
        self._number = 0
        self._image = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        self._pulled = programs.folder / "pulled"
        self._pulled.mkdir()

    def once(self) -> None:
        """A few files; all are taken, or some when the stick is pulled."""
        self._number += 1
        kind = self.chance.random()
        if kind < 0.15:
            (self.programs.inbox / f"note-{self._number}.txt").write_text("junk")
            self.counts["junk"] += 1
        elif kind < 0.35:
            self._archive()
        elif kind < 0.55:
            self._pull()
        else:
            self._sound()

    def _sound(self) -> None:
        folder = self.programs.inbox / self.chance.choice(["heart-sound", "lung-sound"])
        path = folder / f"{self._number}.wav"
        sha256 = self._write(path, folder.name)
        self.until("a sound is taken from the folder", lambda: not path.exists())
        self.owed.files.add(sha256)
        self.counts["sounds"] += 1

    def _write(self, path: Path, kind: str) -> str:
        seed = self.chance.randrange(1 << 30)
        made = sounds.heart if kind == "heart-sound" else sounds.lung
        partial = path.with_suffix(".part")
        soundfile.write(partial, made(self.chance.uniform(5, 12), _CHEST_RATE_HZ, seed=seed)[0], 4000, format="WAV")
        sha256 = hashlib.sha256(partial.read_bytes()).hexdigest()
        partial.rename(path)
        return sha256

    def _archive(self) -> None:
        instances = {}
        path = self.programs.inbox / f"{self._number}.zip"
        with zipfile.ZipFile(path.with_suffix(".part"), "w") as archive:
            for number in range(3):
                self._image.SOPInstanceUID = self._image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
                written = io.BytesIO()
                self._image.save_as(written)
                archive.writestr(f"IM{number:05}", written.getvalue())
                instances[str(self._image.SOPInstanceUID)] = hashlib.sha256(self._image.PixelData).hexdigest()
        path.with_suffix(".part").rename(path)
        self.until("an archive is taken from the folder", lambda: not path.exists())
        self.owed.instances |= instances
        self.counts["archives"] += 1

    def _pull(self) -> None:
        outside = self._pulled / str(self._number)
        (outside / "heart-sound").mkdir(parents=True)
        written = [outside / "heart-sound" / f"{one}.wav" for one in range(4)]
        hashes = {path.name: self._write(path, "heart-sound") for path in written}
        plugged = self.programs.inbox / "heart-sound" / f"stick-{self._number}"
        (outside / "heart-sound").rename(plugged)
        time.sleep(self.chance.uniform(0.2, 2.0))
        plugged.rename(outside / "again")
        left = {path.name for path in (outside / "again").iterdir()}
        self.owed.files |= {sha256 for name, sha256 in hashes.items() if name not in left}
        self.counts["sticks pulled"] += 1
        self.counts["taken from them"] += len(hashes) - len(left)
        shutil.rmtree(outside)


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
        samples = made(20.0, _CHEST_RATE_HZ, seed=self.chance.randrange(1 << 30))[0]
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


class Weather(Way):
    """The link: cut, away, slow, good again."""

    pause_s = (10.0, 40.0)

    def once(self) -> None:
        """One disturbance."""
        link = self.programs.link
        kind = self.chance.choice(["cut", "away", "slow"])
        if kind == "away":
            link.refuse()
            link.cut()
            self._end.wait(self.chance.uniform(2.0, 30.0))
            link.refuse(False)
        elif kind == "slow":
            link.set(256e3, 300.0)
            self._end.wait(self.chance.uniform(5.0, 30.0))
            link.set(None, 0.0)
        else:
            link.cut()
        self.counts[kind] += 1


@contextlib.contextmanager
def working(ways: list[Way]) -> Iterator[None]:
    """All ways in use for the time of the block."""
    for way in ways:
        way.start()
    try:
        yield
    finally:
        for way in ways:
            way.finish()
        for way in ways:
            way.stop()
