"""The samples of a recording as whole numbers, for files that hold nothing else.

What this module keeps true: a file of whole numbers gives these very numbers (its upper 32 bits); one of floating-point
numbers (as apps of stethoscopes write) is scaled, full scale ±1 to 32 bits, and never cut down to silence; a header that
declares more than a recording has costs no memory.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MOST = 1 << 26
"""Samples of all channels: 15 minutes of one channel at 48 kHz are two thirds of it."""
_BLOCK = 1 << 20


class Samples(NamedTuple):
    """``values``: int32 ``[frames, channels]``; ``subtype``: how the file held them, in libsndfile's words."""

    values: npt.NDArray[np.int32]
    rate: int
    subtype: str


class SoundError(ValueError):
    """The file can't be read as a recording; the message says why and quotes nothing of it."""


def samples_of(data: bytes) -> Samples:
    """The samples of a WAV, FLAC or OGG file; raises ``SoundError``."""
    import numpy as np
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames * file.channels > MOST:
                raise SoundError(
                    f"it declares {file.frames} samples in {file.channels} channels, more than a recording has"
                )
            blocks = [np.zeros((0, file.channels), np.int32)]
            while len(block := file.read(_BLOCK // file.channels + 1, dtype="float64", always_2d=True)):
                whole = np.rint(np.nan_to_num(block, nan=0.0, posinf=1.0, neginf=-1.0) * 2.0**31)
                blocks.append(np.clip(whole, -(2.0**31), 2.0**31 - 1).astype(np.int32))
            return Samples(np.concatenate(blocks), file.samplerate, file.subtype)
    except (soundfile.LibsndfileError, TypeError, OverflowError, MemoryError) as error:
        raise SoundError(f"it can't be decoded ({type(error).__name__})") from error
