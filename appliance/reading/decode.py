"""Bytes to a picture or a sound: what kind of file this is, and what it is of.

What this module keeps true: ``decode`` returns a ``Picture`` or a ``Sound`` or raises ``DecodeError``, nothing else, whatever
the bytes; it knows nothing of models; pixels that are stored uncompressed are viewed, not copied; pydicom and soundfile are
imported only for files that need them. A file is read into memory, not mapped: on a stick that is pulled out a mapped page
kills the process, and a read costs the same (0.3 ms for 7 MB).
"""

from __future__ import annotations

from pathlib import Path

from appliance.reading.decode_limits import BROKEN, DEFAULT_LIMITS, DecodeError, Limits
from appliance.reading.prepared import Header, Picture, Sound
from appliance.records import Modality

__all__ = ["DEFAULT_LIMITS", "DecodeError", "Limits", "decode", "modality_of"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_BARE_DICOM = (b"\x02\x00", b"\x08\x00")
_DICOM_NAMES = (".dcm", ".dic", ".dicom", ".ima")


def decode(
    source: Path | bytes | bytearray | memoryview, name_hint: str = "", *, limits: Limits = DEFAULT_LIMITS
) -> Picture | Sound:
    """Decode a DICOM object, PNG, JPEG, WAV or FLAC.

    Args:
        source: a plain file, or its bytes (kept alive by the picture's pixels where these are viewed).
        name_hint: the file's name, used only to recognise DICOM without a preamble.
        limits: what may be asked of memory.

    Raises:
        DecodeError: with a stable code, the cause and a remedy.
    """
    data = _bytes(source, limits)
    hint = (name_hint or (source.name if isinstance(source, Path) else "")).lower()
    head = bytes(data[:132])
    if not head:
        raise DecodeError("empty", "the file is empty", "copy or send it again")
    try:
        if head[128:132] == b"DICM" or head[:2] in _BARE_DICOM or (hint.endswith(_DICOM_NAMES) and head[1:2] == b"\0"):
            from appliance.reading.decode_dicom import decode_dicom

            return decode_dicom(data, limits, preamble=head[128:132] == b"DICM")
        if head.startswith((_PNG, _JPEG)):
            from appliance.reading.decode_media import decode_picture

            return decode_picture(data, limits)
        if (head[:4] in {b"RIFF", b"RF64"} and head[8:12] == b"WAVE") or head[:4] == b"fLaC":
            from appliance.reading.decode_media import decode_sound

            return decode_sound(data, limits)
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError(
            "too-large", "decoding the file needs more memory than there is", "export it smaller or uncompressed"
        ) from error
    except BROKEN as error:
        raise DecodeError(
            "damaged", f"the file can't be decoded ({type(error).__name__}: {error})", "copy or send it again"
        ) from error
    raise DecodeError(
        "not-dicom" if hint.endswith(_DICOM_NAMES) else "unknown-format",
        "the file is neither DICOM nor PNG, JPEG, WAV or FLAC",
        "export it from the machine as DICOM",
    )


def modality_of(header: Header) -> Modality:
    """What a file says it is of, ``OTHER`` where it does not say.

    Projection radiography (CR, DX, RF, and SC of CR/DX origin) is taken for a chest X-ray, whatever the body part: what
    is not a chest is then refused by the bundle's own checks, with words. Ultrasound is taken for lung ultrasound. A sound
    needs to say heart or lung.
    """
    modality = header.dicom_modality
    if modality in {"CR", "DX", "DR", "RG"}:
        return Modality.CHEST_XRAY
    if modality == "US":
        return Modality.LUNG_ULTRASOUND
    if header.media_type.startswith("audio/") or modality in {"AU", "HD", "OT"}:
        words = f"{header.body_part} {header.description} {header.position}".upper()
        if any(word in words for word in ("HEART", "CARDIAC", "PHONOCARDIO", "MITRAL", "AORTIC", "TRICUSPID")):
            return Modality.HEART_SOUND
        if header.media_type.startswith("audio/") and any(
            word in words for word in ("LUNG", "RESPIRAT", "BREATH", "THORAX", "CHEST")
        ):
            return Modality.LUNG_SOUND
    return Modality.OTHER


def _bytes(source: Path | bytes | bytearray | memoryview, limits: Limits) -> memoryview:
    if not isinstance(source, Path):
        data = memoryview(source)
    else:
        try:
            with source.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                data = memoryview(file.read(size) if size <= limits.file_bytes else b"")
        except OSError as error:
            raise DecodeError(
                "unreadable",
                f"the file can't be opened ({error.strerror or error})",
                "check that it is there, is a file and may be read",
            ) from error
        if size > limits.file_bytes:
            raise DecodeError(
                "too-large", f"the file has {size:,} bytes, the limit is {limits.file_bytes:,}", "export it smaller"
            )
    if data.nbytes > limits.file_bytes:
        raise DecodeError(
            "too-large", f"the file has {data.nbytes:,} bytes, the limit is {limits.file_bytes:,}", "export it smaller"
        )
    return data.cast("B") if data.format != "B" or data.ndim != 1 else data
