"""Real PortAudio over ALSA, recording from a simulated stethoscope (PulseAudio's null sink and its monitor)."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from appliance.capture.intake import Intake
from appliance.capture.stethoscope import Live, Stethoscope
from appliance.capture.stethoscope_messages import Opened, Wanted
from appliance.capture.stethoscope_source import NoSound, ProcessSource, sound_inputs
from appliance.config import StethoscopeConfig, StorageConfig
from appliance.health.clock import Clock
from appliance.reading.listening import listener
from appliance.store.store import Store
from tools.simulate import sounds
from tools.simulate.sound_device import NAME, SoundDevice, missing, sound_device

RATE = 4000
Ints = npt.NDArray[np.int32]

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"a simulated sound device needs more: {missing()}")


@pytest.fixture(scope="module")
def device() -> Iterator[SoundDevice]:
    try:
        with sound_device(RATE) as made:
            for name, value in made.environment.items():
                os.environ[name] = value
            yield made
            for name in made.environment:
                del os.environ[name]
    except OSError as error:
        pytest.skip(f"PulseAudio can't run here: {error}")


def recorded(source: ProcessSource, played: bytes, device: SoundDevice, seconds: float) -> tuple[Opened, Ints]:
    """What is recorded while ``played`` is played."""
    opened = source.open()
    parts: list[bytes] = []
    player = None
    for block in source.blocks():
        if block is not None:
            assert not block.gap
            parts.append(block.samples)
            if player is None:
                player = device.play(played)
                threading.Timer(seconds, source.stop).start()
    assert player is not None
    player.kill()
    player.wait()
    return opened, np.frombuffer(b"".join(parts), "<i4")


def found_in(record: Ints, played: npt.NDArray[np.int16]) -> Ints:
    """The part of a record where ``played`` lies, by cross-correlation; upper 16 bits."""
    whole = (record >> 16).astype(np.float64)
    size = 1 << int(whole.size + played.size).bit_length()
    spectrum = np.fft.rfft(whole, size) * np.conj(np.fft.rfft(played.astype(np.float64), size))
    lag = int(np.argmax(np.fft.irfft(spectrum, size)[: whole.size]))
    return (record >> 16)[lag : lag + played.size]


def test_a_tone_and_a_heart_sound_are_recorded_sample_by_sample(device: SoundDevice) -> None:
    seconds = np.arange(RATE) / RATE
    tone = np.hanning(seconds.size) * np.sin(2 * np.pi * 217.0 * seconds)  # a steady one would fit in many places
    played = [np.rint(0.8 * wave * 32767).astype("<i2") for wave in (tone, sounds.heart(2.0, RATE)[0])]
    quiet = bytes(RATE)  # half a second: a sink that wakes up swallows the first samples that it is given
    sent = quiet + b"".join(one.tobytes() for one in played) + quiet
    differing = [0]
    for _ in range(4):  # a player that comes too late on a busy machine leaves a hole: no fault of the recorder's
        source = ProcessSource(Wanted(device=NAME, rate_hz=RATE))
        try:
            opened, record = recorded(source, sent, device, 4.6)
        finally:
            counts = source.close()
        assert opened == Opened(device=NAME, rate_hz=RATE)
        assert counts.lost == 0
        assert not (record & 0xFFFF).any(), "16 bits stay 16 bits"
        pairs = [(found_in(record, one), one) for one in played]
        differing = [
            int(np.count_nonzero(found != one)) if found.size == one.size else one.size for found, one in pairs
        ]
        if not any(differing):
            break
    assert not any(differing), f"{differing} samples differ, four times in a row"


def test_the_inputs_are_listed_by_name(device: SoundDevice) -> None:
    assert NAME in [one.name for one in sound_inputs()]


def test_a_name_that_is_not_there_is_said_with_those_that_are(device: SoundDevice) -> None:
    source = ProcessSource(Wanted(device="Littmann"))
    with pytest.raises(NoSound, match=f"no sound input is called 'Littmann'; there are: .*{NAME}"):
        source.open()
    source.close()


def test_a_reader_that_stalls_loses_counted_samples_and_keeps_the_time(device: SoundDevice) -> None:
    source = ProcessSource(Wanted(device=NAME, rate_hz=48000, ring_s=0.2))
    started = None
    try:
        source.open()
        frames = gaps = 0
        for block in source.blocks():
            if block is not None:
                gaps += block.gap
                frames += len(block.samples) // 4
                if started is None:
                    started = time.monotonic()
                    time.sleep(1.5)  # the pipe holds a third of a second, the ring a fifth
                elif time.monotonic() - started > 2.5:
                    source.stop()
        took = time.monotonic() - started if started else 0.0
    finally:
        counts = source.close()
    assert counts.lost == gaps > 0.5 * 48000
    assert abs((frames + gaps) / 48000 - took) < 0.5, "gaps stand for the time that passed"


def test_a_recorder_that_is_killed_is_noticed_at_once(device: SoundDevice) -> None:
    source = ProcessSource(Wanted(device=NAME, rate_hz=RATE))
    source.open()
    assert source._process is not None
    os.kill(source._process.pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(NoSound, match="ended unexpectedly"):
        list(source.blocks())
    assert time.monotonic() - started < 2
    source.close()


def until(stethoscope: Stethoscope, phase: str, seconds: float = 30.0) -> Live:
    deadline = time.monotonic() + seconds
    while (live := stethoscope.live()).phase != phase:
        assert time.monotonic() < deadline, live
        time.sleep(0.02)
    return live


def test_a_stethoscope_pulled_out_while_recording_is_kept_and_plugged_in_again_records(
    device: SoundDevice, tmp_path: Path
) -> None:
    store = Store(StorageConfig(state=str(tmp_path), refuse_below=16, reserve=4), Clock().now)
    config = StethoscopeConfig(device=NAME, rate=RATE, automatic_stop=False)
    stethoscope = Stethoscope(config, Intake(store, "site/box"), listener)
    heart = np.rint(sounds.heart(12.0, RATE)[0] * 32767).astype("<i2")
    try:
        stethoscope.begin("mitral")
        until(stethoscope, "recording")
        player = device.play(heart.tobytes())
        deadline = time.monotonic() + 20
        while stethoscope.live().seconds < 3.0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        device.pull_out()
        player.kill()
        player.wait()
        live = until(stethoscope, "stopped")
        assert live.why == "device"
        assert live.trouble == "gone"
        assert live.problem
        assert live.remedy
        kept = stethoscope.keep(live.recording)
        samples, rate = soundfile.read(io.BytesIO(store.vault.read(store.captures.get(kept.capture_id).capture.sha256)))
        assert rate == RATE
        assert samples.size >= 3.0 * RATE
        device.plug_in()
        stethoscope.begin("aortic")
        until(stethoscope, "recording")
        stethoscope.end()
    finally:
        stethoscope.stop()
        store.close()
