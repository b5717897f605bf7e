"""C-STORE to stored: our DICOM door against stock pynetdicom and Orthanc, same files, same client, receivers in turn.

What this module keeps true: the client is dcmtk's ``storescu`` with ``TCP_NODELAY=1`` (without it the client, not the
receiver, is measured); each image has its own SOP Instance UID, so that none is a duplicate; each receiver is a process of
its own; ours encrypts, hashes, fsyncs and commits before it answers, Orthanc syncs its storage, stock pynetdicom does neither.

A ratio is the median over rounds of the two times of one round, its quartiles stand beside it. All receivers and clients run
before the machine's other work, alike (``_precedence`` says why). So that the receiver can be told from the disk, small images
are also sent to a file system in memory, and compared with a stock receiver that fsyncs; rows say the processor time, and what
the disk alone takes for the same three waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import psutil
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tools.bench._ingest_receivers import TITLE
from tools.bench._precedence import Precedence, give, start
from tools.bench.rows import Row, row

DX = "1.2.840.10008.5.1.4.1.1.1.1"
CR = "1.2.840.10008.5.1.4.1.1.1"
LARGE, SMALL = (2780, 2700), (512, 512)
STEADY = 200
RSS_LIMIT_MB = 90.0
GROWTH_LIMIT_MB = 4.0
MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, where Linux has it
PEERS = {
    "stock": "stock pynetdicom, no fsync",
    "synced": "stock pynetdicom that fsyncs",
    "orthanc": "Orthanc, synced storage",
}


class Work(NamedTuple):
    """What is sent: ``each`` times in a call, in ``rounds`` rounds, and the least ratio by peer."""

    what: str
    file: Path
    each: int
    rounds: int
    limits: Mapping[str, float]
    precedence: Precedence


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

    @property
    def processor_s(self) -> float:
        """Seconds of a processor that it has used, the kernel's on its behalf among them."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


class Taken(NamedTuple):
    """A call's time by the clock, and of a processor in the receiver."""

    seconds: float
    processor_s: float


def run() -> Iterator[Row]:
    """The rows."""
    storescu = shutil.which("storescu")
    if storescu is None:
        raise RuntimeError("storescu is not installed; apt-get install dcmtk")
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        large = _write(folder / "dx.dcm", LARGE, DX)
        dx = Work("DX 15 MB", large, 10, 20, {"stock": 2.0, "orthanc": 1.8}, "AHEAD")
        small = Work("512x512", _write(folder / "small.dcm", SMALL, CR), 100, 20, {"stock": 1.3}, "REALTIME")
        receivers = _receivers(stack, folder / "large", dx)
        yield from _compared(storescu, dx, receivers)
        yield from _memory(receivers["ours"], storescu, large)
        stack.close()
        yield from _compared(storescu, small, _receivers(stack, folder / "small", small), disk=folder / "alone")
        stack.close()
        if MEMORY.is_dir():
            with tempfile.TemporaryDirectory(prefix="bench-ingest-", dir=MEMORY) as memory:
                there = _receivers(stack, Path(memory) / "small", small, only=("ours", "stock"))
                yield from _compared(storescu, small._replace(what="512x512 to memory"), there)
                stack.close()


def _receivers(
    stack: contextlib.ExitStack, folder: Path, work: Work, only: tuple[str, ...] = ("ours", *PEERS)
) -> dict[str, Receiver]:
    """The receivers that there are, started; the stack ends them."""
    folder.mkdir()
    found: dict[str, Receiver] = {}
    for kind in only:
        if kind != "orthanc":
            found[kind] = stack.enter_context(_python(kind, folder / kind, work.precedence))
        elif (orthanc := stack.enter_context(_orthanc(folder / kind, work.precedence))) is not None:
            found[kind] = orthanc
    return found


