"""A source of sound behind the interface of ``capture.stethoscope_source``, as fast as the reader takes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from appliance.capture.stethoscope_messages import Counts, Failure, Opened
from appliance.capture.stethoscope_source import Block, NoSound


def int32(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Float samples of ±1 as a 16-bit card gives them, in the upper half of 32 bits."""
    return np.rint(samples.clip(-1, 1) * 32767).astype(np.int32) << 16


class PlayedSource:
    """Plays ``samples`` in blocks of 0.1 s; then waits for ``stop``, or fails with ``failure``.

    ``gaps``: block number to samples that are missing before it. ``waits``: block number before which ``go_on`` is awaited.
    """

    def __init__(
        self,
        samples: npt.NDArray[np.int32],
        rate_hz: int = 4000,
        *,
        gaps: dict[int, int] | None = None,
        overflows: int = 0,
        failure: Failure | None = None,
        waits: int | None = None,
    ) -> None:
        self.samples, self.rate_hz, self.gaps, self.failure = samples, rate_hz, gaps or {}, failure
        self.counts = Counts(overflows=overflows, lost=sum((gaps or {}).values()))
        self.waits, self.go_on, self.reached = waits, threading.Event(), threading.Event()
        self.stopped = threading.Event()

    def open(self) -> Opened:
        if self.failure is not None and not self.samples.size:
            raise NoSound(self.failure)
        return Opened(device="Simulated stethoscope", rate_hz=self.rate_hz)

    def blocks(self) -> Iterator[Block | None]:
        step = self.rate_hz // 10
        for number, first in enumerate(range(0, self.samples.size, step)):
            if number == self.waits:
                self.reached.set()
                while not self.go_on.wait(0.01) and not self.stopped.is_set():
                    yield None
            if self.stopped.is_set():
                return
            yield Block(self.samples[first : first + step].astype("<i4").tobytes(), self.gaps.get(number, 0))
        if self.failure is not None:
            raise NoSound(self.failure)
        self.reached.set()
        while not self.stopped.wait(0.01):
            yield None

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> Counts:
        return self.counts
