"""Where a stethoscope is put, in the order of an examination.

What this module keeps true: each place has an id that is stable in records and messages, says whether heart or lung is heard
there, and has codes for what lies below: SNOMED CT (the terms that PS3.16 uses) with side and front or back as modifiers.
The order is the usual one: heart valves from the base to the apex; lungs side against side, from above downwards, front then
back (Bates' Guide to Physical Examination).
"""

from __future__ import annotations

from typing import Literal

from appliance.records import Code, Modality, Record

RIGHT = Code(scheme="SCT", value="24028007", meaning="Right")
LEFT = Code(scheme="SCT", value="7771000", meaning="Left")
FRONT = Code(scheme="SCT", value="255549009", meaning="Anterior")
BACK = Code(scheme="SCT", value="255551008", meaning="Posterior")
_UPPER = Code(scheme="SCT", value="281392002", meaning="Upper zone of lung")
_LOWER = Code(scheme="SCT", value="281394001", meaning="Lower zone of lung")


class Place(Record, frozen=True, kw_only=True):
    """A place. ``x`` and ``y``: where on the picture of that side of the body, shares of its width and height."""

    id: str
    modality: Modality
    side: Literal["front", "back"]
    code: Code
    modifiers: tuple[Code, ...]
    x: float
    y: float


def _heart(place: str, value: str, meaning: str, x: float, y: float) -> Place:
    code = Code(scheme="SCT", value=value, meaning=meaning)
    return Place(id=place, modality=Modality.HEART_SOUND, side="front", code=code, modifiers=(FRONT,), x=x, y=y)


def _lung(side: Literal["front", "back"], height: Literal["upper", "lower"], hand: Literal["right", "left"]) -> Place:
    on_the_left_of_the_picture = (hand == "right") == (side == "front")  # one faces the patient, or stands behind
    spread = {("front", "upper"): 0.15, ("front", "lower"): 0.22, ("back", "upper"): 0.13, ("back", "lower"): 0.17}
    off = spread[side, height]
    return Place(
        id=f"lung-{side}-{height}-{hand}",
        modality=Modality.LUNG_SOUND,
        side=side,
        code=_UPPER if height == "upper" else _LOWER,
        modifiers=(RIGHT if hand == "right" else LEFT, FRONT if side == "front" else BACK),
        x=0.5 - off if on_the_left_of_the_picture else 0.5 + off,
        y={("front", "upper"): 0.36, ("front", "lower"): 0.74, ("back", "upper"): 0.36, ("back", "lower"): 0.68}[
            side, height
        ],
    )


HEART = (
    _heart("aortic", "34202007", "Aortic valve", 0.42, 0.42),
    _heart("pulmonary", "39057004", "Pulmonary valve", 0.58, 0.42),
    _heart("erb", "80891009", "Heart", 0.57, 0.52),
    _heart("tricuspid", "46030003", "Tricuspid valve", 0.55, 0.62),
    _heart("mitral", "91134007", "Mitral valve", 0.66, 0.66),
)
LUNG = (
    _lung("front", "upper", "right"),
    _lung("front", "upper", "left"),
    _lung("front", "lower", "right"),
    _lung("front", "lower", "left"),
    _lung("back", "upper", "left"),
    _lung("back", "upper", "right"),
    _lung("back", "lower", "left"),
    _lung("back", "lower", "right"),
)
PLACES: dict[str, Place] = {place.id: place for place in (*HEART, *LUNG)}


def following(place: str) -> Place | None:
    """The place to go on with after one, of the same organ; ``None`` after the last."""
    sequence = HEART if PLACES[place].modality is Modality.HEART_SOUND else LUNG
    index = [one.id for one in sequence].index(place) + 1
    return sequence[index] if index < len(sequence) else None
