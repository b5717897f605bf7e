"""What is done inside the virtual machine: ``python -m tools.device_lab.guest SCENARIO``.

What this module keeps true: everything it says about the box comes from the box's own parts, running on the guest's real
drivers. It says one JSON object a line; the host judges. Emulation is some twenty times slower than a box: patience is
longer here, nothing else is different.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.device_lab.machine import SAYS

STATE = Path("/tmp/state")  # noqa: S108 - the guest's own memory
_TONE_HZ = 440.0
_RATE_HZ = 16000


def say(word: str, **values: Any) -> None:
    """Tell the host."""
    sys.stdout.write(f"{SAYS}{json.dumps({'word': word, **values})}\n")
    sys.stdout.flush()


def plug(driver: str, *, into: bool) -> None:
    """Bind or unbind a platform driver's only device, as a cable would be plugged in or pulled out."""
    folder = Path("/sys/bus/platform/drivers") / driver
    name = f"{driver}.0"
    (folder / ("bind" if into else "unbind")).write_text(name)


def wait(until: Callable[[], bool], limit_s: float) -> bool:
    """Whether it became true in time."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if until():
            return True
        time.sleep(0.2)
    return False


def box() -> Any:
    """A store in the guest's memory, or where a disk is mounted, and the door to it."""
    from appliance.capture.intake import Intake
    from appliance.config import StorageConfig
    from appliance.health.clock import Clock
    from appliance.store.store import Store

    store = Store(StorageConfig(state=str(STATE), refuse_below=16, reserve=4), Clock().now)
    return store, Intake(store, "lab/box-1")


def video() -> None:
    """A grabber (vivid) is pulled out in the middle of a clip and plugged in again."""
    from appliance.capture import video as video_door
    from appliance.capture.video import VideoDoor
    from appliance.capture.video_process import Decoding
    from appliance.capture.video_takes import Whose
    from appliance.config import UltrasoundConfig

    link_cameras()
    store, intake = box()
    door = VideoDoor(UltrasoundConfig(area=(0.2, 0.2, 0.9, 0.9), frame_rate=5, pre_roll=1, ring=64), intake)
    vars(video_door)["Decoding"] = functools.partial(Decoding, open_s=150.0, silent_s=60.0)  # emulation
    door.start()
    try:
        live = wait(lambda: door.scan().phase == "live" and door.scan().kept > 5, 200)
        first = door.scan()
        say("live", ok=live, size=first.size, format=first.format, kept=first.kept, reason=first.reason)
        take = door.record(Whose())
        before = first.kept
        wait(lambda: door.scan().kept > before + 8, 60)
        plug("vivid", into=False)
        gone = wait(lambda: door.scan().phase == "gone", 60)
        say("pulled", gone=gone, reason=door.scan().reason)
        door.finish()
        plug("vivid", into=True)
        link_cameras()
        again = wait(lambda: door.scan().phase == "live" and door.scan().opened > first.opened, 200)
        say("plugged", live=again, opened=door.scan().opened)
        kept = door.keep(take.id)
        say("kept", **described(store, kept.capture_id))
    finally:
        door.stop()
        store.close()


def link_cameras() -> None:
    """The stable names that udev would give."""
    folder = Path("/dev/v4l/by-path")
    folder.mkdir(parents=True, exist_ok=True)
    wait(lambda: bool(list(Path("/dev").glob("video*"))), 20)
    for link in folder.iterdir():
        link.unlink()
    for device in Path("/dev").glob("video*"):
        (folder / "platform-vivid.0-video-index0").symlink_to(device)


def described(store: Any, capture_id: str) -> dict[str, Any]:
    """The kept clip: frames, times, size, as pydicom reads it."""
    import io

    import pydicom

    capture = store.captures.get(capture_id).capture
    dataset = pydicom.dcmread(io.BytesIO(store.vault.read(capture.sha256)))
    times = [float(value) for value in dataset.FrameTimeVector][1:]
    return {
        "frames": int(dataset.NumberOfFrames),
        "monotonic": all(value > 0 for value in times),
        "rows": int(dataset.Rows),
        "columns": int(dataset.Columns),
        "sop_class": str(dataset.SOPClassUID),
    }


