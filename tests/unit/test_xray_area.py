"""Claims about shrinking a film: it is an average over area, whatever the size, and never aliases."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from appliance.reading.xray import area


@pytest.mark.parametrize(
    "shape", [(1955, 1841), (1283, 1290), (3001, 2500), (700, 2600), (321, 640), (200, 500), (1800, 1850)]
)
@pytest.mark.parametrize("kind", [np.uint16, np.uint8, np.int16])
def test_shrinking_is_the_plain_area_average(shape, kind):
    random = np.random.default_rng(1)
    top = 255 if kind == np.uint8 else 30000
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    smooth = 0.5 + 0.3 * np.sin(x / 40) * np.cos(y / 50) + random.normal(0, 0.02, shape)
    frame = (smooth.clip(0, 1) * top).astype(kind)
    ours = area(frame, 320, 320)
    small = cv2.resize(frame.astype(np.float64), (min(320, shape[1]), min(320, shape[0])), interpolation=cv2.INTER_AREA)
    plain = cv2.resize(small, (320, 320), interpolation=cv2.INTER_LINEAR)
    assert ours.shape == (320, 320)
    assert np.abs(ours - plain).mean() / top < 0.001


@pytest.mark.parametrize("period", [1, 2, 3])
def test_a_fine_grid_becomes_flat_grey_and_no_moire(period):
    y, x = np.mgrid[0:1955, 0:1841]
    grid = (((x // period + y // period) % 2) * 30000).astype(np.uint16)
    assert area(grid, 320, 320)[2:-2, 2:-2].std() / 30000 < 0.02
