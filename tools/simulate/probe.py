"""A made-up ultrasound machine's screen, as a grabber or a network stream gives it: the moving picture among furniture.

What this module keeps true: every pixel outside ``Screen.picture`` is furniture (a name, numbers, a logo, a grey bar, a ruler)
or black; the furniture has values of its own, so that a test can look for each of its pixels afterwards.

``python -m tools.simulate.probe OUT.avi [--seconds N] [--b-lines N] [--seed N] [--linear]``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from tools.simulate import ultrasound

Bytes = npt.NDArray[np.uint8]

NAME = "DOE^JANE 1962-04-13"
WIDTH, HEIGHT = 1024, 768
_AT = (170, 130)  # left and top of the picture on the screen
_RULER = 16  # columns of the cine's right edge that are its ruler
_WHITE, _GREY, _BAR = 255, 170, 60


class Screen(NamedTuple):
    """Frames ``[frames, 768, 1024, 3]`` BGR; where the picture is (uint8, 1 inside); where furniture is (1 on its pixels)."""

    frames: Bytes
    picture: Bytes
    furniture: Bytes


def screen(scene: ultrasound.Scene, name: str = NAME, *, linear: bool = False) -> Screen:
    """The screen over time. ``linear``: a rectangular picture (a linear probe) instead of a sector."""
    cine, _ = ultrasound.cine(scene)
    inside = _linear_part(cine) if linear else _sector(cine)
    frames = np.zeros((len(cine), HEIGHT, WIDTH, 3), np.uint8)
    left, top = _AT
    rows, columns = cine.shape[1:]
    for number, picture in enumerate(cine):
        frames[number, top : top + rows, left : left + columns] = cv2.cvtColor(picture * inside, cv2.COLOR_GRAY2BGR)
    furniture = _furniture(name)
    ruler = np.zeros((HEIGHT, WIDTH), np.uint8)
    ruler[top : top + rows, left + columns + 8 : left + columns + 8 + _RULER // 2] = cine[0][:, -_RULER // 2 :]
    drawn = np.maximum(furniture, ruler)
    frames = np.maximum(frames, drawn[None, ..., None])
    where = np.zeros((HEIGHT, WIDTH), np.uint8)
    where[top : top + rows, left : left + columns] = inside
    return Screen(frames, where, (drawn > 0).astype(np.uint8))


def write(target: Path, frames: Bytes, rate_hz: float = ultrasound.RATE_HZ, *, codec: str = "FFV1") -> None:
    """The frames as a movie; ``codec`` ``FFV1`` is lossless, ``MJPG`` is what most grabbers send."""
    rows, columns = frames.shape[1:3]
    writer = cv2.VideoWriter(str(target), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate_hz, (columns, rows))
    if not writer.isOpened():
        raise OSError(f"{target}: OpenCV's FFmpeg can't write {codec} here")
    for frame in frames:
        writer.write(frame)
    writer.release()


def _sector(cine: Bytes) -> Bytes:
    lit = (cine[..., :-_RULER].max(axis=0) > 0).astype(np.uint8)
    wide = np.pad(lit, 16)
    closed = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))[16:-16, 16:-16]
    return np.pad(closed, ((0, 0), (0, _RULER))).astype(np.uint8)


def _linear_part(cine: Bytes) -> Bytes:
    rows, columns = cine.shape[1:]
    inside = np.zeros((rows, columns), np.uint8)
    inside[60:440, 190:450] = 1
    return inside


def _furniture(name: str) -> Bytes:
    """What is burned in around the picture: the name large and beside the sector, numbers, a logo, a bar."""
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    text = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(drawn, name, (20, 44), text, 1.1, _WHITE, 2, cv2.LINE_AA)
    cv2.putText(drawn, "ID 4471-22", (20, 84), text, 0.8, _GREY, 2, cv2.LINE_AA)
    cv2.putText(drawn, "2026-01-01 12:00", (WIDTH - 300, 44), text, 0.8, _GREY, 1, cv2.LINE_AA)
    for number, line in enumerate(("Gn 54", "FR 25 Hz", "D 15 cm", "MI 0.9", name.split("^", maxsplit=1)[0])):
        cv2.putText(drawn, line, (WIDTH - 170, 300 + 30 * number), text, 0.6, _GREY, 1, cv2.LINE_AA)
    for place in ((176, 592), (180, 220)):  # in corners of the sector's bounding box
        cv2.putText(drawn, name.split(" ", maxsplit=1)[0], place, text, 0.5, _WHITE, 1, cv2.LINE_AA)
    cv2.circle(drawn, (300, 150), 14, _WHITE, 3)  # the maker's mark beside the probe's face
    cv2.rectangle(drawn, (0, HEIGHT - 40), (WIDTH - 1, HEIGHT - 1), _BAR, -1)
    cv2.putText(drawn, "FREEZE  PRINT  " + name, (30, HEIGHT - 12), text, 0.7, _WHITE, 1, cv2.LINE_AA)
    return drawn


def main() -> None:
    """Write the movie that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulate.probe", description="A made-up machine's screen.")
    parser.add_argument("out", type=Path, help="movie to write (.avi)")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--b-lines", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--linear", action="store_true", help="a linear probe's rectangle")
    given = parser.parse_args()
    frames = max(1, round(given.seconds * ultrasound.RATE_HZ))
    made = screen(ultrasound.Scene(frames=frames, b_lines=given.b_lines, seed=given.seed), linear=given.linear)
    write(given.out, made.frames, codec="MJPG")
    print(f"{given.out}: {frames} frames, {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