def sound() -> None:
    """A stethoscope (snd-aloop) hears a tone, is pulled out in the middle, and is plugged in again."""
    from appliance.capture import stethoscope_source as source
    from appliance.capture.stethoscope_messages import Wanted

    source._OPEN_S, source._STALLED_S, source._END_S = 150.0, 60.0, 30.0  # noqa: SLF001 - emulation
    Path("/root").mkdir(exist_ok=True)
    say("inputs", names=[one.name for one in source.sound_inputs()])
    say(
        "first",
        **listened(
            source.ProcessSource(Wanted(device="Loopback: PCM", rate_hz=_RATE_HZ, ring_s=20.0)), seconds=4.0, pull=False
        ),
    )
    say(
        "pulled",
        **listened(
            source.ProcessSource(Wanted(device="Loopback: PCM", rate_hz=_RATE_HZ, ring_s=20.0)), seconds=60.0, pull=True
        ),
    )
    wait(lambda: not Path("/proc/asound/Loopback").exists(), 30)
    plug("snd_aloop", into=True)
    time.sleep(1)
    say(
        "again",
        **listened(
            source.ProcessSource(Wanted(device="Loopback: PCM", rate_hz=_RATE_HZ, ring_s=20.0)), seconds=3.0, pull=False
        ),
    )


def listened(source: Any, seconds: float, *, pull: bool) -> dict[str, Any]:
    """Record until ``seconds`` of samples or trouble, while a tone is played into the other end of the loop."""
    import numpy as np

    from appliance.capture.stethoscope_source import NoSound

    got, gaps, trouble = bytearray(), 0, ""
    with tone():
        opened = source.open()
        try:
            for block in source.blocks():
                if block is None:
                    continue
                got += block.samples
                gaps += block.gap
                if pull and len(got) > 4 * opened.rate_hz * 3:
                    pull = False
                    # The kernel lets go of a card only once everybody has closed it: this waits for the player, too.
                    threading.Thread(target=plug, args=("snd_aloop",), kwargs={"into": False}, daemon=True).start()
                if len(got) >= 4 * opened.rate_hz * seconds:
                    break
        except NoSound as error:
            trouble = error.failure.code
        finally:
            source.stop()
            counts = source.close()
    samples = np.frombuffer(bytes(got), "<i4").astype("f8")
    return {
        "rate": opened.rate_hz,
        "seconds": len(samples) / opened.rate_hz,
        "hz": loudest(samples, opened.rate_hz),
        "gaps": gaps,
        "overflows": counts.overflows,
        "trouble": trouble,
    }


def loudest(samples: Any, rate_hz: int) -> float:
    """The frequency with the most energy in the last second that is not silent; 0 when there is none."""
    import numpy as np

    loud = samples[np.abs(samples) > 0]
    if len(loud) < rate_hz:
        return 0.0
    last = samples[: np.flatnonzero(samples)[-1] + 1][-rate_hz:]
    spectrum = np.abs(np.fft.rfft(last * np.hanning(len(last))))
    return float(np.argmax(spectrum) * rate_hz / len(last))


_PLAY = f"""
import numpy as np, sounddevice as sd
wave = (np.sin(2 * np.pi * {_TONE_HZ} * np.arange({_RATE_HZ} * 2) / {_RATE_HZ}) * 2**29).astype('i4').tobytes()
settings = dict(samplerate={_RATE_HZ}, channels=1, dtype='int32', device='Loopback: PCM (hw:0,1)', latency=0.5)
with sd.RawOutputStream(**settings) as out:
    print('playing', flush=True)
    while True:
        out.write(wave)
"""


@contextlib.contextmanager
def tone() -> Iterator[None]:
    """A tone into the loop's other end, from before the block on."""
    player = subprocess.Popen(
        [sys.executable, "-c", _PLAY], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        first = player.stdout.readline() if player.stdout else ""
        if first != "playing\n":
            raise RuntimeError(
                f"the tone can't be played: {first}{player.stdout.read() if player.stdout else ''}"[-300:]
            )
        yield
    finally:
        player.kill()
        player.wait()


def keep_for_ever() -> None:
    """Keep captures on the disk, and say of each when it is kept: the host cuts the power at any moment."""
    mount()
    store, intake = box()
    say("open", clean=store.repair.clean)
    for number in range(1_000_000):
        kept = put(intake, f"{time.monotonic_ns()} {number}".encode() * 2000)
        say("kept", capture=kept.capture_id)


def put(intake: Any, content: bytes) -> Any:
    """One capture through the door."""
    from appliance.capture.intake import Facts
    from appliance.records import Modality, Patient

    with intake.open() as incoming:
        incoming.write(content)
        return incoming.keep(
            Facts(modality=Modality.OTHER, media_type="application/octet-stream", source="lab", patient=Patient())
        )


def mount(device: str = "/dev/vda") -> None:
    """The disk as the state folder."""
    STATE.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "-o", "noatime", device, str(STATE)], check=True)


def look_after_power_cut() -> None:
    """After the power came back: what is there, each blob whole."""
    from appliance.store import audit

    mount()
    store, _ = box()
    found, damaged = [], 0
    for row in store.journal.all("SELECT id, sha256 FROM capture"):
        found.append(row["id"])
        damaged += hashlib.sha256(store.vault.read(row["sha256"])).hexdigest() != row["sha256"]
    repair = store.repair
    say(
        "found", captures=found, damaged=damaged, audit=audit.verify(store.journal) is None, missing=len(repair.missing)
    )
    store.close()


