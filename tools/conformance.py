"""Writes ``docs/dicom-conformance.md`` from what the code offers: ``python -m tools.conformance [--check]``.

What this module keeps true: every SOP class, transfer syntax, status, limit and time in the statement is read from the
module that acts on it; a test fails when the page is not the one this writes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from appliance import config
from appliance.capture import dicom, dicom_arrival, dimse_stream

PAGE = Path(__file__).resolve().parent.parent / "docs" / "dicom-conformance.md"


_INTRODUCTION = """\
# DICOM conformance statement

Written by `python -m tools.conformance` from the code; change the code, then run it again.

Bedside is one application entity. It accepts associations (it is an SCP) and asks for none.
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

## Security

Objects are encrypted on the disk (AES-256-GCM) as they arrive. This port itself is not encrypted: bind it to the clinic's
imaging network (`address`) and name its networks (`allowed_addresses`).
"""


def statement() -> str:
    """The page."""
    sections = (
        _INTRODUCTION,
        "## Implementation\n",
        _implementation(),
        "## Configuration\n",
        _configuration(),
        "## Association policy\n",
        _POLICY,
        "## Verification SCP\n",
        f"`{dicom.VERIFICATION}`, Implicit and Explicit VR Little Endian. C-ECHO is always answered 0000.\n",
        "## Storage SCP\n",
        _STORAGE,
        _table(("SOP Class", "UID"), ((name, f"`{uid}`") for uid, name in dicom.STORAGE_CLASSES.items())),
        _table(("Transfer syntax", "UID"), ((name, f"`{uid}`") for uid, name in dicom.TRANSFER_SYNTAXES.items())),
        _table(("status", "when"), ((f"{status:04X}", when) for status, when in dicom_arrival.STATUSES.items())),
        _AFTER_STATUSES,
    )
    return "\n".join(sections)


def _implementation() -> str:
    return _table(
        ("", ""),
        (
            ("Implementation Class UID", f"`{dicom_arrival.IMPLEMENTATION_CLASS_UID}`"),
            ("Implementation Version Name", f"`{dicom_arrival.IMPLEMENTATION_VERSION_NAME}`"),
            ("Largest PDU received", f"{dimse_stream.PDU_SIZE} bytes"),
            ("PDU that ends the association", f"longer than {dimse_stream.PDU_MOST} bytes"),
            ("Asynchronous operations", "none: one request at a time in each association"),
            ("User identity, role selection, extended negotiation", "not used"),
            ("Association must be requested within", f"{dicom.ACSE_TIMEOUT:g} s of the connection"),
            ("Idle association is aborted after", f"{dicom.IDLE_TIMEOUT:g} s"),
            ("Peer that stalls inside a PDU is dropped after", f"{dicom.STALL_TIMEOUT:g} s"),
        ),
    )


def _configuration() -> str:
    fields = (field[1:] for field in config.fields() if field[0] == "dicom" and field[1] != "enabled")
    return _table(
        ("`[dicom]`", "meaning", "default"),
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
