"""A recording while it goes on: to the disk first, then to those who listen along.

What this module keeps true: nothing is judged or shown that is not on the disk; a gap is written where it was; who
listens along can't stop the writing but by asking for the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import structlog

from appliance.capture.stethoscope_finish import floats, gap_piece, samples_piece
from appliance.capture.stethoscope_judge import Heard, Judge, Preview
from appliance.capture.stethoscope_source import Block
from appliance.store.spool import SpoolWriter

_log = structlog.get_logger(__name__)

PIECE_S = 0.4
"""What is written to the disk at a time."""
PEAKS_PER_S, PEAKS = 50, 300


Show = Callable[[float, Heard, tuple[int, ...], int], None]
"""Told after each piece: seconds so far, what was heard, the wave's peaks and how many there were in all."""


class Taking:
    """One recording while it goes on, on its thread: to the disk first, then to those who listen along."""

    def __init__(
        self,
        blocks: Iterator[Block | None],
        writer: SpoolWriter,
        rate_hz: int,
        judge: Judge,
        preview: Preview | None,
        clock: Callable[[], float],
        show: Show,
    ) -> None:
        self._blocks, self._writer, self._rate = blocks, writer, rate_hz
        self._judge, self._preview, self._clock, self._show = judge, preview, clock, show
        self._pending: list[bytes] = []
        self._bytes = 0
        self._since = clock()
        self._frames = 0
        self._rest = np.zeros(0, np.float32)
        self._peaks: deque[int] = deque(maxlen=2 * PEAKS)
        self._peaks_end = 0
        self._heard = Heard()
        self.deaf = False

    def run(self) -> None:
        """Until it is stopped; raises ``NoSound`` and ``OSError``."""
        try:
            for block in self._blocks:
                if block is not None:
                    if block.gap:
                        self._flush()
                        self._writer.append(gap_piece(block.gap))
                        self._frames += block.gap
                    self._pending.append(block.samples)
                    self._bytes += len(block.samples)
                if self._bytes and (self._clock() - self._since >= PIECE_S or self._bytes >= self._rate * 4):
                    self._flush()
        finally:
            try:
                self._flush()
            finally:
                if self._preview is not None:
                    self._preview.close()

    def _flush(self) -> None:
        self._since = self._clock()
        if not self._bytes:
            return
        taken = b"".join(self._pending)
        self._pending, self._bytes = [], 0
        self._writer.append(samples_piece(taken))
        samples = floats(taken)
        self._frames += len(samples)
        self._draw(samples)
        self._listen(samples)
        self._show(self._frames / self._rate, self._heard, tuple(self._peaks), self._peaks_end)

    def _listen(self, samples: npt.NDArray[np.float32]) -> None:
        if self.deaf:
            return
        try:
            self._heard = self._judge.feed(samples)
            if self._preview is not None:
                self._preview.offer(samples.astype("<f4").tobytes())
        # The edge of a task: who listens along must not cost the recording; nothing is judged from here on.
        except Exception as error:  # noqa: BLE001
            self.deaf = True
            self._heard = Heard()
            _log.exception("listening along failed; the recording goes on", kind=type(error).__name__, exc_info=False)

    def _draw(self, samples: npt.NDArray[np.float32]) -> None:
        step = max(1, self._rate // PEAKS_PER_S)
        wave = np.concatenate([self._rest, samples])
        count = wave.size // step
        columns = wave[: count * step].reshape(count, step)
        self._rest = wave[count * step :]
        low, high = columns.min(axis=1, initial=1.0), columns.max(axis=1, initial=-1.0)
        pairs = np.stack([low, high], axis=1).reshape(-1)
        self._peaks.extend(int(value) for value in np.rint(pairs * 1000.0))
        self._peaks_end += count
