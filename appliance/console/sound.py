"""A recording as any browser plays it: WAV, 16 bit, one channel, at a rate that browsers take.

What this module keeps true: what is heard is what was recorded: resampled upwards only, at the recorded level, nothing
filtered unless it is asked for. Browsers refuse rates below 3 kHz (Chromium's ``media::limits::kMinSampleRate``) and know no
DICOM waveforms; heart sounds come as both. The last few are held in memory, so that seeking (a range of bytes each) does not
decode again.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LOWEST_HZ = 8000
"""Recordings at a lower rate are resampled to the first whole multiple of it that is not below this."""
_HELD = 6
FILTERS: dict[str, tuple[float, float]] = {"heart": (25.0, 400.0), "lung": (60.0, 2000.0)}
"""Bands to listen in, Hz, as stethoscopes call them; anything else is unfiltered."""


def wav_of(data: bytes, band: str = "") -> bytes | None:
    """The bytes of a WAV for the original in ``data``; ``None`` when it is no recording that can be decoded.

    ``band``: one of ``FILTERS``.
    """
    import numpy as np

    from appliance.reading.decode import DecodeError, decode
    from appliance.reading.prepared import Sound

    try:
        sound = decode(data)
    except DecodeError:
        return None
    if not isinstance(sound, Sound) or not len(sound.samples) or not sound.rate_hz > 0:
        return None
    samples, rate = sound.samples, round(sound.rate_hz)
    factor = -(-LOWEST_HZ // max(rate, 1))
    if factor > 1:
        import soxr

        samples = np.asarray(soxr.resample(samples, rate, rate * factor), dtype=np.float32)
    if band in FILTERS:
        samples = band_pass(samples, rate * factor, *FILTERS[band])
    return _wav(samples, rate * factor)


class Player:
    """Holds the recordings that were listened to last. ``original``: capture id to the original's bytes."""

    def __init__(self, original: Callable[[str], bytes]) -> None:
        self._original = original
        self._held: OrderedDict[tuple[str, str], bytes | None] = OrderedDict()
        self._lock = threading.Lock()

    def wav(self, capture_id: str, band: str = "") -> bytes | None:
        """The WAV of a capture, ``None`` when it is no recording; raises what ``original`` raises."""
        name = capture_id, band if band in FILTERS else ""
        with self._lock:
            if name not in self._held:
                self._held[name] = wav_of(self._original(capture_id), band)
            self._held.move_to_end(name)
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
            return self._held[name]


def band_pass(samples: npt.NDArray[np.float32], rate_hz: int, low_hz: float, high_hz: float) -> npt.NDArray[np.float32]:
    """The samples between two edges, without delay: the magnitude of Butterworth filters of order 4, applied to the spectrum.

    The ends are mirrored over a quarter of a second, so that nothing of one end is heard at the other.
    """
    import numpy as np

    margin = min(rate_hz // 4, samples.size - 1)
    padded = np.pad(samples, margin, mode="reflect")
    frequency = np.fft.rfftfreq(padded.size, 1.0 / rate_hz)
    gain = 1.0 / np.sqrt(1.0 + (low_hz / np.maximum(frequency, 1e-6)) ** 8) / np.sqrt(1.0 + (frequency / high_hz) ** 8)
    heard = np.fft.irfft(np.fft.rfft(padded) * gain, padded.size)
    return np.asarray(heard[margin : margin + samples.size], np.float32)


def _wav(samples: npt.NDArray[np.float32], rate: int) -> bytes:
    """RIFF/WAVE, PCM 16 bit (Microsoft and IBM, Multimedia Programming Interface 1.0, 1991)."""
    import numpy as np

    data = np.rint(samples.clip(-1.0, 1.0) * 32767.0).astype("<i2").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", 4 + len(form) + 8 + len(data), b"WAVE")
        + form
        + struct.pack("<4sI", b"data", len(data))
        + data
    )
