"""The simulated lung shows what its truth says, moves as a lung does, and is a valid DICOM object."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools.simulate.ultrasound import COLUMNS, MM_PER_PIXEL, ROWS, Scene, cine, dataset


def middle_profile(frames: np.ndarray) -> np.ndarray:
    """Brightness down the middle of the sector, over all frames."""
    return np.asarray(frames[:, :, COLUMNS // 2 - 25 : COLUMNS // 2 + 25].mean(axis=(0, 2)))


def test_the_pleura_and_its_a_lines_lie_where_the_truth_says() -> None:
    frames, truth = cine(Scene(frames=6, seed=1))
    profile = middle_profile(frames)
    for row in (truth.pleura_row, *truth.a_line_rows):
        near = profile[int(row) - 15 : int(row) + 16]
        assert abs(int(np.argmax(near)) - 15) <= 3
        assert near.max() > 1.2 * np.median(near)
    spacing = np.diff([truth.pleura_row, *truth.a_line_rows])
    assert np.allclose(spacing, spacing[0]), "A-lines repeat the depth of the pleura"


def test_b_lines_are_counted_below_the_pleura_reach_the_edge_and_are_absent_without() -> None:
    def brightness(scene: Scene, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Across the sector at a share of the way from pleura to edge: by angle in degrees."""
        frames, _ = cine(scene)
        degrees = np.arange(-12, 12, 0.25)
        radius = 60 + 26 + share * (150 - 26)
        x = np.round(COLUMNS / 2 + radius * np.sin(np.deg2rad(degrees)) / MM_PER_PIXEL).astype(int)
        y = np.round(34 + (radius * np.cos(np.deg2rad(degrees)) - 60) / MM_PER_PIXEL).astype(int)
        rows = [frames[0, np.clip(y + step, 0, ROWS - 1), x].astype(float) for step in range(-12, 13)]
        return degrees, np.mean(rows, axis=0)

    scene = Scene(frames=1, b_lines=3, seed=4)
    _, truth = cine(scene)
    for share in (0.35, 0.6, 0.9):
        degrees, bright = brightness(scene, share)
        _, dark = brightness(Scene(frames=1, seed=4), share)
        for angle in truth.b_line_degrees[0]:
            at = np.abs(degrees - angle) < 0.8
            assert bright[at].mean() > 1.4 * dark[at].mean()
    assert len(truth.b_line_degrees[0]) == 3


def test_the_lung_slides_with_the_breath_and_the_chest_wall_does_not() -> None:
    def change(frames: np.ndarray, rows: slice) -> float:
        part = frames[:, rows, 300:340].astype(float)
        return float(np.abs(np.diff(part, axis=0)).mean())

    sliding, truth = cine(Scene(frames=8, seed=2))
    still, _ = cine(Scene(frames=8, seed=2, sliding=False))
    wall, lung = slice(50, int(truth.pleura_row) - 12), slice(int(truth.pleura_row) - 2, int(truth.pleura_row) + 40)
    assert change(sliding, lung) > 2 * change(sliding, wall)
    assert change(sliding, lung) > 2 * change(still, lung)
    assert max(truth.slide_mm) - min(truth.slide_mm) > 3


def test_speckle_is_fully_developed_below_the_pleura() -> None:
    """Log-compressed Rayleigh speckle has the same spread whatever its strength; a smooth picture has none."""
    frames, truth = cine(Scene(frames=1, seed=5))
    patch = frames[0, int(truth.pleura_row) + 20 : int(truth.pleura_row) + 50, 300:340].astype(float)
    assert 0.15 < patch.std() / patch.mean() < 0.8


def test_a_scene_gives_the_same_cine_again_and_another_seed_another() -> None:
    first, _ = cine(Scene(frames=2, seed=7))
    assert np.array_equal(first, cine(Scene(frames=2, seed=7))[0])
    assert not np.array_equal(first, cine(Scene(frames=2, seed=8))[0])
    assert dataset(Scene(frames=2, seed=7)).SOPInstanceUID == dataset(Scene(frames=2, seed=7)).SOPInstanceUID


def test_the_box_decodes_it_and_finds_the_sector() -> None:
    from appliance.reading.decode import decode
    from appliance.reading.prepared import Picture
    from appliance.reading.ultrasound import sector

    buffer = io.BytesIO()
    dataset(Scene(frames=4, b_lines=2)).save_as(buffer, enforce_file_format=True)
    picture = decode(buffer.getvalue())
    assert isinstance(picture, Picture)
    assert picture.pixels.shape[0] == 4
    box = sector(picture, [0, 2])
    assert box is not None


def test_the_command_writes_an_object_that_dciodvfy_finds_nothing_wrong_with(tmp_path: Path) -> None:
    target, png = tmp_path / "cine.dcm", tmp_path / "frame.png"
    command = [sys.executable, "-m", "tools.simulate.ultrasound", str(target), "--b-lines", "2", "--frames", "3"]
    subprocess.run([*command, "--png", str(png)], check=True, capture_output=True, cwd=Path(__file__).parents[2])
    assert png.stat().st_size > 10_000
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (apt-get install dicom3tools)")
    said = subprocess.run(["dciodvfy", "-new", str(target)], check=False, capture_output=True, text=True)
    assert (said.stdout + said.stderr).split() == ["USMultiFrameImage"]
