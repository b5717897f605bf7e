"""What stands in a small form: texts and choices, cleaned once, never a file.

What this module keeps true: a form of more than ``MOST`` bytes or of odd fields is refused; control characters never get in.
"""

from __future__ import annotations

import math

from starlette.requests import Request

from appliance.console.words import N_

MOST = 64 * 1024


class NotAForm(Exception):  # noqa: N818 - the condition's name
    """The request carries no form that can be understood."""


class Fields:
    """The fields of a form; one that is missing is empty."""

    def __init__(self, fields: dict[str, tuple[str, ...]]) -> None:
        self._fields = fields

    def text(self, name: str) -> str:
        """A text without control characters and surrounding space."""
        return next(iter(self._fields.get(name, ())), "")

    def all(self, name: str) -> tuple[str, ...]:
        """Every choice of this name."""
        return self._fields.get(name, ())

    def number(self, name: str) -> int:
        """A count; -1 when it is none."""
        text = self.text(name)
        return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else -1

    def decimal(self, name: str) -> float | None:
        """A number with a point or a comma; ``None`` when empty, not a number (NaN) when it is none."""
        text = self.text(name)
        if not text:
            return None
        try:
            return float(text.replace(",", "."))
        except ValueError:
            return math.nan


async def read_form(request: Request) -> Fields:
    """The form of a request; raises ``NotAForm``."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MOST:
        raise NotAForm(N_("The form could not be understood. Choose one file and send it again."))
    fields: dict[str, tuple[str, ...]] = {}
    async with request.form(max_files=0, max_fields=60) as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                clean = "".join(one for one in value if one.isprintable()).strip()
                fields[name] = (*fields.get(name, ()), clean)
    return Fields(fields)
