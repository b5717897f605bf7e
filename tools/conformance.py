"""Writes ``docs/dicom-conformance.md`` from what the code offers: ``python -m tools.conformance [--check]``.

What this module keeps true: every SOP class, transfer syntax, status, limit and time in the statement is read from the
module that acts on it; a test fails when the page is not the one this writes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from appliance import config
from appliance.capture import (
    commitment,
    dicom,
    dicom_arrival,
    dicom_tls,
    dimse_stream,
    mpps,
    worklist,
    worklist_scp,
)
from appliance.store import identity

PAGE = Path(__file__).resolve().parent.parent / "docs" / "dicom-conformance.md"


_INTRODUCTION = """\
# DICOM conformance statement

Written by `python -m tools.conformance` from the code; change the code, then run it again.

Bedside is one application entity. It accepts associations for Verification, Storage, Storage Commitment, Modality Performed
Procedure Step and Modality Worklist (SCP of each), and asks for associations to query a Modality Worklist (SCU, when
`worklist.enabled`) and to report Storage Commitment to the senders of `dicom.peers`.
"""

_POLICY = """\
- A connection from an address outside `allowed_addresses` is closed before anything is read.
- A request that calls another AE title (while `check_called_ae_title` is on) is rejected: called AE title not recognised.
- A request from an AE title that `allowed_ae_titles` does not list is rejected: calling AE title not recognised.
- A request beyond `maximum_associations` is rejected: local limit exceeded (transient).
- Of several transfer syntaxes offered in one presentation context, the first of the list below is taken.
"""

_STORAGE = """\
Each of these classes, with each of the transfer syntaxes below. Level 2 (full): every element is kept as it came, private
ones and those in unknown character sets too; nothing is coerced. The object is kept as a file of PS3.10 whose data set is
byte for byte the one received.
"""

_AFTER_STATUSES = """\
A failure carries its cause in Error Comment (0000,0902). An association that ends in the middle of a transfer leaves
nothing of the object.

## Character sets

Patient and study attributes are decoded by the data set's Specific Character Set (0008,0005), code extensions included, for
display and transmission; a character set that is not known keeps no object out.

## What contradicts what was kept before

