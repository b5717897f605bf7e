"""The console's sentences: what a ``Line``, a reading or the status is called in words.

What this module keeps true: every state has a word beside its colour and its icon; nothing alarms without saying what to
do; no sentence reads as a diagnosis.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Literal, NamedTuple

from appliance.console.bands import BANDS
from appliance.console.context import StatusView
from appliance.console.lines import Line, person
from appliance.console.listen_words import PLACES
from appliance.console.words import N_, SOURCE, Words
from appliance.records import ADVICE_NOT_DIAGNOSIS, Finding, Measure, Modality, Moment, Patient, Reading, Triage
from appliance.store.attachments import Identifier

MODALITIES: dict[Modality, str] = {
    Modality.CHEST_XRAY: N_("Chest X-ray"),
    Modality.LUNG_ULTRASOUND: N_("Lung ultrasound"),
    Modality.HEART_SOUND: N_("Heart sound"),
    Modality.LUNG_SOUND: N_("Lung sound"),
    Modality.OTHER: N_("Other file"),
}
POSITIONS = PLACES
_CONTRADICTS = {
    "instance": N_("An earlier file carries the same instance number with other content:"),
    "patient-name": N_("An earlier capture has the same patient number and another name:"),
    "patient-birth-date": N_("An earlier capture has the same patient number and another birth date:"),
    "patient-sex": N_("An earlier capture has the same patient number and another sex:"),
    "study-patient": N_("An earlier capture of the same study has another patient number:"),
}
_LEVELS = {
    "critical": N_("Critical"),
    "urgent": N_("Urgent"),
    "routine": N_("Routine"),
    "not-read": N_("Not read"),
    "reading": N_("Being read"),
    "damaged": N_("Damaged"),
}
_LEVEL_LINES = {
    "critical": N_("Act now."),
    "urgent": N_("A clinician should look soon."),
    "routine": N_("Nothing urgent was found by the models."),
    "not-read": N_("No answer from the models. A human needs to look."),
    "reading": N_("The answer comes in a moment. The capture is saved."),
    "damaged": N_("The record on the disk is damaged. Take the capture again if you can."),
}
WAYS: dict[str, str] = {"listen": N_("Listen"), "scan": N_("Scan"), "add": N_("Add a file")}
"""What the buttons of a visit are called that begin a capture (``visits.WAYS`` has their pages)."""
IDENTIFIERS: dict[Identifier, str] = {
    "number": N_("Number"),
    "name": N_("Name"),
    "birth-date": N_("Date of birth"),
    "age-and-sex": N_("Age and sex"),
}
_CONFIDENCE = {"low": N_("uncertain"), "moderate": N_("moderate confidence"), "high": N_("high confidence")}
_HUMAN = {
    "noted": N_("A radiologist has taken note"),
    "accept": N_("Radiologist agrees"),
    "modify": N_("Radiologist changed the findings"),
    "reject": N_("Radiologist rejects this reading"),
}
_UNITS = {
    "/min": N_("per minute"),
    "{beats}/min": N_("beats per minute"),
    "{breaths}/min": N_("breaths per minute"),
    "s": N_("s"),
    "Hz": N_("Hz"),
    "dB": N_("dB"),
    "1": "",
    "": "",
}
_TRUSTED_S = 60.0
"""Beyond this uncertainty, seconds, a time of day is shown as about."""
_LOW_SPACE = 2_000_000_000
_LOW_BATTERY = 0.2


class Tile(NamedTuple):
    """One cell of the status bar: how it is, in a word or two (``more``: where there is room), and what to know or do."""

    name: str
    state: Literal["good", "notice", "problem"]
    title: str
    text: str
    details: tuple[str, ...]
    more: str = ""


class Phrases:
    """The sentences of one language. ``today``: the date of the box's clock, ``YYYY-MM-DD`` in local time."""

    ways = WAYS

    def __init__(self, words: Words, wall: str = "") -> None:
        self._ = words
        self._today = _local(wall)

    def modality(self, modality: Modality) -> str:
        """What a capture is of."""
        return self._(MODALITIES[modality])

    def level(self, line: Line) -> str:
        """The one word for how soon."""
        return self._(_LEVELS[line.level])

    def triage(self, triage: Triage) -> str:
        """The same word for a level that a radiologist gave."""
        return self._(_LEVELS[triage.value])

    def level_line(self, line: Line) -> str:
        """The one sentence below the word."""
        return self._(_LEVEL_LINES[line.level])

    def patient(self, line: Line) -> list[str]:
        """Whom it is of, part by part: a page sets each apart, since a name may run the other way than the page."""
        _ = self._
        parts = [line.patient_name, _("ID {id}", id=line.patient_id) if line.patient_id else ""]
        if not any(parts):
            parts = [_("Patient not given")]
        return [part for part in (*parts, self.age(line.age_years, line.age_until), self.sex(line.sex)) if part]

    def whom(self, patient: Patient) -> list[str]:
        """A patient, part by part, as ``patient`` says them."""
        _ = self._
        parts = [person(patient.name), _("ID {id}", id=patient.id) if patient.id else ""]
        body = (self.born(patient.birth_date), self.age(patient.age_years, patient.age_until), self.sex(patient.sex))
        return [part for part in (*parts, *body) if part]

    def name(self, patient: Patient) -> str:
        """A patient's name as people write it; empty when it is not known."""
        return person(patient.name)

    def identifier(self, patient: Patient, identifier: Identifier) -> str:
        """One identifier of a patient as it is shown to be confirmed; empty when it is not known."""
        said = {
            "number": patient.id,
            "name": person(patient.name),
            "birth-date": self.born(patient.birth_date),
            "age-and-sex": " · ".join(
                part for part in (self.age(patient.age_years, patient.age_until), self.sex(patient.sex)) if part
            ),
        }
        return said[identifier]

    def born(self, birth_date: str) -> str:
        """A date of birth (``YYYYMMDD``), as ISO 8601 writes it."""
        known = len(birth_date) == 8 and birth_date.isdecimal()
        return self._("born {date}", date="-".join((birth_date[:4], birth_date[4:6], birth_date[6:]))) if known else ""

    def age(self, years: float | None, until: float | None = None) -> str:
        """An age in years, or in months below two years; a range when no more is known."""
        band = next(
            (one for one in BANDS.values() if until is not None and (one.low, one.high) == (years, until)), None
        )
        if band is not None:
            return self._(band.words)
        if years is None or not math.isfinite(years) or years < 0:
            return ""
        if years < 2:
            return self._.ngettext("{count} month", "{count} months", int(years * 12))
        return self._.ngettext("{count} year", "{count} years", int(years))

    def sex(self, sex: str) -> str:
        """The sex as the sender said it."""
        _ = self._
        return {"F": _("female"), "M": _("male"), "O": _("other sex")}.get(sex, "")

    def position(self, position: str) -> str:
        """Where the stethoscope or the probe was."""
        return self._(POSITIONS[position]) if position in POSITIONS else position

    def time(self, moment: Moment) -> str:
        """When it came: the time if it was today, the date and time otherwise; "about" when the clock isn't sure."""
        when = _local(moment.wall)
        if when is None:
            return self._("time not known")
        same = self._today is not None and when.date() == self._today.date()
        text = self._straight(when.strftime("%H:%M") if same else when.strftime("%Y-%m-%d %H:%M"))
        sure = moment.uncertainty_s is not None and moment.uncertainty_s <= _TRUSTED_S
        return text if sure else self._("about {time}", time=text)

    def stamp(self, moment: Moment) -> str:
        """Date, time and how sure the clock was."""
        when = _local(moment.wall)
        if when is None:
            return self._("time not known")
        text = self._straight(when.strftime("%Y-%m-%d %H:%M %Z"))
        if moment.uncertainty_s is None:
            return self._("about {time} (the clock was not confirmed)", time=text)
        return f"{text} ± {self._.duration(math.ceil(moment.uncertainty_s))}"

    def _straight(self, text: str) -> str:
        """Digits with hyphens between them keep their order after Arabic letters too (Unicode UAX 9, W2)."""
        return f"\u200e{text}" if self._.direction == "rtl" else text

    def time_of(self, wall: str) -> str:
        """A time that the hub sent."""
        return self.time(Moment(boot_id="", monotonic_ns=0, wall=wall, uncertainty_s=0.0)) if wall else ""

    def found(self, line: Line) -> list[str]:
        """What the list says of a capture: the findings, or why there are none."""
        _ = self._
        if line.level in {"not-read", "damaged"}:
            return [_.heard(line.reason) or _("No reason was given.")]
        if line.level == "reading":
            return [_("Saved; the answer comes in a moment.")]
        if not line.positive:
            return [_("None of what the model looks for was found")]
        return [
            _("{finding} {percent}", finding=_.heard(found.label), percent=_.percent(found.probability))
            for found in line.positive
        ]

    def confidence(self, finding: Finding) -> str:
        """How sure the model is of its yes or no."""
        return self._(_CONFIDENCE[finding.confidence])

    def contradictions(self, line: Line) -> list[str]:
        """What of a capture contradicts an earlier one."""
        return [self._(_CONTRADICTS[one]) for one in line.contradictions if one in _CONTRADICTS]

    def human(self, line: Line) -> str:
        """Where the human's word stands."""
        _ = self._
        if line.human != "none":
            return _(_HUMAN[line.human])
        if line.level == "reading":
            return ""
        if line.delivery == "refused":
            return _("The hub did not take it")
        if line.delivery == "waiting":
            return _("Not sent yet")
        return _("Waiting for a radiologist")

    def delivery(self, line: Line) -> str:
        """Where the result and its pictures are."""
        _ = self._
        if line.delivery == "refused":
            return _(
                "The hub did not take it: {reason}. Tell the people who run the hub; it stays saved here.",
                reason=line.delivery_problem,
            )
        if line.delivery == "delivered":
            return _("Result and originals are at the hub.")
        if line.delivery == "sending":
            return _("The result is at the hub; of the pictures, {percent}.", percent=_.percent(line.sent_share))
        return _("Saved on this box; it is sent as soon as there is a link.")

    def advice(self, reading: Reading) -> str:
        """What to do next, without the sentence that the page always shows anyway."""
        if reading.refusal is not None:
            return self._.heard(reading.refusal.advice)
        return self._.heard(reading.advice.replace(ADVICE_NOT_DIAGNOSIS, "").strip())

    def heard(self, text: str) -> str:
        """A text of a bundle in this language, as far as it is known."""
        return self._.heard(text)

    def tongue(self, text: str) -> str:
        """The language in which ``heard`` says a text: English where it is not known."""
        return SOURCE if self._.heard(text) == text else self._.language

    def advice_tongue(self, reading: Reading) -> str:
        """The language in which ``advice`` is said."""
        said = reading.refusal.advice if reading.refusal is not None else reading.advice
        return self.tongue(said.replace(ADVICE_NOT_DIAGNOSIS, "").strip()) if said else self._.language

    def looked_for(self, reading: Reading) -> str:
        """The limits of an answer: what the model looked for."""
        labels = ", ".join(self._.heard(finding.label) for finding in reading.findings)
        return self._("The model looked only for: {findings}. It says nothing about anything else.", findings=labels)

    def measure(self, measure: Measure) -> str:
        """A value with its unit, as many digits as it deserves."""
        size = abs(measure.value)
        digits = 0 if size >= 20 else 1 if size >= 2 else 2
        unit = _UNITS.get(measure.unit)
        said = self._.number(measure.value, digits) if math.isfinite(measure.value) else "–"
        return f"{said} {self._(unit) if unit else measure.unit if unit is None else ''}".strip()

    def tiles(self, status: StatusView) -> tuple[Tile, ...]:
        """The status bar."""
        tiles = (self._link(status), self._storage(status), self._clock(status), self._models(status))
        return tiles if status.on_mains is None and status.battery is None else (*tiles, self._power(status))

    def _power(self, status: StatusView) -> Tile:
        _ = self._
        more = "" if status.battery is None else _.percent(status.battery)
        if status.on_mains is not False:
            return Tile("power", "good", _("Power"), _("Plugged in"), (_("The mains are there."),), more)
        if status.battery is not None and status.battery < _LOW_BATTERY:
            remedy = _("Plug the box in, or finish and switch it off: everything that was taken is saved.")
            return Tile("power", "problem", _("Power"), _("Battery low"), (remedy,), more)
        remedy = _("Go on working. Plug the box in when the mains are back.")
        return Tile("power", "notice", _("Power"), _("On battery"), (remedy,), more)

    def _link(self, status: StatusView) -> Tile:
        _ = self._
        since = None if status.link_since_s is None else _.duration(status.link_since_s)
        details = [_("{size} sent so far.", size=_.size(status.sent_bytes))]
        if status.waiting_messages or status.waiting_bytes:
            waits = _.ngettext("{count} message", "{count} messages", status.waiting_messages)
            details.insert(0, _("Waiting: {messages}, {size}.", messages=waits, size=_.size(status.waiting_bytes)))
        else:
            details.insert(0, _("Nothing waits to be sent."))
        if not status.link_configured:
            return Tile("link", "notice", _("Link"), _("Not set up"), (_("Name the broker in the configuration."),))
        if status.link_online:
            more = "" if since is None else _("for {time}", time=since)
            return Tile("link", "good", _("Link"), _("Online"), tuple(details), more)
        details.append(_("Go on working: everything is saved here and sent when the link is back."))
        if status.link_problem:
            details.append(status.link_problem)
        more = "" if since is None else _("for {time}", time=since)
        if status.waiting_messages:
            waits = _.ngettext("{count} waits", "{count} wait", status.waiting_messages)
            more = f"{more} · {waits}" if more else waits
        return Tile("link", "notice", _("Link"), _("Offline"), tuple(details), more)

    def _storage(self, status: StatusView) -> Tile:
        _ = self._
        if status.free_bytes <= 0:
            text = _("Full")
            remedy = _("New captures are refused. Bring the link up, or free space on the disk.")
            return Tile("storage", "problem", _("Storage"), text, (remedy,))
        text = _("{size} free", size=_.size(status.free_bytes))
        kept = _.ngettext("{count} capture on this box.", "{count} captures on this box.", _kept(status))
        if status.free_bytes < _LOW_SPACE:
            remedy = _("Space runs low: bring the link up so that delivered captures can be removed.")
            return Tile("storage", "problem", _("Storage"), text, (remedy, kept))
        return Tile("storage", "good", _("Storage"), text, (kept,))

    def _clock(self, status: StatusView) -> Tile:
        _ = self._
        when = _local(status.wall)
        shown = "" if when is None else when.strftime("%Y-%m-%d %H:%M")
        uncertainty = status.clock_uncertainty_s
        if uncertainty is None:
            remedy = _(
                "No clock has been trusted since the box was switched on. The order of captures is right anyway."
            )
            return Tile("clock", "notice", _("Clock"), _("Time not confirmed"), (remedy, shown))
        text = _("± {time}", time=_.duration(math.ceil(uncertainty)))
        if uncertainty > _TRUSTED_S:
            remedy = _("The time is set right when the link is up. The order of captures is right anyway.")
            return Tile("clock", "notice", _("Clock"), text, (remedy, shown))
        return Tile("clock", "good", _("Clock"), text, (_("The time is confirmed."), shown))

    def _models(self, status: StatusView) -> Tile:
        _ = self._
        details = [
            f"{self.modality(model.modality)}: {model.bundle} {model.version}, {model.engine} ({model.provider}), "
            + (_("self-test passed") if model.golden == "passed" else _("self-test not run"))
            for model in status.models
        ]
        if not status.models:
            remedy = _("Captures are kept and sent, and not read. Install a model: see the handbook.")
            return Tile("models", "problem", _("Models"), _("None"), (remedy, *status.model_problems))
        text = _.ngettext("{count} ready", "{count} ready", len(status.models))
        if status.building:
            details.insert(0, _("A faster engine is being built; what is ready goes on serving until then."))
        if status.model_problems:
            return Tile("models", "notice", _("Models"), text, (*details, *status.model_problems))
        return Tile("models", "good", _("Models"), text, tuple(details))


def _kept(status: StatusView) -> int:
    return sum(count for state, count in status.captures.items() if state not in {"set_aside", "conflicts"})


def _local(wall: str) -> dt.datetime | None:
    """An RFC 3339 time in the box's own time zone; ``None`` when it is none."""
    try:
        parsed = dt.datetime.fromisoformat(wall.replace("Z", "+00:00"))
    except ValueError:
        return None
    return parsed.astimezone() if parsed.tzinfo is not None else None
