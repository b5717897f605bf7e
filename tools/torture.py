"""Kill and cut everything, all the time, then count: what was acknowledged must be at the hub once, whole.

    python -m tools.torture --kills N | --seconds N  [--seed S] [--json FILE]

The real daemon, the real mosquitto and the real hub run; captures are sent by C-STORE all the time; at random moments one of
the three is killed (SIGKILL) and started again, or the link is cut, silenced, refused or slowed by the fault proxy. In the
end everything is let run until nothing waits, and every capture that the box had acknowledged is looked for at the hub and
compared bit by bit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from tools import arrivals
from tools.programs import Programs, get

_PAUSE = (0.2, 3.0)
_DRAIN = 600.0
_OPEN, _OPEN_WITHIN = 0.75, 60.0


class Outcome(msgspec.Struct, kw_only=True):
    """What the torture counts. ``acknowledged``: captures that got status 0x0000 and so must never be lost."""

    seed: int = 0
    kills: dict[str, int] = {}
    faults: dict[str, int] = {}
    sent: int = 0
    acknowledged: int = 0
    delivered: int = 0
    lost: int = 0
    doubled: int = 0
    corrupt: int = 0
    drain_seconds: float = 0.0
    seconds: float = 0.0
    bytes_sent: int = 0


class Sender:
    """A modality that sends one image after another and remembers which the box acknowledged."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="sender", daemon=True)
        self.sent = 0
        self.acknowledged: dict[str, str] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the present image, then end."""
        self._stop.set()
        self._thread.join()

    def send(self) -> None:
        """Send one image."""
        image = self._image()
        with contextlib.suppress(Exception):  # the box was killed meanwhile: not acknowledged, so nothing is owed
            if self._store(image):
                self.acknowledged[str(image.SOPInstanceUID)] = hashlib.sha256(image.PixelData).hexdigest()
        self.sent += 1

    def _serve(self) -> None:
        while not self._stop.is_set():
            self.send()
            self._stop.wait(float(self._random.uniform(0.05, 0.6)))

    def _store(self, image: Dataset) -> bool:
        entity = AE(ae_title="TORTURE")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
        entity.add_requested_context(image.SOPClassUID, ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", self._port, ae_title="BEDSIDE")
        if not association.is_established:
            return False
        try:
            return bool(association.send_c_store(image).get("Status", -1) == 0)
        finally:
            association.release()

    def _image(self) -> Dataset:
        side = int(self._random.integers(32, 400))
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
        image.PatientID, image.PatientName, image.Modality = "T1", "Torture^Test", "CR"
        image.BodyPartExamined = "CHEST"
        image.Rows = image.Columns = side
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.PixelData = self._random.integers(0, 4096, side * side, dtype=np.uint16).tobytes()
        return image


class Tormentor:
    """Does one bad thing at a time."""

    def __init__(self, programs: Programs, chance: random.Random) -> None:
        self._programs = programs
        self._chance = chance
        self.kills: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    def once(self) -> None:
        """Wait a moment, then kill a program or disturb the link; three times in four not before the box takes captures."""
        if self._chance.random() < _OPEN:
            self._wait_open()
        time.sleep(self._chance.uniform(*_PAUSE))
        if self._chance.random() < 0.6:
            name = self._chance.choice(["box", "box", "hub", "broker"])
            self._programs.kill(name)
            self.kills[name] += 1
        else:
            name, disturb = self._chance.choice(self._disturbances())
            disturb()
            self.faults[name] += 1

    def _wait_open(self) -> None:
        """Until the DICOM door takes connections: a slow machine would else be killed again before it has started."""
        deadline = time.monotonic() + _OPEN_WITHIN
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._programs.dicom), 1):
                return
            time.sleep(0.05)

    def calm(self) -> None:
        """A good link again."""
        link = self._programs.link
        link.refuse(False)
        link.half_open(False)
        link.set(None, 0.0)
        link.cut()

    def _disturbances(self) -> list[tuple[str, Callable[[], object]]]:
        link = self._programs.link

        def away() -> None:
            link.refuse()
            time.sleep(self._chance.uniform(0.2, 2.0))
            link.refuse(False)

        def silent() -> None:
            link.half_open()
            time.sleep(self._chance.uniform(0.2, 2.0))
            link.half_open(False)
            link.cut()

        rate = self._chance.choice([64e3, 256e3, 2e6, None])
        delay = self._chance.choice([0.0, 50.0, 400.0])
        return [
            ("cut", link.cut),
            ("away", away),
            ("silent", silent),
            ("slow", lambda: link.set(rate, delay)),
        ]


def torture(programs: Programs, outcome: Outcome, kills: int, seconds: float) -> None:
    """Run until ``kills`` kills or ``seconds`` seconds, then calm down and count."""
    began = time.monotonic()
    chance = random.Random(outcome.seed)
    sender, tormentor = Sender(programs.dicom, outcome.seed), Tormentor(programs, chance)
    programs.link.refuse(False)
    sender.start()
    while (tormentor.kills.total() < kills) if kills else (time.monotonic() - began < seconds):
        tormentor.once()
        if sys.stderr.isatty():
            print(
                f"\r{tormentor.kills.total()} kills, {len(sender.acknowledged)} acknowledged", end="", file=sys.stderr
            )
    sender.stop()
    tormentor.calm()
    outcome.kills, outcome.faults = dict(tormentor.kills), dict(tormentor.faults)
    outcome.sent, outcome.acknowledged = sender.sent, len(sender.acknowledged)
    drained = time.monotonic()
    programs.wait("the console", lambda: get(programs.bedside_url + "/api/status"), _DRAIN)
    programs.wait("everything delivered", lambda: arrivals.nothing_waits(programs), _DRAIN)
    outcome.drain_seconds = round(time.monotonic() - drained, 1)
    _compare(programs, sender.acknowledged, outcome)
    outcome.bytes_sent = programs.link.bytes_up
    outcome.seconds = round(time.monotonic() - began, 1)


def _compare(programs: Programs, acknowledged: dict[str, str], outcome: Outcome) -> None:
    """Every acknowledged capture at the hub: once, with the pixels that were sent."""
    outcome.corrupt += arrivals.conflicts(programs)  # no two different contents were ever sent under one id
    found: Counter[str] = Counter()
    for case in arrivals.cases(programs):
        found[case.instance_uid] += 1
        # One that is not known was kept, but its acknowledgement was lost with the kill: more than was owed.
        sent = acknowledged.get(case.instance_uid)
        outcome.corrupt += case.original is None or (sent is not None and case.pixels() != sent)
    outcome.delivered = sum(found[uid] > 0 for uid in acknowledged)
    outcome.lost = len(acknowledged) - outcome.delivered
    outcome.doubled = sum(count - 1 for count in found.values())


def main() -> int:
    """Torture and report; 0 only if nothing was lost, doubled or corrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--kills", type=int, default=0)
    length.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    outcome = Outcome(seed=options.seed)
    with tempfile.TemporaryDirectory(prefix="bedside-torture-") as folder:
        programs = Programs(Path(folder))
        try:
            programs.start()
            torture(programs, outcome, options.kills, options.seconds)
        finally:
            programs.stop()
    text = msgspec.json.encode(outcome)
    print(text.decode())
    if options.json is not None:
        options.json.write_bytes(text + b"\n")
    return int(bool(outcome.lost or outcome.doubled or outcome.corrupt or not outcome.acknowledged))


if __name__ == "__main__":
    sys.exit(main())
