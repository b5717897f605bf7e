"""When not to answer: what a bundle was made for, and what its gate limits (promise 6).

What this module keeps true: a refusal has a stable code, a reason and an instruction that a nurse can follow; the bundle's own
words go before the ones here. What a file does not say is no ground for refusal (the gate looks at the picture itself), and a
free-text body part in any language is none either: only DICOM's own terms for *other* parts are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import Description, RefusalText
from appliance.reading.prepared import Header, Picture, Sound
from appliance.records import Modality, Refusal


class Verdict(NamedTuple):
    """Why a capture is refused (``None``: it is not), and what a reader of the result should bear in mind."""

    refusal: Refusal | None = None
    warnings: tuple[str, ...] = ()


WORDS: dict[str, RefusalText] = {
    "no-model": RefusalText(
        reason="This box has no model for this kind of capture.",
        advice="A human needs to read it; on a bedside box it is sent to one all the same.",
    ),
    "which-modality": RefusalText(
        reason="The file does not say what it is of.",
        advice="Say what it is: chest-xray, lung-ultrasound, heart-sound or lung-sound.",
    ),
    "not-chest": RefusalText(
        reason="This is not a chest X-ray.", advice="Take or send a frontal chest X-ray; others are not read here."
    ),
    "not-lung": RefusalText(
        reason="This is not of the lungs.", advice="Record over the lungs and send that; others are not read here."
    ),
    "not-heart": RefusalText(
        reason="This is not of the heart.", advice="Record over the heart and send that; others are not read here."
    ),
    "other-modality": RefusalText(
        reason="The capture comes from a kind of machine that this model was not made for.",
        advice="A human needs to read it.",
    ),
    "view": RefusalText(
        reason="The model was not made for this view.", advice="Take a frontal view (PA, or AP when lying down)."
    ),
    "age-needed": RefusalText(
        reason="The model needs the patient's age and the capture does not say it.",
        advice="Enter the age and send the capture again.",
    ),
    "age-outside": RefusalText(
        reason="The model was not made for patients of this age.", advice="A human needs to read it."
    ),
    "too-short": RefusalText(reason="The recording is too short.", advice="Record again and hold still until the end."),
    "too-long": RefusalText(reason="The recording is too long.", advice="Record only the part that matters."),
    "sample-rate": RefusalText(
        reason="The recording's sample rate is outside what the model was made for.",
        advice="Set the stethoscope to its usual quality and record again.",
    ),
    "quality": RefusalText(reason="The capture's quality is too low to be read.", advice="Take it again."),
    "not-a-picture": RefusalText(reason="The file holds a sound, not a picture.", advice="Send the picture."),
    "not-a-sound": RefusalText(reason="The file holds a picture, not a sound.", advice="Send the recording."),
}

_NOT_OF = {
    Modality.CHEST_XRAY: "not-chest",
    Modality.LUNG_ULTRASOUND: "not-lung",
    Modality.HEART_SOUND: "not-heart",
    Modality.LUNG_SOUND: "not-lung",
}

# PS3.16 annex L: defined terms of Body Part Examined that are wholly or partly outside the thorax.
_TERMS = """
ABDOMEN ABDOMENPELVIS ADRENAL ANKLE ANUS ARM AXILLA BACK BLADDER BRAIN BREAST BUTTOCK CALCANEUS CALF CAROTID
CEREBELLUM CERVIX CHEEK CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX COLON CSPINE CTSPINE DUODENUM EAR ELBOW EXTREMITY
EYE EYELID FACE FEMUR FETUS FINGER FOOT FOREARM GALLBLADDER GLUTEUS GROIN HAND HEAD HEADNECK HIP HUMERUS ILEUM ILIUM
JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE MANDIBLE MAXILLA MOUTH NECK NECKCHEST NOSE ORBIT OVARY
PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RADIUSULNA RECTUM SACRUM SCALP SCAPULA SCROTUM SELLA
SHOULDER SIJOINT SKULL SPINE SPLEEN SSPINE STOMACH TESTIS THIGH THUMB THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE
TSPINE ULNA URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA
"""
_OTHER_PARTS = frozenset(_TERMS.split())
_VIEW_WORDS = {
    "POSTERO-ANTERIOR": "PA", "POSTEROANTERIOR": "PA", "ANTERO-POSTERIOR": "AP", "ANTEROPOSTERIOR": "AP",
    "LATERAL": "LL", "LAT": "LL", "LEFT LATERAL": "LL", "RIGHT LATERAL": "RL",
}  # fmt: skip
_VIEWS = frozenset(
    {"PA", "AP", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "OBL", "OBLIQUE", "TAN"}
)


def words_for(code: str, refusals: Mapping[str, RefusalText], detail: str = "", advice: str = "") -> Refusal:
    """The refusal ``code`` in the bundle's words, else in those here; ``detail`` is added to the reason."""
    text = refusals.get(code) or WORDS.get(code) or WORDS["quality"]
    reason = f"{text.reason.rstrip('.')} ({detail})." if detail else text.reason
    return Refusal(code=code, reason=reason, advice=advice or text.advice)


