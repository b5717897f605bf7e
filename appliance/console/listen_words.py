"""What the stethoscope's page says: places, guidance, why a recording ended, what is wrong and what to do.

What this module keeps true: every code has words that name an action where there is one, and an icon beside the colour.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from appliance.console.words import N_

PLACES: dict[str, str] = {
    "aortic": N_("Aortic area (right of the breastbone, at the top)"),
    "pulmonary": N_("Pulmonary area (left of the breastbone, at the top)"),
    "erb": N_("Erb's point (left of the breastbone, in the middle)"),
    "tricuspid": N_("Tricuspid area (left of the breastbone, below)"),
    "mitral": N_("Mitral area (the apex of the heart)"),
    "lung-front-upper-right": N_("Front, upper right lung"),
    "lung-front-upper-left": N_("Front, upper left lung"),
    "lung-front-lower-right": N_("Front, lower right lung"),
    "lung-front-lower-left": N_("Front, lower left lung"),
    "lung-back-upper-left": N_("Back, upper left lung"),
    "lung-back-upper-right": N_("Back, upper right lung"),
    "lung-back-lower-left": N_("Back, lower left lung"),
    "lung-back-lower-right": N_("Back, lower right lung"),
}

Tone = Literal["good", "notice", "problem"]


class Guidance(NamedTuple):
    """What to say now, with its tone and the icon that goes with it."""

    tone: Tone
    icon: str
    text: str


GUIDANCE: dict[str, Guidance] = {
    "listening": Guidance("notice", "waiting", N_("Listening…")),
    "no-signal": Guidance("problem", "no", N_("No sound arrives. Check the cable, and that the stethoscope is on.")),
    "too-quiet": Guidance("notice", "quieter", N_("Too quiet: press the bell firmly on the skin.")),
    "too-loud": Guidance("notice", "louder", N_("Too loud: press less, or turn the volume down.")),
    "contact-noise": Guidance(
        "notice", "hand", N_("Rubbing or cable noise: hold still, and let nobody touch the cable.")
    ),
    "hum": Guidance("notice", "hand", N_("A hum covers the sound: move away from chargers and fans.")),
    "searching": Guidance("notice", "search", N_("No clear heartbeat yet: move the bell a little.")),
    "breathe": Guidance("notice", "search", N_("No clear breathing yet: ask for deep breaths through the open mouth.")),
    "good": Guidance("good", "yes", N_("Good. Hold still.")),
    "enough": Guidance("good", "yes", N_("Enough was heard.")),
}
WHY: dict[str, str] = {
    "hand": N_("Stopped by hand."),
    "enough": N_("Enough was heard: it stopped by itself."),
    "longest": N_("The longest time was reached."),
    "device": N_("The stethoscope was lost. What was recorded before is here."),
    "disk": N_("The disk took no more. What was recorded before is here."),
}
TROUBLE: dict[str, str] = {
    "none": N_("No stethoscope is connected. Plug it in, then start again."),
    "not-found": N_("The stethoscope that is set up here is not connected. Plug it in, then start again."),
    "rate": N_("This stethoscope gives no sound that can be used. Tell who maintains the box."),
    "open": N_("The stethoscope can't be opened. Unplug it, plug it in again, then start again."),
    "gone": N_("The stethoscope stopped giving sound. Check its plug and its battery."),
    "library": N_("The sound part of the box has failed. Start again; if it stays, tell who maintains the box."),
    "disk": N_("The disk did not take the recording. Tell who maintains the box."),
}
