"""Those who listen along while a recording goes on, as the recorder sees them.

What this module keeps true: it imports nothing that takes memory; the daemon has it all the time, a recording now and then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from appliance.records import Reading, Record

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


class Heard(Record, frozen=True, kw_only=True):
    """What a judge says of a recording so far.

    ``level_db``: dB below full scale. ``quality``: 0 to 1. ``guidance``: a code for words and icon. ``clean`` of ``needed``
    ``unit`` are in; ``rate_per_minute``: of beats or breaths, ``None`` while it is not sure.
    """

    level_db: float = -200.0
    quality: float = 0.0
    guidance: str = "listening"
    clean: float = 0.0
    needed: float = 1.0
    unit: Literal["beats", "breaths"] = "beats"
    rate_per_minute: float | None = None
    enough: bool = False


class Judge(Protocol):
    """Listens along."""

    def feed(self, samples: Floats) -> Heard:
        """Samples ``[n]`` as they come, full scale ±1; what is to be said now."""


class Told(Protocol):
    """What a running result says."""

    @property
    def reading(self) -> Reading:
        """Of what was heard so far; a preview, never the answer."""


class Preview(Protocol):
    """A running result; see ``reading.stream.PreviewSound``."""

    @property
    def newest(self) -> Told | None:
        """The newest result, ``None`` before the first."""

    def offer(self, samples: bytes) -> None:
        """Float32 samples; returns at once."""

    def close(self) -> None:
        """No more."""
