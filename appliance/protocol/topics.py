"""Topics: ``bedside/v1/{site}/{device}/up|down/…``. Names are checked both when made and when taken apart.

What this module keeps true: nothing identifying a person can stand in a topic (only the two configured names and fixed
words), and a topic that is not exactly of this form is refused, so that a hostile name can't reach a path or a query.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

ROOT = "bedside/v1"

Up = Literal["result", "blob", "status", "telemetry", "receipt", "renewal", "checkpoint"]
Down = Literal["receipt", "review", "command", "certificate"]

UP: tuple[Up, ...] = ("result", "blob", "status", "telemetry", "receipt", "renewal", "checkpoint")
DOWN: tuple[Down, ...] = ("receipt", "review", "command", "certificate")

_NAME = r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"
_TOPIC = re.compile(rf"{ROOT}/(?P<site>{_NAME})/(?P<device>{_NAME})/(?P<way>up|down)/(?P<leaf>[a-z]+)")


class TopicError(ValueError):
    """The topic is not one of ours."""


class Address(NamedTuple):
    """Whom a topic belongs to."""

    site: str
    device: str

    def up(self, leaf: Up) -> str:
        """The topic on which this device publishes ``leaf``."""
        return _checked(f"{ROOT}/{self.site}/{self.device}/up/{leaf}")

    def down(self, leaf: Down) -> str:
        """The topic on which this device is told ``leaf``."""
        return _checked(f"{ROOT}/{self.site}/{self.device}/down/{leaf}")

    @property
    def key(self) -> str:
        """``site/device``: what ids of captures derive from, and how the hub names the device."""
        return f"{self.site}/{self.device}"


def parse(topic: str) -> tuple[Address, str, str]:
    """Take a topic apart into (address, ``up`` or ``down``, leaf); raises ``TopicError``."""
    match = _TOPIC.fullmatch(topic)
    if match is None or match["leaf"] not in (UP if match["way"] == "up" else DOWN):
        raise TopicError(f"not a topic of this protocol: {topic[:120]!r}")
    return Address(match["site"], match["device"]), match["way"], match["leaf"]


def every_up(leaf: Up, share: str = "") -> str:
    """The filter that takes ``leaf`` from every device; with ``share``, a shared subscription of that group."""
    plain = f"{ROOT}/+/+/up/{leaf}"
    return f"$share/{share}/{plain}" if share else plain


def _checked(topic: str) -> str:
    parse(topic)
    return topic
