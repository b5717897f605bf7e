"""Reads what is live in the reading process: a frame by itself, a recording window by window.

What this module keeps true: a live reading is what ``Reader`` says of the frame, or of all that was heard so far; a window's
networks run once, however often the recording is asked about. A few recordings are remembered, the others can be sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance import records
from appliance.inference.bundle import Bundle
from appliance.reading.prepared import Header, Picture, Sound
from appliance.reading.reader import Looked, Reader, Served
from appliance.reading.requests import Known, LiveAnswer, LiveFrame, LiveSound
from appliance.records import Reading

SESSIONS = 4
_HEARD_S = 30.0
_FORGET_S = 8.0
"""A whole number of the steps of the bundles that ship (1.6 s and 2 s): windows heard before stay where they are."""

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


class LiveReader:
    """Answers what is live with a reader's own steps."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._sessions: dict[str, _Session] = {}

    def answer(self, live: LiveFrame | LiveSound, known: Known) -> LiveAnswer:
        """The reading of a frame, or of a recording so far."""
        if isinstance(live, LiveFrame):
            return LiveAnswer(reading=self._reader.answer(self._reader.look_at(_picture(live), known)))
        session = self._sessions.pop(live.session, None)
        if session is None or live.first > session.have:
            if not live.whole:
                return LiveAnswer(reading=None)
            session = _Session(live.first)
        self._sessions[live.session] = session
        while len(self._sessions) > SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session.add(live)
        return LiveAnswer(reading=session.read(self._reader, known, live.rate_hz), have=session.have)


class _Session:
    """A recording that goes on: its newest samples, and what the networks said of each window."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._samples = np.zeros(0, np.float32)
        self._known: dict[tuple[str, int], dict[str, Array]] = {}

    @property
    def have(self) -> int:
        """Samples heard, counted from the recording's beginning."""
        return self._first + len(self._samples)

    def add(self, live: LiveSound) -> None:
        """Append what is new; what is older than any bundle hears goes."""
        new = np.frombuffer(live.samples, "<f4")[self.have - live.first :]
        self._samples = np.concatenate([self._samples, new])
        surplus = len(self._samples) - round(_HEARD_S * live.rate_hz)
        if surplus > 0:
            step = round(_FORGET_S * live.rate_hz)
            gone = -(-surplus // step) * step
            self._first += gone
            self._samples = self._samples[gone:]

    def read(self, reader: Reader, known: Known, rate_hz: float) -> Reading:
        """The reading of what is here."""
        sound = Sound(header=Header(media_type="audio/wav"), samples=self._samples, rate_hz=rate_hz)
        looked = reader.look_at(sound, known)
        return reader.answer(self._remembering(looked, self._first / rate_hz))

    def _remembering(self, looked: Looked, begins_s: float) -> Looked:
        served, prepared = looked.served, looked.prepared
        if served is None or prepared is None or len(prepared.frames) < 2:
            return looked
        starts = [round(1000 * (begins_s + start)) for start in prepared.frames]
        return msgspec.structs.replace(looked, served=_Remembering(served, starts, self._known))


class _Remembering:
    """A served bundle that runs only the windows that were not run before."""

    def __init__(self, served: Served, starts: list[int], known: dict[tuple[str, int], dict[str, Array]]) -> None:
        self._served = served
        self._starts = starts
        self._known = known

    @property
    def bundle(self) -> Bundle:
        """The bundle that serves."""
        return self._served.bundle

    def engine_record(self) -> records.Engine:
        """What runs it."""
        return self._served.engine_record()

    def run(self, graph: str, inputs: Arrays) -> Arrays:
        """The outputs of every window; a graph that takes no windows is run as it is."""
        if any(len(value) != len(self._starts) for value in inputs.values()):
            return self._served.run(graph, inputs)
        new = [row for row, start in enumerate(self._starts) if (graph, start) not in self._known]
        if new:
            outputs = self._served.run(
                graph, {name: np.ascontiguousarray(value[new]) for name, value in inputs.items()}
            )
            for position, row in enumerate(new):
                self._known[graph, self._starts[row]] = {name: value[position] for name, value in outputs.items()}
        for key in [key for key in self._known if key[0] == graph and key[1] not in self._starts]:
            del self._known[key]
        rows = [self._known[graph, start] for start in self._starts]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _picture(live: LiveFrame) -> Picture:
    shape = (1, live.rows, live.columns, 3) if live.channels == 3 else (1, live.rows, live.columns)
    header = Header(media_type="image/png", rows=live.rows, columns=live.columns)
    return Picture(header=header, pixels=np.frombuffer(live.pixels, np.uint8).reshape(shape))
