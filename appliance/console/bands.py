"""Ages as they are tapped at the bedside, where nobody knows a birthday: ranges that the models' limits and doses follow.

What this module keeps true: the ranges meet without a gap; a patient entered by range keeps the range (``age_until``), and no
page makes a false number of it.
"""

from __future__ import annotations

from typing import NamedTuple

from appliance.console.words import N_


class Band(NamedTuple):
    """A range of ages, years, from ``low`` up to ``high``, as it is tapped."""

    low: float
    high: float
    words: str


BANDS: dict[str, Band] = {
    "newborn": Band(0.0, 1 / 12, N_("Newborn, under 1 month")),
    "infant": Band(1 / 12, 1.0, N_("1 to 11 months")),
    "toddler": Band(1.0, 5.0, N_("1 to 4 years")),
    "child": Band(5.0, 15.0, N_("5 to 14 years")),
    "adult": Band(15.0, 50.0, N_("15 to 49 years")),
    "older": Band(50.0, 65.0, N_("50 to 64 years")),
    "old": Band(65.0, 130.0, N_("65 years or more")),
}
