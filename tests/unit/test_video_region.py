"""The picture area on a machine's screen: names never get out, and what is not known to be the picture is not kept."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.capture.video_area import COLOURED, FILLS, NO_PICTURE, STILL, Region, rectangle
from appliance.capture.video_region import FRAMES, Cutter, coloured, find, mask_of, reduced
from tests.probe_movies import movie, screen
from tools.simulate import probe

ROWS, COLUMNS = probe.HEIGHT, probe.WIDTH


def region_of(frames: np.ndarray) -> Region:
    found = find([reduced(frame) for frame in frames[:FRAMES]], *frames.shape[1:3], coloured(frames[0]))
    assert found.region is not None, found.reason
    return found.region


def decoded(path: Path) -> np.ndarray:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return np.stack(frames)


@pytest.mark.parametrize("linear", [False, True], ids=["sector", "linear"])
def test_no_pixel_of_a_planted_name_survives_the_cut_and_the_picture_does(linear: bool) -> None:
    shown = screen(linear=linear)
    cutter = Cutter(region_of(shown.frames))
    named = np.where(shown.furniture[..., None] > 0, 255, 0).astype(np.uint8)
    assert np.count_nonzero(named) > 10_000, "the screen is full of furniture"
    assert not np.count_nonzero(cutter.cut(np.broadcast_to(named, shown.frames[0].shape))), "none of it gets through"
    only = np.where(shown.picture[..., None] > 0, shown.frames[0], 0)
    kept = float(cutter.cut(shown.frames[0]).sum()) / float(only.sum())
    assert kept > 0.96, f"{kept:.3f} of the picture is kept"


def test_the_area_is_found_through_a_grabber_s_jpeg_too(tmp_path: Path) -> None:
    frames, shown = decoded(movie(tmp_path, frames=30)), screen()
    for first in range(0, 30 - FRAMES, 4):
        mask = mask_of(region_of(frames[first:])) > 0
        assert not np.count_nonzero(mask & (shown.furniture > 0))
        inner = cv2.erode(shown.picture, np.ones((17, 17), np.uint8), borderValue=0) > 0
        assert np.count_nonzero(mask & inner) > 0.998 * np.count_nonzero(inner), "no bite is taken out of the picture"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ^0123456789 ", min_size=4, max_size=24),
    x=st.integers(0, COLUMNS - 80),
    y=st.integers(16, ROWS - 4),
    size=st.floats(0.4, 1.3),
    thick=st.integers(1, 3),
)
def test_a_name_anywhere_outside_the_picture_is_cut_away(text: str, x: int, y: int, size: float, thick: int) -> None:
    shown = screen()
    written = np.zeros((ROWS, COLUMNS), np.uint8)
    cv2.putText(written, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, 255, thick, cv2.LINE_AA)
    clear = cv2.dilate(shown.picture, np.ones((17, 17), np.uint8)) == 0
    written = np.where(clear, written, 0).astype(np.uint8)
    frames = np.maximum(shown.frames[:FRAMES], written[None, ..., None])
    found = find([reduced(frame) for frame in frames], ROWS, COLUMNS)
    if found.region is not None:
        assert not np.count_nonzero((mask_of(found.region) > 0) & (written > 0))


def test_a_screen_on_which_nothing_moves_has_no_area_and_says_why() -> None:
    still = np.repeat(screen().frames[:1], FRAMES, axis=0)
    assert find([reduced(frame) for frame in still], ROWS, COLUMNS).reason == STILL


def test_a_picture_that_fills_the_screen_waits_for_a_person() -> None:
    rng = np.random.default_rng(1)
    frames = [rng.integers(30, 200, (180, 320), dtype=np.uint8) for _ in range(FRAMES)]
    assert find(frames, 720, 1280) == (None, FILLS)
    assert find(frames, 720, 1280, colour=0.6) == (None, COLOURED)


def test_moving_furniture_alone_is_no_picture() -> None:
    frames = []
    for number in range(FRAMES):
        frame = np.zeros((ROWS, COLUMNS), np.uint8)
        cv2.putText(frame, f"12:00:{number:02d}", (700, 40), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 255, 2)
        frames.append(reduced(frame))
    assert find(frames, ROWS, COLUMNS).reason in {NO_PICTURE, STILL}


def test_a_dialogue_over_the_screen_is_noticed_and_a_running_clock_is_not() -> None:
    frames = screen().frames
    cutter = Cutter(region_of(frames))
    assert cutter.same_screen(reduced(frames[0]))
    clock = frames[20].copy()
    cv2.putText(clock, "12:01", (COLUMNS - 300, 44), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 3)
    assert cutter.same_screen(reduced(clock))
    dialogue = frames[21].copy()
    cv2.rectangle(dialogue, (60, 200), (900, 600), (200, 200, 200), -1)
    cv2.putText(dialogue, "Patient: Doe, Jane", (100, 300), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (0, 0, 0), 3)
    assert not cutter.same_screen(reduced(dialogue))
    assert cutter.same_screen(reduced(frames[22])), "and the picture is kept again when it has gone"


def test_a_frame_of_another_size_is_not_cut() -> None:
    with pytest.raises(ValueError, match="can't cut"):
        Cutter(rectangle(480, 640, (0.1, 0.1, 0.9, 0.9))).cut(np.zeros((720, 1280), np.uint8))


@pytest.mark.parametrize("shares", [(0.5, 0, 0.4, 1), (0, 0.9, 1, 0.1), (-0.1, 0, 1, 1), (0, 0, 1, 1.2)])
def test_a_rectangle_inside_out_or_off_the_screen_is_refused(shares: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="above its bottom"):
        rectangle(480, 640, shares)


def test_a_person_s_rectangle_is_cut_exactly() -> None:
    frame = np.arange(480 * 640, dtype=np.uint32).astype(np.uint8).reshape(480, 640)
    cut = Cutter(rectangle(480, 640, (0.25, 0.25, 0.75, 0.5))).cut(frame)
    assert np.array_equal(cut, frame[120:360, 160:320])
