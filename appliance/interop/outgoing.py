"""What leaves the box on a way out that must not carry the patient: the words of a result, and the files.

What this module keeps true: each field of a capture is either named here as harmless, or hidden; what can't be cleaned
raises ``Withheld`` and stays. A file that leaves holds the pixels or samples as they were, in their smallest lossless form.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import NamedTuple

import msgspec

from appliance.config import DeidentifyConfig
from appliance.interop.deidentify import Blind, Withheld, deidentified, mapped_uid, names_in, pseudonym
from appliance.interop.profile import Options, area
from appliance.interop.samples import samples_of
from appliance.records import Capture, Patient, Reading

_TERM = re.compile(r"[A-Za-z][A-Za-z _-]{0,31}")
_QUOTED = re.compile(r"\s*[(:\"]|\s+'")


class Clean(NamedTuple):
    """A file without its patient."""

    data: bytes
    media_type: str


def options_of(config: DeidentifyConfig) -> Options:
    """The options that the configuration chose; raises ``ProfileError``."""
    return Options(
        dates=config.dates,
        characteristics=config.characteristics,
        device=config.device,
        institution=config.institution,
        areas=tuple(area(text) for text in config.areas),
    )


def hidden(capture: Capture, blind: Blind, options: Options) -> Capture:
    """The capture's record as it may leave: pseudonym, mapped UIDs, no words that a person wrote."""
    who = capture.patient
    known = who.id or who.name
    kept = Patient(sex=who.sex, age_years=min(who.age_years, 90.0) if who.age_years is not None else None)
    patient = kept if options.characteristics else Patient()
    if known:
        patient = msgspec.structs.replace(patient, id=pseudonym(blind, who.issuer, who.id, who.name))
    return msgspec.structs.replace(
        capture,
        patient=patient,
        study_uid=mapped_uid(blind, capture.study_uid),
        series_uid=mapped_uid(blind, capture.series_uid),
        instance_uid=mapped_uid(blind, capture.instance_uid),
        study_date=capture.study_date if options.dates == "kept" else "",
        encounter_id=blind(f"encounter\0{capture.encounter_id}") if capture.encounter_id else "",
        body_part=_term(capture.body_part, who),
        view=_term(capture.view, who),
        position=_term(capture.position, who),
        accession_number="",
        description="",
        source="",
    )


def unquoted(reading: Reading) -> Reading:
    """The reading without what its reasons and warnings quote from the file (a body part, a damaged value, an age).

    Reasons are written so that what is quoted stands behind a bracket, a colon or a quotation mark.
    """
    refusal = reading.refusal
    if refusal is not None:
        refusal = msgspec.structs.replace(refusal, reason=_own_words(refusal.reason))
    warnings_left = tuple(_own_words(one) for one in reading.warnings)
    return msgspec.structs.replace(reading, refusal=refusal, warnings=warnings_left)


def _own_words(text: str) -> str:
    return _QUOTED.split(text, maxsplit=1)[0].rstrip(" .") + "."


def _term(text: str, who: Patient) -> str:
    """A word of the field's vocabulary; anything else that a header may hold is dropped."""
    return text if _TERM.fullmatch(text) and not names_in(text, (who.name, who.id)) else ""


def cleaned(capture: Capture, data: bytes, blind: Blind, options: Options) -> Clean:
    """The capture's file without its patient; raises ``Withheld``."""
    if data[128:132] == b"DICM" or capture.media_type == "application/dicom":
        also = (capture.patient.name, capture.patient.id, capture.accession_number)
        return Clean(_compressed(deidentified(data, blind, options, also).data), "application/dicom")
    if capture.media_type.startswith("audio/"):
        return Clean(_bare_sound(data), "audio/flac")
    raise Withheld("a picture file can have a name in it that no one marked; send it as DICOM, or keep it here")


def _compressed(data: bytes) -> bytes:
    """The object with its native pixels as JPEG-LS, when these are restored exactly; else as it is."""
    import numpy as np
    import pydicom
    from pydicom.uid import JPEGLSLossless

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data))
        if "PixelData" not in dataset or dataset.file_meta.TransferSyntaxUID.is_compressed:
            return data
        try:
            plain = dataset.pixel_array.copy()
            dataset.compress(JPEGLSLossless, generate_instance_uid=False)
            out = io.BytesIO()
            pydicom.dcmwrite(out, dataset, enforce_file_format=True)
            exact = np.array_equal(pydicom.dcmread(io.BytesIO(out.getvalue())).pixel_array, plain)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return data
    return out.getvalue() if exact and len(out.getvalue()) < len(data) else data


def _bare_sound(data: bytes) -> bytes:
    """The samples as FLAC with no tag, chunk or comment of the file they came in."""
    import soundfile

    try:
        values, rate, held = samples_of(data)
        subtype = "PCM_16" if held in ("PCM_16", "PCM_S8", "PCM_U8", "ALAW", "ULAW") else "PCM_24"
        out = io.BytesIO()
        soundfile.write(out, values, rate, format="FLAC", subtype=subtype)
    except (soundfile.LibsndfileError, ValueError, TypeError) as error:
        raise Withheld(f"the recording can't be written without its tags ({type(error).__name__})") from None
    return out.getvalue()
