"""What the DICOM door offers beside storage: the interface of its services, and who a peer is.

What this module keeps true: a service is started before the door opens and stopped after it has closed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from pydicom import config
from pydicom.dataset import Dataset
from pynetdicom import _config

SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
"""Of what is no image: explicit and implicit VR, little endian."""

Count = Callable[[str], None]
"""Counts something that happened, by its cause."""


class Service(Protocol):
    """A service class that the door's associations can ask for."""

    @property
    def sop_classes(self) -> dict[str, str]:
        """What is offered: name by UID."""

    def handlers(self, count: Count) -> list[tuple[Any, Callable[[Any], Any]]]:
        """The events of pynetdicom and what serves them."""

    def start(self) -> None:
        """Begin what runs beside the associations."""

    def stop(self) -> None:
        """End it."""


def keep_quiet() -> None:
    """Keep pydicom and pynetdicom from logging: their complaints quote what they complain about, patients' values included."""
    for library in ("pydicom", "pynetdicom"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom\b.*")
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE


def title_of(association: Any) -> str:
    """The AE title by which the other side called itself."""
    return str(association.requestor.ae_title).strip()


def failure(status: int, comment: str) -> Dataset:
    """A status with the cause that the sender's log will show."""
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment.encode("ascii", "replace").decode("ascii").replace("\\", "/")[:64]
    return answer
