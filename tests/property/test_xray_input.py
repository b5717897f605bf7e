"""What the chest X-ray input keeps true, whatever the detector."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.reading import xray
from appliance.reading.prepared import Header, Picture


def picture(pixels, **display):
    return Picture(header=Header(media_type="application/dicom"), pixels=np.ascontiguousarray(pixels)[None], **display)


def scene(rows, columns, seed, top=4095, dtype=np.uint16):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns] / max(rows, columns)
    values = (
        0.5
        + 0.2 * np.sin(9 * x + random.uniform(0, 6))
        + 0.2 * np.cos(7 * y)
        + 0.05 * random.normal(size=(rows, columns))
    )
    return np.clip(values * top, 0, top).astype(dtype)


@given(seed=st.integers(0, 99), rows=st.integers(1, 700), columns=st.integers(1, 700))
@settings(max_examples=25, deadline=None)
def test_any_size_gives_a_square_of_finite_numbers_between_0_and_1(seed, rows, columns):
    base = xray.tensor320(picture(scene(rows, columns, seed)))
    image = xray.normalise(base)
    assert base.shape == (320, 320)
    assert image.shape == (224, 224)
    for values in (base, image):
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() <= 1


@given(seed=st.integers(0, 99), bits=st.sampled_from([8, 10, 12, 15, 16]))
@settings(max_examples=15, deadline=None)
def test_monochrome1_is_inverted_monochrome2(seed, bits):
    top = 2**bits - 1
    pixels = scene(500, 430, seed, top, np.uint8 if bits == 8 else np.uint16)
    window = (top / 2 + 0.5, float(top + 1))
    light = xray.tensor320(picture(pixels, window=window))
    dark = xray.tensor320(picture((top - pixels.astype(np.int64)).astype(pixels.dtype), window=window, invert=True))
    assert np.abs(light - dark).max() < 2 / top + 2e-3


@given(centre=st.floats(1500, 2500), width=st.floats(3000, 5000))
@settings(max_examples=15, deadline=None)
def test_a_window_and_its_table_show_the_same(centre, width):
    pixels = scene(400, 380, 5)
    values = np.arange(4096)
    table = np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1).astype(np.float32)
    windowed = xray.tensor320(picture(pixels, window=(centre, width)))
    looked_up = xray.tensor320(picture(pixels, lut=(0.0, table)))
    assert np.abs(windowed - looked_up).max() < 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_detail_finer_than_a_pixel_averages_out_and_never_aliases(dtype):
    rows, columns = np.mgrid[0:1955, 0:1841]
    stripes = ((rows + columns) % 2 * 200).astype(dtype)
    base = xray.tensor320(picture(stripes, window=(100.5, 201.0)))
    assert np.abs(base - 0.5).max() < 0.05


def test_a_stack_of_eight_bit_greys_keeps_its_fractions():
    pixels = np.zeros((640, 640), np.uint8)
    pixels[::2] = 1
    assert xray.tensor320(picture(pixels)).mean() == pytest.approx(0.5 / 255, rel=0.02)


def test_colour_and_grey_of_the_same_film_give_the_same_input():
    grey = scene(480, 512, 3, 255, np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=-1)
    assert np.abs(xray.tensor320(picture(grey)) - xray.tensor320(picture(colour))).max() < 1e-4


@given(low=st.floats(0.0, 0.3), high=st.floats(0.6, 1.0), bend=st.floats(0.6, 1.6))
@settings(max_examples=15, deadline=None)
def test_the_model_sees_the_same_film_whatever_exposure_and_grey_scale(low, high, bend):
    base = xray.tensor320(picture(scene(400, 400, 8)))
    other = (low + (high - low) * base) ** np.float32(bend)
    assert np.abs(xray.normalise(base) - xray.normalise(other.astype(np.float32))).mean() < 0.03


@pytest.mark.parametrize(
    ("value", "index", "side"), [(2, "contrast", "low"), (4095, "brightness", "high"), (0, "brightness", "low")]
)
def test_a_blank_film_shows_in_the_quality(value, index, side):
    blank = picture(np.full((600, 500), value, np.uint16), window=(2048.0, 4096.0))
    found = xray.quality(blank, xray.tensor320(blank))[index]
    assert found < 0.01 if side == "low" else found > 0.99
