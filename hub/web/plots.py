"""Plots of the quality page as SVG: bars for times, shares with their interval for agreement. The tables beside say the same.

What this module keeps true: a plot holds no text from the wire but labels that it escapes, and no styles of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from hub.quality import Agreement, Wait
from hub.web.rendering import waiting

_WIDTH, _LEFT, _RIGHT, _ROW = 640, 190, 90, 34
_TICKS = (60, 300, 900, 3600, 4 * 3600, 86_400, 7 * 86_400)


def waits(found: Sequence[Wait]) -> Markup:
    """Median (bar) and 90 % (line) of the time to a human's word, on a logarithmic scale from one minute on."""
    shown = [one for one in found if one.median is not None and one.p90 is not None]
    if not shown:
        return Markup("")
    longest = max([900.0, *(one.p90 or 0.0 for one in shown)])

    def x(seconds: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(max(seconds, 60) / 60) / math.log(longest / 60)

    parts = []
    for tick in _TICKS:
        if tick <= longest:
            parts.append(_line(x(tick), 8, x(tick), 12 + _ROW * len(shown), "grid"))
            parts.append(_text(x(tick), 30 + _ROW * len(shown), waiting(tick), "tick"))
    for number, one in enumerate(shown):
        top, median, p90 = 14 + _ROW * number, one.median or 0.0, one.p90 or 0.0
        parts.append(_text(_LEFT - 10, top + 16, f"{one.triage.value.capitalize()} ({one.count})", "name"))
        width = max(2.0, x(median) - _LEFT)
        parts.append(
            f'<rect class="bar {one.triage.value}" x="{_LEFT}" y="{top}" width="{width:.1f}" height="22" rx="3"/>'
        )
        parts.append(_line(x(median), top + 11, x(p90), top + 11, "whisker"))
        parts.append(_line(x(p90), top + 4, x(p90), top + 18, "whisker"))
        parts.append(_text(x(p90) + 8, top + 16, waiting(p90), "value"))
    return _svg(parts, 40 + _ROW * len(shown), "Time from when the patient began to wait to the first human word")


def agreement(found: Sequence[Agreement]) -> Markup:
    """The share of agreement with its 95 % interval, a line for each finding and site."""
    if not found:
        return Markup("")

    def x(share: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(x(tick), 8, x(tick), 12 + _ROW * len(found), "grid"))
        parts.append(_text(x(tick), 30 + _ROW * len(found), f"{tick:.0%}", "tick"))
    for number, one in enumerate(found):
        top = 14 + _ROW * number
        parts.append(_text(_LEFT - 10, top + 16, f"{one.label[:18]}, {one.site[:10]}", "name"))
        parts.append(_line(x(one.low), top + 11, x(one.high), top + 11, "whisker"))
        parts.append(f'<circle class="dot" cx="{x(one.share):.1f}" cy="{top + 11}" r="6"/>')
        count = one.both + one.only_model + one.only_reader + one.neither
        parts.append(_text(_WIDTH - _RIGHT + 12, top + 16, f"{one.share:.0%} of {count}", "value"))
    return _svg(
        parts, 40 + _ROW * len(found), "Share of answers in which reader and model agree, with its 95 % interval"
    )


def _svg(parts: Sequence[str], height: int, title: str) -> Markup:
    inside = "".join(parts)
    return Markup(  # noqa: S704 - numbers, and labels that _text escapes
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{inside}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
