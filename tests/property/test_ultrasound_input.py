"""What the lung ultrasound input keeps true: the sector and nothing else, one crop for a clip, frames spread evenly."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.reading import ultrasound
from appliance.reading.prepared import Header, Picture


def clip(frames):
    return Picture(
        header=Header(media_type="application/dicom"), pixels=np.ascontiguousarray(frames), frame_time_ms=33.0
    )


def screen(frames=6, rows=480, columns=640, seed=0):
    """A sector of speckle in the middle of a dark screen with text and a ruler beside it."""
    random = np.random.default_rng(seed)
    made = np.zeros((frames, rows, columns), np.uint8)
    shape = np.zeros((rows, columns), np.uint8)
    cv2.ellipse(shape, (columns // 2, 40), (330, 330), 0, 55, 125, 1, -1)
    for frame in made:
        frame[:] = (np.clip(random.normal(110, 40, (rows, columns)), 20, 255) * shape).astype(np.uint8)
        cv2.putText(frame, "HOSPITAL 12:30", (10, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
        for tick in range(60, rows - 40, 30):
            frame[tick, columns - 12 : columns - 4] = 255
    inside = np.argwhere(shape)
    return made, (*inside.min(0), *(inside.max(0) + 1))


def test_the_crop_is_the_sector_without_the_screen_text():
    frames, (top, left, bottom, right) = screen()
    found = ultrasound.sector(clip(frames), [0, 3, 5])
    assert found is not None
    assert np.abs(np.array(found) - np.array([top, left, bottom, right])).max() <= 12


def test_screen_text_never_reaches_the_model():
    frames, _ = screen()
    other = frames.copy()
    for frame in other:
        cv2.putText(frame, "ANOTHER CLINIC", (10, 460), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
    first, second = (clip(pixels) for pixels in (frames, other))
    boxes = [ultrasound.sector(one, [0]) for one in (first, second)]
    assert boxes[0] == boxes[1]
    np.testing.assert_array_equal(
        ultrasound.tensor(first, 0, boxes[0], 224), ultrasound.tensor(second, 0, boxes[1], 224)
    )


@pytest.mark.parametrize("level", [0, 4, 200])
def test_a_clip_without_a_picture_has_no_sector(level):
    assert ultrasound.sector(clip(np.full((3, 480, 640), level, np.uint8)), [0, 1, 2]) is None


@given(count=st.integers(1, 4000), most=st.integers(1, 40))
def test_frames_are_taken_evenly_and_never_twice(count, most):
    taken = ultrasound.evenly(count, most)
    assert len(taken) == min(count, most)
    assert len(set(taken)) == len(taken)
    assert min(taken) >= 0
    assert max(taken) < count
    steps = np.diff(taken)
    assert steps.size == 0 or steps.max() - steps.min() <= 1


@given(rows=st.integers(1, 300), columns=st.integers(1, 300), colour=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_any_size_is_read_or_said_to_hold_no_picture(rows, columns, colour, seed):
    shape = (2, rows, columns, 3) if colour else (2, rows, columns)
    picture = clip(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    box = ultrasound.sector(picture, [0, 1])
    if box is not None:
        assert 0 <= box[0] < box[2] <= rows
        assert 0 <= box[1] < box[3] <= columns
        frame = ultrasound.tensor(picture, 1, box, 224)
        assert frame.shape == (224, 224)
        assert np.isfinite(frame).all()


def test_colour_doppler_shows_in_the_quality():
    frames, _ = screen(2)
    colour = np.repeat(frames[..., None], 3, axis=-1)
    grey = clip(colour)
    colour = colour.copy()
    colour[:, 150:300, 250:400] = (220, 30, 30)
    doppler = clip(colour)
    box = ultrasound.sector(grey, [0])
    assert box is not None
    rows = np.stack([ultrasound.tensor(doppler, 0, box, 224)])
    assert ultrasound.quality(grey, rows, box)["colour"] == 0.0
    assert ultrasound.quality(doppler, rows, box)["colour"] > 0.1
