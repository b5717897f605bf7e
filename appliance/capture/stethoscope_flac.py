"""A recording as FLAC, without loss: the original that goes through the door.

What this module keeps true: decoding gives the very samples that the sound card gave (to its 24 bits), at the rate at which
it gave them; the same samples and words make the same file, so that a recording finished twice is one capture. FLAC is the
original and not DICOM, since a General Audio Waveform takes no more than 16 bits and 44.1 kHz; the DICOM object is derived
from it (``interop.waveform``).
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int32]


def flac_of(samples: Samples, rate_hz: int, comment: str) -> bytes:
    """FLAC of ``samples`` ``[n]`` (signed, the upper 24 of 32 bits), 16 bits where that is all there is."""
    import soundfile

    out = io.BytesIO()
    kind = "PCM_24" if np.any(samples & 0xFFFF) else "PCM_16"
    with soundfile.SoundFile(out, "w", rate_hz, 1, kind, format="FLAC") as file:
        file.comment = comment
        file.write(samples)
    return out.getvalue()


def full_scale(samples: Samples) -> npt.NDArray[np.float32]:
    """The samples as float32, full scale ±1."""
    return np.asarray(samples / np.float64(1 << 31), np.float32)
