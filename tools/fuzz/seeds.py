"""Whole files to begin from, of each kind that is parsed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from tools.fuzz.cases import SEED_MOST


def dicom() -> list[bytes]:
    """The small files that pydicom and pydicom-data bring."""
    import data_store
    import pydicom

    folders = (Path(pydicom.__file__).parent / "data" / "test_files", Path(data_store.__file__).parent / "data")
    files = [path for folder in folders for path in sorted(folder.glob("*.dcm")) if path.stat().st_size <= SEED_MOST]
    return [path.read_bytes() for path in files]


def sounds() -> list[bytes]:
    """WAV and FLAC in every subtype that a stethoscope's app may write, one and two channels."""
    import numpy as np
    import soundfile

    from tools.simulate.sounds import heart

    wave = heart(1.0, 4000)[0]
    made = []
    for form, subtype, channels in (
        ("WAV", "PCM_16", 1), ("WAV", "PCM_16", 2), ("WAV", "PCM_U8", 1), ("WAV", "PCM_24", 1), ("WAV", "PCM_32", 1),
        ("WAV", "FLOAT", 1), ("WAV", "DOUBLE", 1), ("WAV", "ULAW", 1), ("WAV", "IMA_ADPCM", 1), ("WAVEX", "PCM_16", 2),
        ("RF64", "PCM_16", 1), ("FLAC", "PCM_16", 1), ("FLAC", "PCM_24", 2), ("FLAC", "PCM_S8", 1),
    ):  # fmt: skip
        file = io.BytesIO()
        soundfile.write(file, np.stack([wave] * channels, axis=1), 4000, format=form, subtype=subtype)
        made.append(file.getvalue())
    return made


def configurations() -> list[bytes]:
    """The examples of box, hub and site."""
    from appliance.config import example as box
    from appliance.provision.site import example as site
    from hub.config import example as hub

    return [text.encode() for text in (box(), hub(), site())]


POOLS: dict[str, Callable[[], list[bytes]]] = {"files": dicom, "sounds": sounds, "config": configurations}
