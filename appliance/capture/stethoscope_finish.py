"""From the pieces of a spooled recording to the file that goes through the door.

What this module keeps true: what is read is what was written, as far as it goes: a recording without its end was interrupted
and says so; lost samples whose number is known are silence of that length; the same pieces make the same file, and those of
two recordings never do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from appliance.capture.video_takes import Whose
from appliance.records import Moment

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

_BEGIN, _SAMPLES, _GAP, _END = b"B", b"S", b"G", b"E"
_LONGEST_GAP_S = 60
_WHY = {
    "hand": "stopped by hand",
    "enough": "stopped when enough was heard",
    "longest": "stopped at the longest time",
    "device": "ended because the stethoscope was lost",
    "disk": "ended because the disk took no more",
    "": "interrupted: the box was switched off or stopped",
}


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """How a recording began."""

    place: str
    device: str
    rate_hz: int
    moment: Moment
    whose: Whose = Whose()


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended; an empty ``why``: it was interrupted."""

    why: str = ""
    overflows: int = 0
    lost: int = 0


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A recording as a file. ``seconds``: its length; ``filled``: samples of silence put in for lost ones."""

    begun: Begun
    ended: Ended
    seconds: float
    filled: int
    flac: bytes


def begin_piece(begun: Begun) -> bytes:
    """The first piece."""
    return _BEGIN + msgspec.json.encode(begun)


def samples_piece(taken: bytes) -> bytes:
    """Samples, signed 32 bits, little-endian."""
    return _SAMPLES + taken


def gap_piece(frames: int) -> bytes:
    """A number of samples that are missing here."""
    return _GAP + struct.pack(">Q", frames)


def end_piece(ended: Ended) -> bytes:
    """The last piece."""
    return _END + msgspec.json.encode(ended)


def finish(parts: Iterable[bytes]) -> Finished | None:
    """The recording of these pieces; ``None`` when it holds no samples."""
    import numpy as np

    from appliance.capture.stethoscope_flac import flac_of

    begun: Begun | None = None
    ended = Ended()
    samples: list[npt.NDArray[np.int32]] = []
    filled = 0
    for part in parts:
        kind, body = part[:1], part[1:]
        if kind == _BEGIN:
            begun = msgspec.json.decode(body, type=Begun)
        elif kind == _SAMPLES:
            samples.append(np.frombuffer(body, "<i4"))
        elif kind == _GAP and begun is not None:
            missing = min(struct.unpack(">Q", body)[0], _LONGEST_GAP_S * begun.rate_hz)
            samples.append(np.zeros(missing, np.int32))
            filled += missing
        elif kind == _END:
            ended = msgspec.json.decode(body, type=Ended)
    if begun is None or not any(part.size for part in samples):
        return None
    whole = np.concatenate(samples)
    finished = Finished(begun=begun, ended=ended, seconds=whole.size / begun.rate_hz, filled=filled, flac=b"")
    when = begun.moment  # two silent recordings are two captures, whose patients may differ
    comment = f"{describe(finished)}; begun {when.wall}, boot {when.boot_id}, {when.monotonic_ns} ns"
    return msgspec.structs.replace(finished, flac=flac_of(whole, begun.rate_hz, comment))


def describe(finished: Finished) -> str:
    """The account of a recording in words, for its record and its file; nothing of a patient."""
    begun, ended = finished.begun, finished.ended
    words = [f"{finished.seconds:.1f} s at {begun.rate_hz} Hz from {begun.device}", _WHY.get(ended.why, ended.why)]
    if ended.overflows:
        words.append(f"{ended.overflows} overflows of the sound card")
    if finished.filled:
        words.append(f"{finished.filled / begun.rate_hz:.2f} s lost on the way, silence in their place")
    return "; ".join(words)


def floats(taken: bytes) -> Floats:
    """Samples as they come, as float32 of full scale ±1."""
    import numpy as np

    from appliance.capture.stethoscope_flac import full_scale

    return full_scale(np.frombuffer(taken, "<i4"))