def accepts(capture: Picture | Sound, header: Header, description: Description, age_years: float | None) -> Verdict:
    """Whether the bundle was made for such a capture, as far as the header says: kind, body part, view, age, length."""
    limits = description.accepts
    refuse = description.refusals
    warnings: list[str] = []
    if limits.dicom_modalities and header.dicom_modality and header.dicom_modality not in limits.dicom_modalities:
        return Verdict(words_for("other-modality", refuse, f"the file says {header.dicom_modality}"))
    if limits.sop_classes and header.sop_class_uid and header.sop_class_uid not in limits.sop_classes:
        return Verdict(words_for("other-modality", refuse, f"SOP class {header.sop_class_uid}"))
    match = _body_part(header.body_part, limits.body_parts)
    if match is False:
        code = _NOT_OF.get(description.modality, "other-modality")
        return Verdict(words_for(code, refuse, f"the file says {header.body_part}"))
    if match is None:
        warnings.append(f"The file names a body part that is not known here: {header.body_part}.")
    view = _VIEW_WORDS.get(header.view, header.view)
    if limits.views and view in _VIEWS and view not in limits.views:
        return Verdict(words_for("view", refuse, f"the file says {header.view}"))
    youngest, oldest = limits.age_years
    if age_years is None:
        if limits.age_required:
            return Verdict(words_for("age-needed", refuse))
    elif not youngest <= age_years < oldest:
        return Verdict(
            words_for("age-outside", refuse, f"{age_text(age_years)}, made for {youngest:g} to {oldest:g} years")
        )
    if isinstance(capture, Sound):
        return Verdict(_length(capture, description), tuple(warnings))
    return Verdict(None, tuple(warnings))


def judge(quality: Mapping[str, float], description: Description) -> Verdict:
    """The gate's rules and warnings on the quality indices of a capture.

    A rule on index ``noise`` that is broken refuses with the first code for which the bundle has words: ``noise-low`` or
    ``noise-high`` by the side on which it was broken, then ``noise``, then the bundle's or the general ``quality``. An index
    that was not measured breaks no rule; one that is no number breaks each.
    """
    warned = warnings(quality, description)
    for index, limits in description.gate.rules.items():
        side = _broken(quality, index, limits)
        if side:
            detail = f"{index} {quality[index]:.3g}, accepted {limits[0]:g} to {limits[1]:g}"
            return Verdict(words_for(_code(index, side, description), description.refusals, detail), warned)
    return Verdict(None, warned)


def warnings(indices: Mapping[str, float], description: Description) -> tuple[str, ...]:
    """The gate's ``warn`` limits that these indices pass: quality indices, or outputs of the networks by name."""
    said = []
    for index, limits in description.gate.warn.items():
        side = _broken(indices, index, limits)
        if side:
            text = description.refusals.get(_code(index, side, description))
            said.append(text.reason if text else f"{index} is unusually {side}.")
    return tuple(said)


def of_networks(outputs: Mapping[str, Mapping[str, npt.NDArray[Any]]], description: Description) -> dict[str, float]:
    """The networks' outputs that the gate's ``warn`` names (e.g. ``distance`` from the films trained on), each its mean."""
    named = {name: values for graph in outputs.values() for name, values in graph.items()}
    return {name: float(np.mean(named[name])) for name in description.gate.warn if name in named}


def age_text(age_years: float) -> str:
    """An age as people say it: days, months, then years."""
    if age_years < 1 / 12:
        return f"{age_years * 365.25:.0f} days"
    return f"{age_years * 12:.0f} months" if age_years < 2 else f"{age_years:.0f} years"


def _broken(quality: Mapping[str, float], index: str, limits: tuple[float, float]) -> str:
    value = quality.get(index)
    if value is None or limits[0] <= value <= limits[1]:
        return ""
    return "high" if value > limits[1] else "low"


def _code(index: str, side: str, description: Description) -> str:
    return next((code for code in (f"{index}-{side}", index) if code in description.refusals), "quality")


def _body_part(said: str, accepted: list[str]) -> bool | None:
    """Whether the body part is accepted; ``None`` when the word is not a term of DICOM."""
    words = set(re.findall(r"[A-Z]+", said.upper()))
    if not words or not accepted or words & {part.upper() for part in accepted}:
        return True
    joined = "".join(re.findall(r"[A-Z]+", said.upper()))
    return False if joined in _OTHER_PARTS or words & _OTHER_PARTS else None


def _length(sound: Sound, description: Description) -> Refusal | None:
    shortest, longest = description.accepts.duration_s
    lowest, highest = description.accepts.sample_rate_hz
    seconds = len(sound.samples) / sound.rate_hz
    if seconds < shortest:
        return words_for("too-short", description.refusals, f"{seconds:.1f} s, at least {shortest:g} s are needed")
    if longest and seconds > longest:
        return words_for("too-long", description.refusals, f"{seconds:.0f} s, at most {longest:g} s")
    if sound.rate_hz < lowest or (highest and sound.rate_hz > highest):
        return words_for(
            "sample-rate", description.refusals, f"{sound.rate_hz:g} Hz, {lowest:g} to {highest:g} Hz accepted"
        )
    return None
