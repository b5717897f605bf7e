"""Where on a machine's screen the ultrasound picture is: found, remembered, and cut out of every frame.

What this module keeps true: what lies outside the region is black in all that ``Region.cut`` gives, and a frame whose region
is not known is not cut at all. The region is found over several frames, because only the picture moves like speckle: names,
numbers, logos and rulers stand still. What is neither sector nor rectangle, or fills the whole screen (a camera looking at a
room does), is not taken for a picture without a person's word.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from appliance.capture.video_area import COLOURED, FILLS, NO_PICTURE, STILL, Region

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SIDE = 320
"""Longer side, in pixels, of the frames that a region is looked for in."""
FRAMES = 14
"""As many are looked at: half a second of a slow machine."""
_MOVES = 1.0  # grey levels of mean change between frames: a codec's noise on still text stays below
_STROKE = 13  # pixels at SIDE: what is thinner than this is text, a ruler, a bar's edge
_SMALLEST, _LARGEST = 0.04, 0.93  # shares of the screen
_SOLID = 0.8  # a sector or rectangle fills this share of its own hull
_INK, _BLACK = 30, 14  # grey levels
_EDGE, _EDGE_ROWS = 2.5, 24  # pixels at SIDE
_CHANGED_LEVELS, _CHANGED_SHARE = 40, 0.03


def mask_of(region: Region) -> Bytes:
    """255 inside, 0 outside, for the whole screen."""
    made = np.zeros((region.rows, region.columns), np.uint8)
    cv2.fillPoly(made, [np.array(region.points, np.int32)], 255)
    for top, left, bottom, right in region.holes:
        made[top:bottom, left:right] = 0
    return made


class Cutter:
    """A region made ready to cut many frames."""

    def __init__(self, region: Region) -> None:
        self.region = region
        top, left, bottom, right = region.box
        self._window = np.s_[top:bottom, left:right]
        self._mask = np.ascontiguousarray(mask_of(region)[self._window])
        self._outside: Bytes | None = None
        self._reference: Bytes | None = None

    def cut(self, frame: npt.NDArray[Any]) -> Bytes:
        """The picture, uint8 ``[r, c]`` or ``[r, c, 3]`` as the frame is; black outside the outline.

        Raises ``ValueError`` for a frame of another size than the region's screen.
        """
        if frame.shape[:2] != (self.region.rows, self.region.columns):
            raise ValueError(f"a region of {self.region.columns}×{self.region.rows} can't cut {frame.shape[1::-1]}")
        inside = np.ascontiguousarray(frame[self._window])
        return np.asarray(cv2.bitwise_and(inside, inside, mask=self._mask), dtype=np.uint8)

    def same_screen(self, small: Bytes) -> bool:
        """Whether the furniture of a reduced frame is that of the first one given: a menu or dialogue over it is not."""
        if self._outside is None:
            grown = cv2.dilate(mask_of(self.region), np.ones((9, 9), np.uint8))
            self._outside = np.asarray(cv2.resize(grown, small.shape[1::-1], interpolation=cv2.INTER_AREA) == 0)
            self._reference = small.copy()
            return True
        reference = self._reference
        if reference is None or reference.shape != small.shape:
            return False
        area = int(np.count_nonzero(self._outside))
        if not area:
            return True
        changed = (cv2.absdiff(small, reference) > _CHANGED_LEVELS) & self._outside
        return int(np.count_nonzero(changed)) < _CHANGED_SHARE * area


class Found(NamedTuple):
    """A region, or the reason (one of ``video_area.REASONS``) why there is none."""

    region: Region | None
    reason: str = ""


def reduced(frame: npt.NDArray[Any]) -> Bytes:
    """A frame in grey with its longer side at most ``SIDE`` pixels, averaged by area."""
    rows, columns = frame.shape[:2]
    scale = min(1.0, SIDE / max(rows, columns))
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) if small.ndim == 3 else small, dtype=np.uint8)


def find(frames: list[Bytes], rows: int, columns: int, colour: float = 0.0) -> Found:
    """Look for the picture in ``reduced`` frames of a screen of ``rows × columns`` pixels.

    ``colour`` is the share of coloured pixels. The picture is the largest lit area that moves, once everything thin (text,
    rulers) has been opened away; its outline is the hull of that area, cut along the probe's face.
    """
    stack = np.stack(frames)
    height, width = stack.shape[1:]
    steps = np.abs(np.diff(stack.astype(np.int16), axis=0)).mean(axis=0).astype(np.float32)
    moving = cv2.blur(steps, (5, 5)) > _MOVES
    if np.count_nonzero(moving) < 0.004 * height * width:
        return Found(None, STILL)
    component = _component(stack.max(axis=0), stack.min(axis=0), moving)
    if component is None:
        return Found(None, NO_PICTURE)
    area = float(np.count_nonzero(component)) / (height * width)
    if area > _LARGEST or _sides_touched(component) == 4:
        return Found(None, COLOURED if colour > 0.25 else FILLS)
    if colour > 0.5:
        return Found(None, COLOURED)
    outline = _outline(component)
    if outline is None:
        return Found(None, NO_PICTURE)
    return Found(_at_full_size(outline, _furniture(stack, steps, component, outline), (height, width), rows, columns))


def _component(lit: Bytes, still: Bytes, moving: npt.NDArray[np.bool_]) -> Bytes | None:
    """1 on the area that holds most of what moves; ``None`` when that is too small or hardly moves.

    ``lit`` and ``still`` are the brightest and the darkest value of each pixel over time.
    """
    soft = cv2.GaussianBlur(lit.astype(np.float32), (0, 0), 1.2)
    floor, bright = (float(value) for value in np.percentile(soft, (2, 99.5)))
    above = ((soft > floor + max(4.0, 0.05 * (bright - floor))) | moving).astype(np.uint8)
    above[_writing(lit, still)] = 0
    closed = cv2.morphologyEx(above, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_STROKE, _STROKE))
    opened = cv2.morphologyEx(np.pad(closed, 1), cv2.MORPH_OPEN, kernel)[1:-1, 1:-1]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return None
    active = np.bincount(labels[moving], minlength=count)
    active[0] = 0
    best = int(active.argmax())
    size = int(stats[best, cv2.CC_STAT_AREA])
    if size < _SMALLEST * lit.size or active[best] < 0.15 * size:
        return None
    return np.asarray(labels == best, dtype=np.uint8)


def _writing(lit: Bytes, still: Bytes) -> npt.NDArray[np.bool_]:
    """Where something thin, bright and still stands on black: text beside the picture must not grow together with it.

    A picture's own edge is thin as well; what does not stand out from it by more than ``_EDGE`` pixels is left.
    """
    ground = cv2.morphologyEx(lit, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
    strokes = ((cv2.subtract(still, ground) > _INK) & (ground < _BLACK)).astype(np.uint8)
    count, labels = cv2.connectedComponents(strokes, connectivity=8)
    away = cv2.distanceTransform((ground < _BLACK).astype(np.uint8), cv2.DIST_L2, 3)
    farthest = np.zeros(count, np.float32)
    np.maximum.at(farthest, labels.ravel(), away.ravel())
    farthest[0] = 0
    return np.asarray(cv2.dilate((farthest > _EDGE)[labels].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)


def _sides_touched(component: Bytes) -> int:
    edges = (component[0], component[-1], component[:, 0], component[:, -1])
    return sum(float(edge.mean()) > 0.5 for edge in edges)


def _outline(component: Bytes) -> npt.NDArray[np.int32] | None:
    """The hull as points (x, y), its upper edge bent along the probe's face; ``None`` for what is not solid."""
    contours, _ = cv2.findContours(component, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(np.concatenate(contours))
    filled = np.zeros_like(component)
    cv2.fillPoly(filled, [hull], 1)
    face = _face(component)
    if face is not None:
        ys = np.arange(filled.shape[0])[:, None]
        filled[ys < face[None, :]] = 0
    _trim(filled, component)
    _trim(filled[:, ::-1], component[:, ::-1])
    closed = cv2.morphologyEx(component, cv2.MORPH_CLOSE, np.ones((_STROKE, _STROKE), np.uint8))
    if np.count_nonzero(closed & filled) < _SOLID * np.count_nonzero(filled):
        return None
    contours, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(contours, key=cv2.contourArea)
    return np.asarray(largest[:, 0, :], dtype=np.int32)


def _trim(filled: Bytes, component: Bytes) -> None:
    """Cut what stands out to the left of the picture's straight left edge, in place: text that has grown on to it.

    The edge is the line through most of the component's first pixels (Theil–Sen), from its top to where it is widest;
    without such a line (a picture of another shape) nothing is cut.
    """
    rows = np.flatnonzero(component.any(axis=1))
    first = component.argmax(axis=1)
    rows = rows[: int(np.argmin(first[rows])) + 1] if len(rows) else rows
    if len(rows) < _EDGE_ROWS:  # upright: its first row is as wide as any
        rows = np.flatnonzero(component.any(axis=1))
    if len(rows) < _EDGE_ROWS:
        return
    xs = first[rows].astype(np.float64)
    one, two = np.triu_indices(len(rows), k=max(1, len(rows) // 4))
    slope = float(np.median((xs[two] - xs[one]) / (rows[two] - rows[one])))
    start = float(np.median(xs - slope * rows))
    if np.mean(np.abs(xs - slope * rows - start) < 1.5) < 0.5:
        return
    edge = slope * rows + start - 1.0
    columns = np.arange(filled.shape[1])[None, :]
    filled[rows] = np.where(columns < edge[:, None], 0, filled[rows])


def _face(component: Bytes) -> Floats | None:
    """First row of the picture in each column, a parabola through the probe's face; ``None`` when there is no bow in it."""
    columns = np.flatnonzero(component.any(axis=0))
    tops = component.argmax(axis=0)[columns]
    near = tops < tops.min() + 0.2 * component.shape[0]
    middle = (columns[0] + columns[-1]) / 2
    near &= np.abs(columns - middle) < 0.25 * (columns[-1] - columns[0])
    if np.count_nonzero(near) < 12:
        return None
    xs, ys = columns[near].astype(np.float64), tops[near].astype(np.float64)
    lowest = float(np.median(xs))
    fit = np.polyfit(xs - lowest, ys, 2)
    if fit[0] > -1e-4:  # rows count downwards: a convex probe's face hangs through in the middle
        return None
    return np.asarray(np.polyval(fit, np.arange(component.shape[1]) - lowest), dtype=np.float32)


def _furniture(
    stack: Bytes, steps: Floats, component: Bytes, outline: npt.NDArray[np.int32]
) -> list[tuple[int, int, int, int]]:
    """Boxes of what is bright, stands still and lies inside the outline, yet outside the picture's own area."""
    inside = np.zeros_like(component)
    cv2.fillPoly(inside, [outline], 1)
    own = cv2.dilate(component, np.ones((7, 7), np.uint8))
    still = ((stack.min(axis=0) > 60) & (steps < 0.5)).astype(np.uint8) & inside & (1 - own)
    count, _, stats, _ = cv2.connectedComponentsWithStats(still, connectivity=8)
    return [
        (int(top) - 1, int(left) - 1, int(top + height) + 1, int(left + width) + 1)
        for left, top, width, height, _ in stats[1:count]
    ]


def _at_full_size(
    outline: npt.NDArray[np.int32],
    holes: list[tuple[int, int, int, int]],
    small: tuple[int, int],
    rows: int,
    columns: int,
) -> Region:
    """The outline on the screen itself, drawn in by the pixel and a half that averaging had spread it."""
    height, width = small
    across, down = columns / width, rows / height
    points = (outline + 0.5) * (across, down) - 0.5
    drawn = np.zeros((rows, columns), np.uint8)
    cv2.fillPoly(drawn, [np.rint(points).astype(np.int32)], 255)
    inwards = 2 * round(1.5 * max(across, down)) + 1
    shrunk = cv2.erode(drawn, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (inwards, inwards)), borderValue=0)
    contours, _ = cv2.findContours(shrunk, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 0.75, closed=True)
    return Region(
        rows=rows,
        columns=columns,
        points=tuple((int(x), int(y)) for x, y in largest[:, 0, :]),
        holes=tuple(
            (max(0, int(top * down)), max(0, int(left * across)), int(bottom * down) + 1, int(right * across) + 1)
            for top, left, bottom, right in holes
        ),
    )


def coloured(frame: npt.NDArray[Any]) -> float:
    """Share of pixels whose channels differ by more than an eighth of full scale; 0 for grey."""
    if frame.ndim != 3:
        return 0.0
    small = frame[::8, ::8].astype(np.int16)
    return float(np.mean(small.max(axis=-1) - small.min(axis=-1) > 32))
