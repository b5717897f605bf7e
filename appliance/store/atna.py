"""The audit log as DICOM audit messages (PS3.15, A.5; IHE ATNA, ITI-20), for whoever collects them.

What this module keeps true: every entry becomes one message; what this log calls an event has one event id of PS3.16, CID 400,
and an event without a name there is application activity under its own name. Codes: DICOM PS3.16, CID 400 to 405.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr


class Event(NamedTuple):
    """A code of CID 400, its meaning, and what was done: create, read, update, delete, execute."""

    code: str
    meaning: str
    action: str = "E"
    outcome: int = 0


_ACTIVITY = Event("110100", "Application Activity")
_ALERT, _MINOR, _SERIOUS = Event("110113", "Security Alert"), 4, 8
_SIGNED = Event("110114", "User Authentication")
_PATIENT, _PROCEDURE = Event("110110", "Patient Record"), Event("110111", "Procedure Record")

EVENTS: Mapping[str, Event] = {
    "start": _ACTIVITY,
    "kept": Event("110104", "DICOM Instances Transferred", "C"),
    "reported": _PROCEDURE._replace(action="C"),
    "raised": _PROCEDURE,
    "agreement": _PROCEDURE._replace(action="U"),
    "received": Event("110107", "Import", "C"),
    "carried": Event("110107", "Import", "C"),
    "exported": Event("110106", "Export", "R"),
    "removed": Event("110105", "DICOM Study Deleted", "D"),
    "discarded": Event("110105", "DICOM Study Deleted", "D"),
    "erased": Event("110105", "DICOM Study Deleted", "D"),
    "broken": _ALERT._replace(outcome=_SERIOUS),
    "enrolled": _ALERT._replace(action="C"),
    "renewed": _ALERT._replace(action="U"),
    "malformed": Event("110108", "Network Entry", outcome=_MINOR),
    "rejected-connection": Event("110108", "Network Entry", outcome=_MINOR),
    "signed-in": _SIGNED,
    "signed-out": _SIGNED,
    "sign-in-failed": _SIGNED._replace(outcome=_MINOR),
    "sign-in-throttled": _SIGNED._replace(outcome=_SERIOUS),
    "setup-failed": _SIGNED._replace(outcome=_MINOR),
    "pin-changed": _ALERT._replace(action="U"),
    "administrator-entered": _ALERT._replace(action="C"),
    "person-entered": _ALERT._replace(action="C"),
    "person-changed": _ALERT._replace(action="U"),
    "token-made": _ALERT._replace(action="C"),
    "token-revoked": _ALERT._replace(action="D"),
    "patient-entered": _PATIENT._replace(action="C"),
    "patient-amended": _PATIENT._replace(action="U"),
    "visit-opened": _PROCEDURE._replace(action="C"),
    "visit-closed": _PROCEDURE._replace(action="U"),
    "attached": _PROCEDURE._replace(action="U"),
}


def message(entry: Mapping[str, Any], device: str) -> str:
    """One entry (a row of ``audit``) as one line of XML; ``device``: ``site/name``."""
    name = str(entry["event"])
    event = EVENTS.get(name, _ACTIVITY)
    site = device.partition("/")[0]
    detail = f"{entry['detail']} entry={entry['sequence']} boot={entry['boot_id']} monotonic_ns={entry['monotonic_ns']}"
    return (
        "<AuditMessage>"
        f'<EventIdentification EventActionCode="{event.action}" EventDateTime={quoteattr(str(entry["wall"]))}'
        f' EventOutcomeIndicator="{event.outcome}">'
        f'<EventID csd-code="{event.code}" codeSystemName="DCM" originalText="{event.meaning}"/>'
        f'<EventTypeCode csd-code={quoteattr(name)} codeSystemName="99BEDSIDE" originalText={quoteattr(name)}/>'
        "</EventIdentification>"
        f'<ActiveParticipant UserID={quoteattr(device)} UserIsRequestor="false">'
        '<RoleIDCode csd-code="110150" codeSystemName="DCM" originalText="Application"/></ActiveParticipant>'
        f"<AuditSourceIdentification AuditSourceID={quoteattr(device)} AuditEnterpriseSiteID={quoteattr(site)}>"
        '<AuditSourceTypeCode csd-code="2" codeSystemName="RFC3881" originalText="Data acquisition device"/>'
        "</AuditSourceIdentification>"
        f"<ParticipantObjectIdentification ParticipantObjectID={quoteattr(str(entry['subject']) or '-')}"
        ' ParticipantObjectTypeCode="2">'
        '<ParticipantObjectIDTypeCode csd-code="10" codeSystemName="RFC3881" originalText="Search Criteria"/>'
        f'<ParticipantObjectDetail type="detail" value={quoteattr(_base64(detail))}/>'
        "</ParticipantObjectIdentification>"
        "</AuditMessage>"
    )


def _base64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()
