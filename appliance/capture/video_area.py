"""Where the picture is on a machine's screen, how good it is, and why frames are not kept: the words, without the arithmetic.

What this module keeps true: it imports no OpenCV, because the daemon has no other use for it; a region is a polygon on a screen
of a given size and means nothing on another one.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SEARCHING = "the picture is being looked for on the screen: move the probe a little"
STILL = "nothing on the screen moves: switch the probe on, end the machine's freeze"
NO_PICTURE = "no ultrasound picture was found on the screen: show the live picture without menus over it"
FILLS = "the moving picture fills the whole screen: confirm the area by hand, if no name stands in it"
COLOURED = "the moving picture is coloured all over: this looks like a camera, not like ultrasound"
CHANGED = "the screen has changed (a menu, another page): frames are kept again once the live picture is back"
DISK = "the disk is full or does not take frames: nothing is kept until there is room"
REASONS = (SEARCHING, STILL, NO_PICTURE, FILLS, COLOURED, CHANGED, DISK)

State = Literal["good", "frozen", "no-contact", "too-dark", "too-bright"]


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How good the live picture is.

    ``score`` 0 to 1 for the meter; shares of the picture: ``brightness`` (mean), ``white`` (saturated), ``deep`` (lit below
    the first third of the depth).
    """

    state: State = "good"
    score: float = 0.0
    brightness: float = 0.0
    white: float = 0.0
    deep: float = 0.0


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """The picture's outline on a screen of ``rows × columns``.

    ``points``: the outline's corners, (x, y) in pixels. ``holes``: furniture inside it, each (top, left, bottom, right).
    ``confirmed``: a person said so (or the configuration); otherwise it was found.
    """

    rows: int
    columns: int
    points: tuple[tuple[int, int], ...]
    holes: tuple[tuple[int, int, int, int], ...] = ()
    confirmed: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right of the outline; bottom and right are the first row and column beyond."""
        xs, ys = zip(*self.points, strict=True)
        return max(0, min(ys)), max(0, min(xs)), min(self.rows, max(ys) + 1), min(self.columns, max(xs) + 1)


def rectangle(rows: int, columns: int, shares: tuple[float, float, float, float]) -> Region:
    """A confirmed rectangle from shares of the screen (top, left, bottom, right), each 0 to 1."""
    top, left, bottom, right = shares
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ValueError("a region's top must lie above its bottom and its left before its right, all from 0 to 1")
    x0, y0 = round(left * columns), round(top * rows)
    x1, y1 = max(x0, round(right * columns) - 1), max(y0, round(bottom * rows) - 1)
    return Region(rows=rows, columns=columns, points=((x0, y0), (x1, y0), (x1, y1), (x0, y1)), confirmed=True)
