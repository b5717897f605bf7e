"""What passes between the steps of a reading: a decoded capture goes in, model inputs and quality come out.

What this module keeps true: decoding knows nothing of models, and a preprocessing step knows nothing of engines. Arrays
are never copied to cross from one step to the next.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.records import Measure, Refusal


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the file itself says of the capture; empty where it says nothing."""

    media_type: str
    sop_class_uid: str = ""
    dicom_modality: str = ""
    body_part: str = ""
    view: str = ""
    age_years: float | None = None
    sex: str = ""
    rows: int = 0
    columns: int = 0
    frames: int = 1
    description: str = ""
    position: str = ""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded picture or cine.

    ``pixels``: grey ``[frames, rows, columns]`` (uint8, uint16 or int16, stored values, not inverted and not windowed) or
    colour ``[frames, rows, columns, 3]`` (uint8, RGB). ``invert``: stored MONOCHROME1. ``window``: centre and width of
    DICOM's LINEAR (or, with ``sigmoid``, SIGMOID) function in stored values, the rescale undone, or ``None``. ``lut``: a
    VOI LUT (first stored value mapped, table scaled to 0…1), used in place of the window where there is one.
    ``frame_time_ms``: 0 for a still.
    """

    header: Header
    pixels: npt.NDArray[Any]
    invert: bool = False
    window: tuple[float, float] | None = None
    lut: tuple[float, npt.NDArray[np.float32]] | None = None
    sigmoid: bool = False
    frame_time_ms: float = 0.0


class Sound(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded recording. ``samples``: float32 ``[n]``, full scale ±1, one channel; ``rate_hz``: as recorded."""

    header: Header
    samples: npt.NDArray[np.float32]
    rate_hz: float


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """Model inputs and quality of one capture.

    ``inputs``: graph name → tensor name → array, first axis N (frames or windows; 1 for a still). ``quality``: named
    indices that a bundle's gate may limit. ``refusal``: set when this capture must not be read at all (silent, empty…);
    its ``code`` is looked up among the bundle's refusals for words. ``frames``: which frame or window start (seconds) each
    row of the inputs came from.
    """

    inputs: dict[str, dict[str, npt.NDArray[Any]]]
    quality: dict[str, float]
    measures: tuple[Measure, ...] = ()
    refusal: Refusal | None = None
    frames: tuple[float, ...] = ()
    map_box: tuple[int, int, int, int] | None = None
    """Rows and columns [top, left, bottom, right) of the picture that the activation map covers; all of it when None."""