def failing_disk() -> None:
    """A disk whose writes fail for seconds at a time (dm-flakey): what is kept stays, what is not is refused."""
    from appliance.capture.intake import IntakeError
    from appliance.store.errors import StoreError

    size = int(Path("/sys/block/vda/size").read_text())
    flaky(f"0 {size} linear /dev/vda 0", create=True)
    mount("/dev/mapper/flaky")
    store, intake = box()
    kept, refused, other = [], 0, []
    for turn in range(3):
        failing = turn == 1
        table = f"0 {size} flakey /dev/vda 0 0 3600 1 error_writes" if failing else f"0 {size} linear /dev/vda 0"
        flaky(table)
        for number in range(6):
            try:
                kept.append(put(intake, f"{turn} {number}".encode() * 5000))
            except (StoreError, IntakeError):
                refused += 1
            except Exception as error:  # noqa: BLE001 - the claim is that there are none
                other.append(f"{type(error).__name__}: {error}"[:100])
    with contextlib.suppress(Exception):
        store.close()
    subprocess.run(["umount", "-l", str(STATE)], check=False)
    flaky(f"0 {size} linear /dev/vda 0")
    mount("/dev/mapper/flaky")
    store, _ = box()
    lost = 0
    for one in kept:
        try:
            sha256 = store.captures.get(one.capture_id).capture.sha256
            lost += hashlib.sha256(store.vault.read(sha256)).hexdigest() != sha256
        except StoreError:
            lost += 1
    say("disk", kept=len(kept), refused=refused, other=other, lost=lost)


def flaky(table: str, *, create: bool = False) -> None:
    """Set the mapped disk to this table."""
    steps = (
        [["create", "flaky", "--table", table]]
        if create
        else [["suspend", "--noflush", "flaky"], ["load", "flaky", "--table", table], ["resume", "flaky"]]
    )
    for step in steps:
        subprocess.run(["dmsetup", "--noudevsync", *step], check=True)
    if create:
        subprocess.run(["dmsetup", "mknodes"], check=True)


def watchdog() -> None:
    """The daemon feeds its service manager, that feeds the watchdog; then the daemon hangs."""
    from pathlib import Path as Folder

    STATE.mkdir(parents=True, exist_ok=True)
    models = Folder("/tmp/models")  # noqa: S108 - the guest's own memory
    models.mkdir(exist_ok=True)
    config = STATE / "bedside.toml"
    config.write_text(
        f'[storage]\nstate = "{STATE}/box"\n[link]\nenabled = false\n[console]\nenabled = false\n'
        f'[models]\ndirectory = "{models}"\n[dicom]\nport = 11112\naddress = "127.0.0.1"\n'
        "[ultrasound]\nenabled = false\n[stethoscope]\nenabled = false\n"
    )
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind("/tmp/notify")  # noqa: S108 - the guest's own memory
    environment = {**os.environ, "NOTIFY_SOCKET": "/tmp/notify", "WATCHDOG_USEC": "20000000"}  # noqa: S108 - the same
    daemon = subprocess.Popen([sys.executable, "-m", "appliance.cli", "run", "--config", str(config)], env=environment)
    hardware = os.open("/dev/watchdog", os.O_WRONLY)
    fed, stopped = threading.Event(), threading.Event()

    def feed_while_starting() -> None:
        while not fed.wait(1):
            os.write(hardware, b"\0")

    threading.Thread(target=feed_while_starting, daemon=True).start()
    pings = 0
    manager.settimeout(240)
    while pings < 3:
        if b"WATCHDOG=1" in manager.recv(4096):
            fed.set()
            os.write(hardware, b"\0")
            pings += 1
            # From here on nobody feeds it but the daemon's own word; the manager allows it a little longer.
            threading.Thread(target=lambda: stopped.wait(4) or os.write(hardware, b"\0"), daemon=True).start()
            say("ping", number=pings)
    stopped.set()
    daemon.send_signal(signal.SIGSTOP)
    say("hung", at=time.monotonic())
    time.sleep(60)
    say("alive", at=time.monotonic())


SCENARIOS: dict[str, Callable[[], None]] = {
    "video": video,
    "sound": sound,
    "keep": keep_for_ever,
    "look": look_after_power_cut,
    "disk": failing_disk,
    "watchdog": watchdog,
}

if __name__ == "__main__":
    try:
        SCENARIOS[sys.argv[1]]()
    except BaseException as error:
        say("failed", error=f"{type(error).__name__}: {error}")
        raise
