"""A small picture of a capture, to go before the original: what a human needs first, for few bytes.

What this module keeps true: a preview of a picture is windowed as a viewer would window it (window or VOI LUT, MONOCHROME1
inverted) and never larger than ``EDGE`` pixels; of a cine it is the middle frame; of a sound it is the spectrogram up to
1 kHz, time to the right, frequency upwards, and a clip of at most ``CLIP_S`` seconds that can be listened to, about 2 kB a
second. At 16 kbit/s Opus keeps the bands of heart and lung sounds; at 8 kbit/s it distorts 150 to 800 Hz.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from appliance.reading.prepared import Picture, Sound
from appliance.reading.requests import Preview
from appliance.reading.xray import area, displayed

__all__ = ["Preview", "clip", "preview", "spectrogram"]

EDGE = 640
QUALITY = 80

CLIP_S, CLIP_BITS = 15.0, 16_000
_CLIP_HZ = 8000
_LOUD, _SILENT = 0.7, 1e-4

_TOP_HZ = 1000.0
_WINDOW_S = 0.064
_HOP_S = 0.016
_RANGE_DB = 60.0


def preview(capture: Picture | Sound) -> Preview:
    """The preview of a decoded capture: a JPEG of a picture, a PNG and a clip of a sound."""
    if isinstance(capture, Sound):
        return Preview(media_type="image/png", data=_encode(".png", spectrogram(capture), []), sound=clip(capture))
    frame = _frame(capture, len(capture.pixels) // 2)
    return Preview(media_type="image/jpeg", data=_encode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]))


def _frame(picture: Picture, index: int) -> npt.NDArray[np.uint8]:
    """One frame as it is meant to be seen, grey ``[rows, columns]`` or BGR ``[rows, columns, 3]``, aspect kept."""
    frame = picture.pixels[index]
    scale = min(1.0, EDGE / max(frame.shape[:2]))
    rows, columns = (max(1, round(side * scale)) for side in frame.shape[:2])
    if frame.ndim == 3:
        small = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small[..., ::-1], dtype=np.uint8)
    shown = displayed(picture, area(frame, rows, columns)) * np.float32(255.0)
    return np.asarray(shown, dtype=np.uint8)


def spectrogram(sound: Sound) -> npt.NDArray[np.uint8]:
    """Log spectrogram as an 8-bit picture, at most 200 rows (0 to 1 kHz, upwards) and 900 columns."""
    window = max(16, round(sound.rate_hz * _WINDOW_S))
    hop = max(4, round(sound.rate_hz * _HOP_S), len(sound.samples) // 900)
    padded = np.pad(sound.samples, (0, max(0, window - len(sound.samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    power = power[:, : max(8, int(_TOP_HZ * window / sound.rate_hz) + 1)]
    level = 10.0 * np.log10(power + 1e-12)
    scaled = np.clip((level - level.max() + _RANGE_DB) / _RANGE_DB, 0.0, 1.0)
    grey = np.ascontiguousarray((255.0 * scaled.T[::-1]).astype(np.uint8))
    tall = cv2.resize(grey, (grey.shape[1], 200), interpolation=cv2.INTER_LINEAR)
    return np.asarray(tall, dtype=np.uint8)


def clip(sound: Sound) -> bytes:
    """The first ``CLIP_S`` seconds as OGG/Opus, mono, 8 kHz, as loud as it can be; nothing of a silent or empty sound."""
    import soundfile
    import soxr

    samples = sound.samples[: round(CLIP_S * sound.rate_hz)]
    loudest = float(np.abs(samples).max(initial=0.0))
    if loudest < _SILENT:
        return b""
    wanted = soxr.resample(samples * np.float32(_LOUD / loudest), sound.rate_hz, _CLIP_HZ)
    out = io.BytesIO()
    with soundfile.SoundFile(
        out, "w", _CLIP_HZ, 1, "OPUS", format="OGG", compression_level=_opus_level(CLIP_BITS)
    ) as file:
        file.write(wanted)
    return out.getvalue()


def _opus_level(bits: int) -> float:
    """The compression level that libsndfile (``ogg_opus.c``) takes for a bit rate: 256 kbit/s at 0, 6 kbit/s at 1."""
    return (256_000 - bits) / 250_000


def _encode(kind: str, picture: npt.NDArray[Any], parameters: list[int]) -> bytes:
    done, data = cv2.imencode(kind, picture, parameters)
    if not done:
        raise ValueError(f"a preview of shape {picture.shape} could not be encoded")
    return bytes(data)