Such an object is kept, answered 0000 and flagged with its reasons; nothing is merged or corrected.
"""

_COMPLETENESS = """\
Whether a study is complete is never guessed from when its files came. In this order it rests on: the performed procedure
steps of the study (complete when all instances that they name are here); Number of Study Related Instances (0020,1208) in
the objects; how the last association that brought something of it ended (an orderly release says "ended", a broken one
"incomplete"); else it is unknown, and that is what is shown.
"""

_COMMITMENT = """\
SOP Class `{uid}`, implicit and explicit VR little endian, N-ACTION type 1 on the well-known instance. A request is durable
before it is accepted. An instance is reported as committed only if at the time of the report its row is in the journal and
its file has been read back and has the hash of the row. The N-EVENT-REPORT goes to the address of `dicom.peers`, on an
association that the box asks for (role selection: SCP), again after 10 s, 20 s … at most 1 h until the sender has taken it, at
most {attempts} times; to a sender without an address on the association of its request once that has been quiet for
{quiet:g} s, or on the next association with this presentation context that the same AE title opens. Requests outlive restarts.
"""

_PERFORMED = """\
SOP Class `{uid}`, implicit and explicit VR little endian, N-CREATE and N-SET. A step is durable before it is acknowledged; all
its attributes are kept. A step begins IN PROGRESS and ends COMPLETED or DISCONTINUED; after that it is not changed.
"""

_WORKLIST_SCP = """\
SOP Class `{uid}`, implicit and explicit VR little endian, C-FIND. The answer comes from the box: the clinic's worklist as it
last answered, and the visits that are open on the box. Every attribute of the box's entries is a matching key: single value,
list of UID, wild card, range of date and time (both of the scheduled step as one range), sequence, universal; person names
without regard to case. An entry without a date is here now and matches every range.
"""

_WORKLIST_SCU = """\
Asked every `refresh` seconds for what is scheduled today and tomorrow (for all days while the box does not know the time), with
`station_ae_title` and `modality` where they are set. At most `most` entries and {megabytes} MB are taken of an answer. It
replaces the one before whole; while the server can't be reached the last one serves, with its age and the reason.
"""

_SECURITY = """\
Objects, worklist entries, performed steps and commitment requests are encrypted on the disk (AES-256-GCM). With `tls` the port
takes only TLS 1.2 ({ciphers}) or 1.3 (BCP 195 profile, PS3.15 B.12); with `ca_file` only peers whose certificate comes from
that authority. Dates of certificates are judged only while the box knows the time. Without `tls`, bind the port to the clinic's
imaging network (`address`) and name its networks (`allowed_addresses`).
"""


def statement() -> str:
    """The page."""
    sections = (
        _INTRODUCTION,
        "## Implementation\n",
        _implementation(),
        "## Configuration\n",
        _configuration("dicom"),
        "## Association policy\n",
        _POLICY,
        "## Verification SCP\n",
        f"`{dicom.VERIFICATION}`, Implicit and Explicit VR Little Endian. C-ECHO is always answered 0000.\n",
        "## Storage SCP\n",
        _STORAGE,
        _table(("SOP Class", "UID"), ((name, f"`{uid}`") for uid, name in dicom.STORAGE_CLASSES.items())),
        _table(("Transfer syntax", "UID"), ((name, f"`{uid}`") for uid, name in dicom.TRANSFER_SYNTAXES.items())),
        _statuses(dicom_arrival.STATUSES),
        _AFTER_STATUSES,
        _table(("reason", "meaning"), ((f"`{code}`", meaning) for code, meaning in identity.REASONS.items())),
        "## Completeness of a study\n",
        _COMPLETENESS,
        *_services(),
        "## Security\n",
        _SECURITY.format(ciphers=dicom_tls.CIPHERS),
    )
    return "\n".join(sections)


def _services() -> Iterable[str]:
    yield "## Storage Commitment SCP\n"
    yield _COMMITMENT.format(uid=commitment.PUSH_MODEL, attempts=commitment.ATTEMPTS, quiet=dimse_stream.QUIET)
    yield _statuses(commitment.STATUSES)
    yield _table(("failure reason", "when"), ((f"{code:04X}", when) for code, when in commitment.FAILURES.items()))
    yield "## Modality Performed Procedure Step SCP\n"
    yield _PERFORMED.format(uid=mpps.PERFORMED_STEP)
    yield _statuses(mpps.STATUSES)
    yield "## Modality Worklist SCP\n"
    yield _WORKLIST_SCP.format(uid=worklist.WORKLIST_FIND)
    yield _statuses(worklist_scp.STATUSES)
    yield "## Modality Worklist SCU\n"
    yield _WORKLIST_SCU.format(megabytes=worklist.BYTES_MOST // 1_000_000)
    yield _configuration("worklist")


def _statuses(statuses: dict[int, str]) -> str:
    return _table(("status", "when"), ((f"{status:04X}", when) for status, when in statuses.items()))


def _implementation() -> str:
    return _table(
        ("", ""),
        (
            ("Implementation Class UID", f"`{dicom_arrival.IMPLEMENTATION_CLASS_UID}`"),
            ("Implementation Version Name", f"`{dicom_arrival.IMPLEMENTATION_VERSION_NAME}`"),
            ("Largest PDU received", f"{dimse_stream.PDU_SIZE} bytes"),
            ("PDU that ends the association", f"longer than {dimse_stream.PDU_MOST} bytes"),
            ("Asynchronous operations", "none: one request at a time in each association"),
            ("Role selection", "for Storage Commitment"),
            ("User identity, extended negotiation", "not used"),
            ("Association must be requested within", f"{dicom.ACSE_TIMEOUT:g} s of the connection"),
            ("Idle association is aborted after", f"{dicom.IDLE_TIMEOUT:g} s"),
            ("Peer that stalls inside a PDU is dropped after", f"{dicom.STALL_TIMEOUT:g} s"),
        ),
    )


def _configuration(section: str) -> str:
    fields = (field[1:] for field in config.fields() if field[0] == section and field[1] != "enabled")
    return _table(
        (f"`[{section}]`", "meaning", "default"),
        (
            (f"`{name}`", f"{title}{f' ({unit})' if unit else ''}", f"`{default!r}`")
            for name, title, unit, default in fields
        ),
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or with ``--check`` say whether it is up to date."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == statement() else 1
    PAGE.write_text(statement(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
