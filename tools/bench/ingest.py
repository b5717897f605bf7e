"""C-STORE to stored: our DICOM door against stock pynetdicom and Orthanc, same files, same client, receivers in turn.

What this module keeps true: the client is dcmtk's ``storescu`` with ``TCP_NODELAY=1`` (without it the client, not the
receiver, is measured); each image has its own SOP Instance UID, so that none is a duplicate; each receiver is a process of
its own; ours encrypts, hashes, fsyncs and commits before it answers, Orthanc syncs its storage, stock pynetdicom does neither.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tools.bench._ingest_receivers import TITLE
from tools.bench.rows import Row, medians, row, speedup

DX = "1.2.840.10008.5.1.4.1.1.1.1"
CR = "1.2.840.10008.5.1.4.1.1.1"
ROUNDS = 8
LARGE, SMALL = (2780, 2700), (512, 512)
PER_CALL = {LARGE: 10, SMALL: 100}
STEADY = 200
RSS_LIMIT_MB = 90.0
GROWTH_LIMIT_MB = 4.0


class Receiver:
    """A receiver's port and process."""

    def __init__(self, name: str, process: subprocess.Popen[str], port: int) -> None:
        self.name = name
        self.process = process
        self.port = port

    @property
    def rss_mb(self) -> float:
        """Resident memory now."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6


def run() -> Iterator[Row]:
    """The rows."""
    storescu = shutil.which("storescu")
    if storescu is None:
        raise RuntimeError("storescu is not installed; apt-get install dcmtk")
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        large = _write(folder / "dx.dcm", LARGE, DX)
        small = _write(folder / "small.dcm", SMALL, CR)
        receivers = {kind: stack.enter_context(_python(kind, folder / kind)) for kind in ("ours", "stock")}
        orthanc = stack.enter_context(_orthanc(folder / "orthanc"))
        if orthanc is not None:
            receivers["orthanc"] = orthanc
        for size, file, what, limits in (
            (LARGE, large, "DX 15 MB", {"stock": 2.0, "orthanc": 1.8}),
            (SMALL, small, "512x512", {"stock": 1.3, "orthanc": None}),
        ):
            count = PER_CALL[size]
            calls = {kind: _sender(storescu, receiver.port, file, count) for kind, receiver in receivers.items()}
            seconds = _in_turn(calls)
            typical = medians(seconds)
            for peer in ("stock", "orthanc"):
                if peer in typical:
                    peer_name = {"stock": "stock pynetdicom, no fsync", "orthanc": "Orthanc, synced storage"}[peer]
                    rates = count / typical["ours"], count / typical[peer]
                    made = row(
                        f"C-STORE {what}",
                        "images/s",
                        *rates,
                        peer_name=peer_name,
                        limit=limits[peer],
                        better="higher",
                        n=ROUNDS,
                    )
                    yield msgspec.structs.replace(made, ratio=speedup(seconds, "ours", peer))
        yield from _memory(receivers["ours"], storescu, large)


def _in_turn(calls: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each call, in turn; what an unsynced peer left to write is written before the next one's clock starts."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1, ROUNDS):
        names = list(calls)
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            os.sync()
            start = time.perf_counter()
            calls[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _memory(ours: Receiver, storescu: str, large: Path) -> Iterator[Row]:
    """Resident memory over ``STEADY`` large images in ten associations."""
    send = _sender(storescu, ours.port, large, STEADY // 10)
    send()
    early = ours.rss_mb
    for _ in range(9):
        send()
    late = ours.rss_mb
    yield row("receiver's memory", "MB", late, RSS_LIMIT_MB, peer_name="target", limit=1.0, n=STEADY)
    grown = max(late - early, 0.01)
    yield row("its growth over 180 images", "MB", grown, GROWTH_LIMIT_MB, peer_name="target", limit=1.0, n=STEADY)


def _sender(storescu: str, port: int, file: Path, count: int) -> Callable[[], None]:
    command = [storescu, "-aec", TITLE, "+II", "--repeat", str(count), "127.0.0.1", str(port), str(file)]
    environment = _without_nagle()

    def send() -> None:
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return send


def _without_nagle() -> dict[str, str]:
    """The environment in which dcmtk's network, also Orthanc's, sends at once."""
    return {**os.environ, "TCP_NODELAY": "1"}


@contextlib.contextmanager
def _python(kind: str, folder: Path) -> Iterator[Receiver]:
    folder.mkdir()
    command = [sys.executable, "-m", "tools.bench._ingest_receivers", kind, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        if process.stdout is None or process.stdin is None:
            raise RuntimeError("no pipes")
        try:
            yield Receiver(kind, process, int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait(10)


@contextlib.contextmanager
def _orthanc(folder: Path) -> Iterator[Receiver | None]:
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None:
        print("Orthanc is not installed: its rows are left out", file=sys.stderr)
        yield None
        return
    from tools.bench._ingest_receivers import _free_port

    folder.mkdir()
    port, http = _free_port(), _free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "SyncStorageArea": True,
        "DicomAet": TITLE,
        "DicomPort": port,
        "HttpPort": http,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "UnknownSopClassAccepted": True,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    with subprocess.Popen(
        [program, str(folder / "orthanc.json")],
        env=_without_nagle(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            _wait_for(port, process)
            yield Receiver("orthanc", process, port)
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    import socket

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError("Orthanc does not listen")


def _write(path: Path, shape: tuple[int, int], sop_class: str) -> Path:
    """A radiograph of plausible statistics: two dark fields on a bright ground, 12 bits, quantum noise."""
    rows, columns = shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    picture = 2600 - 900 * (x * x + y * y)
    for side in (-0.45, 0.45):
        picture -= 1300 * np.exp(-(((x - side) / 0.3) ** 4) - ((y / 0.6) ** 4))
    picture += np.random.default_rng(5).normal(0, 25, shape)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.PatientName, ds.PatientID, ds.PatientSex, ds.PatientAge = "Bench^Mark", "BENCH", "F", "045Y"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20260101", "120000", "A1"
    ds.Rows, ds.Columns = shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.WindowCenter, ds.WindowWidth = 2048, 4096
    ds.PixelData = np.clip(picture, 0, 4095).astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path