def _compared(storescu: str, work: Work, receivers: Mapping[str, Receiver], disk: Path | None = None) -> Iterator[Row]:
    """Images a second against each peer; milliseconds of a processor; what the waits for ``disk`` alone take of ours."""
    calls: dict[str, Callable[[], object]] = {
        kind: _sender(storescu, receiver.port, work.file, work.each, work.precedence)
        for kind, receiver in receivers.items()
    }
    if disk is not None:
        calls["disk"] = _disk_alone(disk, work)
    taken = _in_turn(calls, receivers, work.rounds)
    for peer in PEERS:
        if peer in taken:
            yield _rates(work, peer, *([one.seconds for one in taken[kind]] for kind in ("ours", peer)))
    ours, stock = (
        statistics.fmean(one.processor_s for one in taken[kind]) / work.each * 1e3 for kind in ("ours", "stock")
    )
    yield row(f"processor, {work.what}", "ms/image", ours, stock, peer_name=PEERS["stock"], n=work.rounds)
    if disk is not None:
        whole, alone = (statistics.median(one.seconds for one in taken[kind]) * 1e3 for kind in ("ours", "disk"))
        name = f"of which the disk, {work.what}"
        yield row(name, "ms/image", whole / work.each, alone / work.each, peer_name="its waits alone", n=work.rounds)


def _rates(work: Work, peer: str, ours: list[float], theirs: list[float]) -> Row:
    ratios = [other / mine for mine, other in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    made = row(
        f"C-STORE {work.what}",
        "images/s",
        work.each / statistics.median(ours),
        work.each / statistics.median(theirs),
        peer_name=f"{PEERS[peer]} (quartiles of the ratio {low:.2f} to {high:.2f})",
        limit=work.limits.get(peer),
        better="higher",
        n=work.rounds,
    )
    return msgspec.structs.replace(made, ratio=middle)


def _in_turn(
    calls: Mapping[str, Callable[[], object]], receivers: Mapping[str, Receiver], rounds: int
) -> dict[str, list[Taken]]:
    """What each call takes, in turn; what an unsynced peer left to write is written before the next one's clock starts."""
    taken: dict[str, list[Taken]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(-1, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            os.sync()
            before = receivers[name].processor_s if name in receivers else 0.0
            start = time.perf_counter()
            calls[name]()
            seconds = time.perf_counter() - start
            after = receivers[name].processor_s if name in receivers else 0.0
            if turn >= 0:
                taken[name].append(Taken(seconds, after - before))
    return taken


def _disk_alone(folder: Path, work: Work) -> Callable[[], None]:
    """The waits of keeping images and nothing else: write and fsync, rename, fsync the folder, append and sync a log.

    On a thread of its own, which has the work's precedence as the others have.
    """
    folder.mkdir()
    content, entry = os.urandom(work.file.stat().st_size), os.urandom(48 << 10)  # a row is a dozen pages in the log
    log = os.open(folder / "log", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(log, bytes(len(entry) * work.each))
    entries = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def keep() -> None:
        give(0, work.precedence)
        os.lseek(log, 0, os.SEEK_SET)  # over and over the same place, as SQLite's log
        for number in range(work.each):
            with (folder / "part").open("xb", buffering=0) as file:
                file.write(content)
                os.fsync(file.fileno())
            (folder / "part").rename(folder / f"{time.monotonic_ns()}-{number}")
            os.fsync(entries)
            os.write(log, entry)
            os.fdatasync(log)

    def alone() -> None:
        thread = threading.Thread(target=keep)
        thread.start()
        thread.join()

    return alone


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


def _sender(storescu: str, port: int, file: Path, count: int, precedence: Precedence = "AHEAD") -> Callable[[], None]:
    command = [storescu, "-aec", TITLE, "+II", "--repeat", str(count), "127.0.0.1", str(port), str(file)]
    environment = _without_nagle()

    def send() -> None:
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if status := start(command, precedence, env=environment, **silent).wait():
            raise RuntimeError(f"storescu ended with {status}")

    return send


def _without_nagle() -> dict[str, str]:
    """The environment in which dcmtk's network, also Orthanc's, sends at once."""
    return {**os.environ, "TCP_NODELAY": "1"}


@contextlib.contextmanager
def _python(kind: str, folder: Path, precedence: Precedence = "AHEAD") -> Iterator[Receiver]:
    folder.mkdir()
    command = [sys.executable, "-m", "tools.bench._ingest_receivers", kind, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with start(command, precedence, **pipes) as process:
        if process.stdout is None or process.stdin is None:
            raise RuntimeError("no pipes")
        try:
            yield Receiver(kind, process, int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait(10)


@contextlib.contextmanager
def _orthanc(folder: Path, precedence: Precedence) -> Iterator[Receiver | None]:
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
    command = [program, str(folder / "orthanc.json")]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with start(command, precedence, env=_without_nagle(), **silent) as process:
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
