"""A file handed in at the console: a form becomes an ``Upload``, or a refusal that says which field and what to write.

What this module keeps true: the bytes stay in memory until the vault encrypts them; nothing of them is ever written to a
temporary file (promise 8). Numbers outside their range are refused, not clamped.
"""

from __future__ import annotations

import math
from tempfile import SpooledTemporaryFile

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from appliance.console.context import Upload
from appliance.console.phrases import POSITIONS
from appliance.console.words import N_
from appliance.records import Modality

_TEXT = 120
_TICKET = 200


class Unclear(Exception):  # noqa: N818 - the condition's name
    """The form can't be taken; the message names the field and the remedy."""


class _InMemory(MultiPartParser):
    """Starlette's parser, never rolling a file over to the disk; the guard limits the whole."""

    spool_max_size = 0  # 0 is "never" for SpooledTemporaryFile


async def upload_of(request: Request) -> Upload:
    """The upload in a ``multipart/form-data`` request; raises ``Unclear``."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Unclear(N_("The file must be sent as a form (multipart/form-data) with a field called file."))
    parser = _InMemory(request.headers, request.stream(), max_files=1, max_fields=12, max_part_size=4096)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Unclear(N_("The form could not be understood. Choose one file and send it again.")) from error
    try:
        return await _upload(form)
    finally:
        await form.close()


async def _upload(form: FormData) -> Upload:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise Unclear(N_("No file was chosen. Choose a file and send it again."))
    if isinstance(file.file, SpooledTemporaryFile) and getattr(file.file, "_rolled", False):
        raise AssertionError("a handed-in file went to the disk in plain")
    data = await file.read()
    if not data:
        raise Unclear(N_("The file is empty. Choose another one."))
    return Upload(
        filename=file.filename or "",
        data=data,
        modality=_modality(_text(form, "modality")),
        age_years=_age(_text(form, "age")),
        sex=_one_of(_text(form, "sex"), ("", "F", "M", "O"), N_("Choose the sex from the list.")),
        patient_id=_text(form, "patient_id"),
        patient_name=_text(form, "patient_name"),
        ticket=_text(form, "ticket"),
        position=_one_of(_text(form, "position"), ("", *POSITIONS), N_("Choose the place from the list.")),
    )


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise Unclear(N_("The form could not be understood. Choose one file and send it again."))
    clean = "".join(character for character in value if character.isprintable()).strip()
    if len(clean) > (_TICKET if name == "ticket" else _TEXT):
        raise Unclear(N_("A name or number is too long. At most 120 characters fit."))
    return clean


def _modality(text: str) -> Modality | None:
    if not text:
        return None
    try:
        return Modality(text)
    except ValueError as error:
        raise Unclear(N_("Choose what the file shows from the list.")) from error


def _age(text: str) -> float | None:
    if not text:
        return None
    try:
        age = float(text.replace(",", "."))
    except ValueError:
        age = math.nan
    if not 0 <= age <= 130:
        raise Unclear(N_("The age must be a number of years from 0 to 130."))
    return age


def _one_of(text: str, allowed: tuple[str, ...], problem: str) -> str:
    if text not in allowed:
        raise Unclear(problem)
    return text
