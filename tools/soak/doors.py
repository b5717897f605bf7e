"""The ways in that are no page: C-STORE, the watched folder, and the link, which is no way in but can be as bad."""

from __future__ import annotations

import hashlib
import io
import shutil
import threading
import time
import zipfile
from pathlib import Path

import pydicom
import soundfile
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from pynetdicom import AE

from tools.fault_proxy import FaultProxy
from tools.programs import Programs
from tools.simulate import sounds
from tools.soak.ways import Owed, Way
from tools.torture import Sender

_RATE_HZ = 4000


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
        soundfile.write(partial, made(self.chance.uniform(5, 12), _RATE_HZ, seed=seed)[0], _RATE_HZ, format="WAV")
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
