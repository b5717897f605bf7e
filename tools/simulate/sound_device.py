"""A stethoscope without hardware: a private PulseAudio with a null sink, whose monitor ALSA shows as a sound input.

What this module keeps true: what PortAudio records is a real, paced device, opened through ALSA's pulse plugin; the server is
private (its own folder and socket), ends with the block that started it, and touches no sound of the machine. Needs Debian's
pulseaudio, pulseaudio-utils and libasound2-plugins; ``missing`` says what is not there.

Run ``python -m tools.simulate.sound_device FILE.wav --seconds 60`` to play a file into it over and over; it prints the variable
to set for ``bedside run``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "stethoscope"
"""What the input is called, for ``stethoscope.device``."""
_SINK = "chest"
_ALSA = Path("/usr/share/alsa/alsa.conf")
_START_S = 10.0


def missing() -> str:
    """What has to be installed, in words; empty when all is there."""
    lacking = [one for one in ("pulseaudio", "pacat", "pactl") if shutil.which(one) is None]
    if not _ALSA.exists() or not list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        lacking.append("libasound2-plugins")
    return f"not installed: {', '.join(lacking)}" if lacking else ""


class SoundDevice:
    """A running simulated stethoscope. ``environment``: what the recording program needs."""

    def __init__(self, folder: Path, rate_hz: int) -> None:
        self.folder, self.rate_hz = folder, rate_hz
        self._server = f"unix:{folder / 'native'}"
        settings = folder / "asound.conf"
        device = f'type pulse server "{self._server}" device "{_SINK}.monitor"'
        settings.write_text(
            f"<{_ALSA}>\npcm.{NAME} {{ {device} hint {{ show on description {NAME} }} }}\n"
            f'ctl.{NAME} {{ type pulse server "{self._server}" }}\n'
        )
        self.environment = {"ALSA_CONFIG_PATH": str(settings)}
        self._private = {
            **os.environ,
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_RUNTIME_PATH": str(folder / "run"),
            "PULSE_STATE_PATH": str(folder / "state"),
            "PULSE_SERVER": self._server,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._module = ""

    def start(self) -> None:
        """Start the server and plug the device in; raises ``OSError`` when the server does not come up."""
        command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
        command += ["--high-priority=no", "--realtime=no", "--disable-shm=yes"]
        command += ["-L", f"module-native-protocol-unix auth-anonymous=1 socket={self.folder / 'native'}"]
        log = self.folder / "log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, env={k: v for k, v in self._private.items() if k != "PULSE_SERVER"}, stdout=out, stderr=out
            )
        deadline = time.monotonic() + _START_S
        while subprocess.run(["pactl", "info"], env=self._private, capture_output=True, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise OSError(f"PulseAudio did not start: {log.read_text(errors='replace')[-400:]}")
            time.sleep(0.05)
        self.plug_in()

    def plug_in(self) -> None:
        """The device appears."""
        load = ["pactl", "load-module", "module-null-sink", f"sink_name={_SINK}", f"rate={self.rate_hz}"]
        load += ["channels=1", "format=s16le"]
        done = subprocess.run(load, env=self._private, capture_output=True, text=True, check=True)
        self._module = done.stdout.strip()

    def pull_out(self) -> None:
        """The device disappears, whoever is recording from it."""
        subprocess.run(["pactl", "unload-module", self._module], env=self._private, capture_output=True, check=True)

    def play(self, samples: bytes) -> subprocess.Popen[bytes]:
        """Play signed 16-bit samples at the device's rate; the process that plays, ended by ``wait`` or ``kill``."""
        path = self.folder / f"played-{time.monotonic_ns()}.raw"
        path.write_bytes(samples)
        command = ["pacat", "--playback", "--raw", f"--device={_SINK}", f"--rate={self.rate_hz}"]
        command += ["--format=s16le", "--channels=1", "--volume=65536", "--latency-msec=100", str(path)]
        return subprocess.Popen(command, env=self._private, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


@contextmanager
def sound_device(rate_hz: int = 4000) -> Iterator[SoundDevice]:
    """A simulated stethoscope at a rate; raises ``OSError`` when it can't be had (see ``missing``)."""
    lacking = missing()
    if lacking:
        raise OSError(lacking)
    with tempfile.TemporaryDirectory(prefix="sound-") as folder:
        device = SoundDevice(Path(folder), rate_hz)
        try:
            device.start()
            yield device
        finally:
            device.stop()


def main() -> None:
    """Play a file into a simulated stethoscope."""
    import numpy as np
    import soundfile
    import soxr

    parser = argparse.ArgumentParser(description="Play a sound file into a simulated stethoscope.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=4000)
    asked = parser.parse_args()
    samples, rate = soundfile.read(asked.file, dtype="float32", always_2d=True)
    wave = soxr.resample(samples[:, 0], rate, asked.rate)
    whole = np.resize(wave, int(asked.seconds * asked.rate))
    with sound_device(asked.rate) as device:
        for name, value in device.environment.items():
            print(f"export {name}={value}", flush=True)
        print(f'# [stethoscope] device = "{NAME}", rate = {asked.rate}', flush=True)
        device.play(np.rint(whole.clip(-1, 1) * 32767).astype("<i2").tobytes()).wait()


if __name__ == "__main__":
    main()
