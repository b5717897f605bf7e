"""Listening in a band keeps what is in it, at its level and its time, and quiets the rest."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from appliance.capture.stethoscope_flac import flac_of
from appliance.console.sound import FILTERS, Player, band_pass
from tests.simulated_stethoscope import int32

RATE = 8000
TIME = np.arange(4 * RATE) / RATE


def tone(hz: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * TIME)).astype(np.float32)


@pytest.mark.parametrize(
    ("band", "inside", "outside"),
    [("heart", (60.0, 150.0, 250.0), (5.0, 1500.0)), ("lung", (150.0, 800.0), (12.0, 3900.0))],
)
def test_tones_inside_pass_unchanged_and_tones_outside_fall_by_20_db(
    band: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    for hz in inside:
        heard = band_pass(tone(hz), RATE, *FILTERS[band])
        assert np.max(np.abs(heard[2000:-2000] - tone(hz)[2000:-2000])) < 0.02, (band, hz)
    for hz in outside:
        heard = band_pass(tone(hz), RATE, *FILTERS[band])
        assert np.std(heard[2000:-2000]) < 0.1 * np.std(tone(hz)), (band, hz)


def test_the_player_filters_only_when_asked_and_holds_each_apart() -> None:
    asked: list[str] = []
    mixed = flac_of(int32(0.4 * tone(100.0) + 0.4 * tone(3000.0)), RATE, "c")

    def original(capture: str) -> bytes:
        asked.append(capture)
        return mixed

    player = Player(original)

    def heard(band: str) -> np.ndarray:
        return soundfile.read(io.BytesIO(player.wav("a", band) or b""))[0]

    assert np.std(heard("heart")) < 0.75 * np.std(heard(""))
    assert np.array_equal(heard("nonsense"), heard(""))
    heard("heart")
    assert len(asked) == 2, "each is decoded once"


def test_a_single_sample_is_no_trouble() -> None:
    assert band_pass(np.ones(1, np.float32), RATE, 25.0, 400.0).size == 1
