"""The stored values for a viewer are averages of what was stored, in 16 bits, with the window that the sender meant."""

from __future__ import annotations

import numpy as np
import pytest

from appliance.reading.prepared import Header, Picture, Sound
from appliance.reading.raw import EDGE, raw

HEADER = Header(media_type="application/dicom")


@pytest.mark.parametrize(("kind", "lowest"), [(np.uint8, 0), (np.uint16, 0), (np.int16, -1000)])
def test_values_keep_their_depth(kind: type, lowest: int) -> None:
    stored = (np.arange(200 * 300).reshape(1, 200, 300) % 250 + lowest).astype(kind)
    made = raw(Picture(header=HEADER, pixels=stored, window=(40.0, 80.0), invert=True))
    values = np.frombuffer(made.data, "<u2").reshape(made.rows, made.columns).astype(np.int32) + made.offset
    assert np.array_equal(values, stored[0])
    assert (made.low, made.high, made.invert) == (0.0, 80.0, True)


def test_a_large_picture_is_averaged_and_without_a_window_all_of_it_is_spread() -> None:
    stored = np.zeros((1, 100, EDGE * 2), np.uint16)
    stored[..., ::2] = 60000
    made = raw(Picture(header=HEADER, pixels=stored))
    values = np.frombuffer(made.data, "<u2")
    assert (made.rows, made.columns) == (50, EDGE)
    assert set(values) == {30000}
    assert made.low < made.high


def test_of_a_cine_it_is_the_frame_that_was_asked_for_or_the_middle_one() -> None:
    stored = np.stack([np.full((4, 4), number, np.uint8) for number in range(5)])
    picture = Picture(header=HEADER, pixels=stored)
    assert [raw(picture, frame).data[0] for frame in (None, 0, 4, 99)] == [2, 0, 4, 4]


def test_colour_sound_and_nothing_have_none() -> None:
    colour = Picture(header=HEADER, pixels=np.zeros((1, 4, 4, 3), np.uint8))
    sound = Sound(header=HEADER, samples=np.zeros(4, np.float32), rate_hz=4000.0)
    assert raw(colour).rows == raw(sound).rows == raw(None).rows == 0
