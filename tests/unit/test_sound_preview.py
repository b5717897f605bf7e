"""The preview of a recording can be looked at and listened to, for some kilobytes, before the recording itself has come."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from appliance.reading.prepared import Header, Sound
from appliance.reading.preview import CLIP_S, clip, preview
from hub.web.pictures import sniffed

RATE = 4000


def beats(seconds: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """Two short sounds a beat, 30 to 300 Hz, in noise: like a heart."""
    chance, time = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    phase = (time * 1.2) % 1.0
    first = np.exp(-(((phase - 0.1) / 0.03) ** 2)) * np.sin(2 * np.pi * 60 * time)
    second = np.exp(-(((phase - 0.45) / 0.02) ** 2)) * np.sin(2 * np.pi * 180 * time)
    return np.asarray(0.05 * (first + second) + 0.002 * chance.standard_normal(len(time)), np.float32)


def recording(samples: npt.NDArray[np.float32]) -> Sound:
    return Sound(header=Header(media_type="audio/wav"), samples=samples, rate_hz=float(RATE))


def test_ten_seconds_are_at_most_30_kb_and_every_browser_s_ogg() -> None:
    noise = np.random.default_rng(1).standard_normal(10 * RATE).astype(np.float32) * np.float32(0.1)
    for samples in (beats(10.0), noise):
        data = clip(recording(samples))
        assert 5_000 < len(data) <= 30_000
        assert sniffed(data[:132]) == "audio/ogg"


def test_what_is_heard_is_what_was_recorded_only_louder() -> None:
    samples = beats(10.0)
    heard, rate = soundfile.read(io.BytesIO(clip(recording(samples))), dtype="float32")
    assert (rate, len(heard)) == (8000, pytest.approx(80_000, abs=400))
    again = heard[::2][: len(samples)]
    best = max(
        float(np.corrcoef(samples[50 : len(again) - 50], np.roll(again, shift)[50 : len(again) - 50])[0, 1])
        for shift in range(-40, 41)
    )
    assert best > 0.95
    assert 0.5 < np.abs(heard).max() < 1.0


def test_a_long_recording_s_clip_is_its_beginning() -> None:
    data = clip(recording(beats(60.0)))
    assert soundfile.info(io.BytesIO(data)).duration == pytest.approx(CLIP_S, abs=0.1)
    assert len(data) < 45_000


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(8000, np.float32)], ids=["empty", "silent"])
def test_of_silence_there_is_no_clip(samples: npt.NDArray[np.float32]) -> None:
    assert clip(recording(samples)) == b""


def test_a_sound_s_preview_is_a_spectrogram_and_a_clip() -> None:
    shown = preview(recording(beats(5.0)))
    assert shown.media_type == "image/png"
    assert sniffed(shown.data[:132]) == "image/png"
    assert sniffed(shown.sound[:132]) == "audio/ogg"


def test_spectrogram_and_clip_go_before_the_original(tmp_path: Path) -> None:
    from appliance.config import LinkConfig
    from appliance.pipeline import Pipeline
    from tests.boxes import DEVICE, keep, open_store
    from tests.unit.test_pipeline import SimulatedReaders

    store = open_store(tmp_path)
    kept = keep(store, b"RIFF")
    readers = SimulatedReaders(sound=b"OggS clip")
    Pipeline(store, readers, DEVICE, LinkConfig(), 5).step()
    waiting = [(one.kind, one.media_type) for one in store.transfers.waiting() if one.capture_id == kept.capture_id]
    assert waiting == [("preview", "image/jpeg"), ("preview", "audio/ogg"), ("original", "application/dicom")]
    store.close()
